use foil_proto::v1;
use serde::Deserialize;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    Submitted { job: Box<v1::Job> },
    Measured { value: f64 },
    Numbered { number: u64 },
}

fn number(number: u64) -> Event {
    Event::Numbered { number }
}

/// Snapshots keep odd numbers only.
const SNAPSHOT_POLICY: SnapshotPolicy<Event> = SnapshotPolicy { every: 4, select: || Box::new(OddNumbers) };

struct OddNumbers;

impl Selection<Event> for OddNumbers {
    fn record(&mut self, _: &Event) {}

    fn turn(&mut self) {}

    fn select(&mut self, event: &mut Event) -> Selected {
        match event {
            Event::Numbered { number } if *number % 2 == 1 => Selected::Kept,
            _ => Selected::Dropped,
        }
    }
}

struct Everything;

impl<E> Selection<E> for Everything {
    fn record(&mut self, _: &E) {}

    fn turn(&mut self) {}

    fn select(&mut self, _: &mut E) -> Selected {
        Selected::Kept
    }
}

/// Values whose bits a decimal text form may lose, and types whose JSON mapping is unusual.
fn job() -> v1::Job {
    let metric = |value| v1::Metric { name: "m".into(), value, se: Some(f64::MIN_POSITIVE) };
    v1::Job {
        id: "job".into(),
        state: v1::JobState::Running.into(),
        revision: u64::MAX,
        spec: Some(v1::JobSpec {
            seed: Some(u32::MAX),
            policy_step: Some(v1::PolicyStepSpec {
                learning_rate: vec![5e-6, 0.1 + 0.2, 1.0 / 3.0],
                ..Default::default()
            }),
            ..Default::default()
        }),
        submitted_at: Some(pbjson_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 }),
        start: vec![metric(f64::MAX), metric(-0.0), metric(f64::NEG_INFINITY)],
        failure: Some(v1::JobFailure { rank: Some(0), ..Default::default() }),
        ..Default::default()
    }
}

#[tokio::test]
async fn wire_types_come_back_bit_for_bit() {
    let store = Store::in_memory();
    let (journal, _) = Journal::open(store.clone(), "a", SNAPSHOT_POLICY).await.unwrap();
    let events =
        [Event::Submitted { job: Box::new(job()) }, Event::Measured { value: 0.1 + 0.7 }, number(u64::MAX)];
    journal.append(&events).await.unwrap();
    journal.append(&[Event::Measured { value: f64::NAN }]).await.unwrap();
    let (_, replayed) = Journal::open(store, "b", SNAPSHOT_POLICY).await.unwrap();
    assert_eq!(replayed[..3], events);
    assert!(matches!(replayed[3], Event::Measured { value } if value.is_nan()));
}

#[tokio::test]
async fn appends_at_once_share_records_and_keep_their_order() {
    let store = Store::in_memory();
    let (journal, _) = Journal::open(store.clone(), "a", SNAPSHOT_POLICY).await.unwrap();
    let appends: Vec<[Event; 1]> = (0..200).map(|n| [number(n)]).collect();
    let waiting: Vec<_> = appends.iter().map(|event| journal.append(event)).collect();
    let records = futures::future::try_join_all(waiting).await.unwrap();
    assert!(records.last().unwrap() < &20, "200 appends made {} records", records.last().unwrap());
    let (_, replayed) = Journal::open(store, "b", SNAPSHOT_POLICY).await.unwrap();
    assert_eq!(replayed, appends.concat());
}

#[tokio::test]
async fn a_deposed_leader_notices_and_ends() {
    let store = Store::in_memory();
    let (old, _) = Journal::open(store.clone(), "old", SNAPSHOT_POLICY).await.unwrap();
    let (new, _) = Journal::open(store.clone(), "new", SNAPSHOT_POLICY).await.unwrap();
    assert!(new.term() > old.term());
    assert!(old.append(&[number(1)]).await.unwrap_err().is_deposed());
    assert!(old.failure().await.is_deposed());
    assert!(old.append(&[number(2)]).await.unwrap_err().is_deposed());
    new.append(&[number(3)]).await.unwrap();
    let (_, replayed) = Journal::open(store, "third", SNAPSHOT_POLICY).await.unwrap();
    assert_eq!(replayed, [number(3)]);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_back_is_rejected() {
    #[derive(Debug, Serialize, Deserialize)]
    struct OneWay {
        #[serde(serialize_with = "as_text")]
        number: u64,
    }
    fn as_text<S: serde::Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&number.to_string())
    }
    let snapshot_policy = SnapshotPolicy::<OneWay> { every: 9, select: || Box::new(Everything) };
    let (journal, _) = Journal::open(Store::in_memory(), "a", snapshot_policy).await.unwrap();
    let refused = journal.append(&[OneWay { number: 1 }]).await.unwrap_err();
    assert!(matches!(refused, JournalError::Unencodable(_)), "{refused}");
}

#[tokio::test]
async fn events_of_an_unknown_kind_are_an_error_that_names_the_record() {
    let store = Store::in_memory();
    let snapshot_policy = SnapshotPolicy::<String> { every: 9, select: || Box::new(Everything) };
    let (journal, _) = Journal::open(store.clone(), "a", snapshot_policy).await.unwrap();
    journal.append(&["not an event".to_owned()]).await.unwrap();
    let error = Journal::open(store, "b", SNAPSHOT_POLICY).await.err().unwrap().to_string();
    assert!(error.contains("meta/log/00000000000000000001"), "{error}");
}

#[tokio::test]
async fn a_long_log_is_replayed_from_a_snapshot() {
    let store = Store::in_memory();
    let (journal, _) = Journal::open(store.clone(), "a", SNAPSHOT_POLICY).await.unwrap();
    for n in 0..40 {
        journal.append(&[number(n)]).await.unwrap();
        // The snapshot is written concurrently with the appends.
        tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while n % 4 == 3
                && store.list("meta/snapshot").await.unwrap().len() < usize::min(2, (n as usize + 1) / 4)
            {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
    let records = store.list("meta/log").await.unwrap();
    assert_eq!(records.len(), 41, "a used name stays taken");
    assert!(records.iter().filter(|record| record.size > 0).count() < 20, "{records:?}");
    let (_, replayed) = Journal::open(store, "b", SNAPSHOT_POLICY).await.unwrap();
    let Some(Event::Numbered { number: last }) = replayed.last() else { panic!("{replayed:?}") };
    assert!(*last == 39 && replayed.len() < 30 && replayed.contains(&number(1)), "{replayed:?}");
}
