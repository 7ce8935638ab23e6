//! Tests of gang phases: what ranks report, share and need.

use super::*;
use crate::task::Object;

#[test]
fn a_gang_reports_its_activity_before_and_after_its_steps() {
    let mut test = TestRank::new(letters_job());
    let sets = letters::generate(17, Counts { sft: 70, golden: 0, prompts: 0, evaluation: 0 });
    let (start, demonstrations) = (test.start_model(), test.dataset("sft", &sets.sft));
    let work = Work::Sft(v1::Sft { policy: Some(start), demonstrations });
    let task = Some(v1::Task { phase: "r00.sft".into(), round: 0, work: Some(work) });
    let command = v1::RunGang { task, attempt: 1, world: 1, key_prefix: "a1/".into(), ..Default::default() };
    test.context.run_gang(&command.try_into().unwrap()).unwrap();
    let messages = std::iter::from_fn(|| test.messages.try_recv().ok()?.message);
    let mut reported: Vec<(String, u64)> = messages
        .map(|message| match message {
            Message::Progress(progress) => (progress.unit, progress.total),
            Message::Step(step) => ("steps".to_owned(), step.steps),
            _ => ("result".to_owned(), 0),
        })
        .collect();
    reported.dedup_by_key(|(unit, _)| unit.clone());
    let units: Vec<&str> = reported.iter().map(|(unit, _)| unit.as_str()).collect();
    let expected = ["bytes loaded", "rows encoded", "steps", "bytes saved", "bytes hashed", "result"];
    assert_eq!(units, expected);
    assert_eq!(reported[1].1, 70);
    assert!(reported[3].1 > 100_000, "the weights' bytes: {}", reported[3].1);
}

#[test]
fn a_job_that_the_disk_has_no_room_for_fails_before_its_models_are_loaded() {
    let mut test = TestRank::new(letters_job());
    let mut start = test.start_model();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs/letters/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    // 64 layers with almost a terabyte of weights.
    (config["num_hidden_layers"], config["intermediate_size"]) = (64.into(), 262_144.into());
    (config["hidden_size"], config["vocab_size"]) = (262_144.into(), 262_144.into());
    let config = config.to_string();
    start.objects[0] = test.objects.put("config.json", config.as_bytes(), "config.json").into();
    let demonstrations = test.dataset::<rows::DemonstrationRow>("sft", &[]);
    let work = Work::Sft(v1::Sft { policy: Some(start), demonstrations });
    let task = Some(v1::Task { phase: "r00.sft".into(), round: 0, work: Some(work) });
    let command = v1::RunGang { task, attempt: 1, world: 1, key_prefix: "a1/".into(), ..Default::default() };
    let failure = test.context.run_gang(&command.try_into().unwrap()).unwrap_err().failure();
    assert_eq!(failure.class, FailureClass::Store);
    assert!(
        failure.message.contains("TiB there") && failure.message.contains("are free"),
        "{}",
        failure.message
    );
    assert!(failure.advice.contains("--work-dir"), "{}", failure.advice);
}

/// Runs SFT as one rank of `world` with a directory on a `host`. `relay` sends rank 0's address to the
/// others, as the coordinator does.
fn sft_in_gang(
    host: &Path,
    (rank, world): (u32, u32),
    relay: &[Sender<Rendezvous>],
    rendezvous: mpsc::Receiver<Rendezvous>,
) -> v1::GangResult {
    let mut test = TestRank::new(letters_job());
    test.context.rank.rendezvous = rendezvous;
    let dir = host.join(format!("rank-{rank}"));
    test.context.cache = ArtifactCache::open(&dir, Box::new(test.objects.clone())).unwrap().shared_in(host);
    let start = test.start_model();
    let sets = letters::generate(17, Counts { sft: 70, golden: 0, prompts: 0, evaluation: 0 });
    let demonstrations = test.dataset("sft", &sets.sft);
    let work = Work::Sft(v1::Sft { policy: Some(start), demonstrations });
    let task = Some(v1::Task { phase: "r00.sft".into(), round: 0, work: Some(work) });
    let command =
        v1::RunGang { task, attempt: 1, rank, world, key_prefix: "a1/".into(), ..Default::default() };
    let (messages, mut heard) = tokio::sync::mpsc::unbounded_channel();
    test.context.reports = Reporter::new(messages);
    std::thread::scope(|scope| {
        let listener = scope.spawn(move || {
            loop {
                match heard.blocking_recv().unwrap().message.unwrap() {
                    Message::Rendezvous(v1::RendezvousOffer { phase, attempt, host, port }) => {
                        let rendezvous = v1::Rendezvous { phase, attempt, host, port };
                        // The address of an earlier gang comes first and must be ignored.
                        let earlier = v1::Rendezvous { attempt: 0, ..rendezvous.clone() };
                        for other in relay {
                            other.send(earlier.clone().try_into().unwrap()).unwrap();
                            other.send(rendezvous.clone().try_into().unwrap()).unwrap();
                        }
                    }
                    Message::Gang(result) => return result,
                    _ => {}
                }
            }
        });
        test.context.run_gang(&command.try_into().unwrap()).unwrap();
        listener.join().unwrap()
    })
}

#[test]
fn two_ranks_train_together_and_end_with_the_same_parameters() {
    let (meet_first, first) = mpsc::channel();
    let (meet_second, second) = mpsc::channel();
    let (relay, host) = ([meet_second], tempfile::tempdir().unwrap());
    let host = host.path();
    let results: Vec<v1::GangResult> = std::thread::scope(|scope| {
        let rank0 = scope.spawn(|| sft_in_gang(host, (0, 2), &relay, first));
        let rank1 = scope.spawn(|| sft_in_gang(host, (1, 2), &[], second));
        vec![rank0.join().unwrap(), rank1.join().unwrap()]
    });
    drop(meet_first);
    assert_eq!(results[0].parameters_blake3, results[1].parameters_blake3);
    assert_eq!((results[0].objects.len(), results[1].objects.len()), (4, 0));
    let weights = Object::from(results[0].objects[2].clone());
    assert_eq!(weights.key, "a1/model.safetensors");
    // Rank 0 wrote them for both.
    let written = |rank: &str| host.join(rank).join("objects").join(&weights.blake3);
    assert!(written("rank-0").exists() && !written("rank-1").exists());
    let store = MemoryObjectStore::default();
    let mut cache =
        ArtifactCache::open(&host.join("rank-1"), Box::new(store.clone())).unwrap().shared_in(host);
    assert_eq!((cache.object(&weights).unwrap(), store.downloads()), (written("rank-1"), 0));
}
