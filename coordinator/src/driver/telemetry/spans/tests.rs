use super::*;
use crate::job::Committed;
use crate::job::fixture::{JOB, object, submitted};

const CLIENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A job of two phases, the first of which is a gang phase.
fn job(traceparent: &str) -> Submitted {
    let mut submitted = submitted(&[]);
    submitted.plan.phases.truncate(2);
    assert!(Phase::try_from(&submitted.plan.phases[0]).unwrap().work.is_gang());
    Submitted { traceparent: traceparent.into(), received_at: 900, ..submitted }
}

fn rank(attempt: u32, rank: u32) -> Change {
    let (agent, device) = (format!("agent-{rank}"), "cpu:0".to_owned());
    Change::RankStarted(RankStarted {
        attempt,
        rank,
        session: format!("s{attempt}{rank}"),
        agent,
        device,
        proof: String::new(),
    })
}

fn committed(phase: &str) -> Change {
    let phase = phase.to_owned();
    let artifact = foil_proto::v1::Artifact::default();
    Change::PhaseCommitted(Box::new(Committed {
        phase,
        artifact,
        metrics: vec![],
        seconds: 1.0,
        steps: None,
    }))
}

fn attempt(attempt: u32) -> Change {
    Change::AttemptStarted { attempt, phase: String::new(), world: 2 }
}

fn attempt_ended(attempt: u32, class: CauseClass) -> Change {
    Change::AttemptEnded { attempt, cause: Cause::new(class, "why it ended") }
}

fn chunk(phase: &str, chunk: u32, leased_at: u64) -> Change {
    let (phase, object) = (phase.to_owned(), object("x"));
    let (moments, calibration) = (vec![], None);
    Change::ChunkDone(ChunkDone { phase, chunk, object, moments, calibration, seconds: 0.5, leased_at })
}

fn history(job: Submitted, changes: Vec<(u64, Change)>) -> Vec<Event> {
    let submitted = (1000, Change::Submitted(Box::new(job)));
    [submitted].into_iter().chain(changes).map(|(at, change)| Event::new(JOB, at, change)).collect()
}

/// A complete job: its first attempt crashes in the first phase, and the second attempt succeeds.
fn whole(traceparent: &str) -> Vec<Event> {
    let job = job(traceparent);
    let [gang, map] = &job.plan.phases[..] else { panic!("two phases") };
    let (gang, map) = (gang.id.to_string(), map.id.to_string());
    let mut changes = vec![(2000, attempt(1)), (2001, rank(1, 0)), (2002, rank(1, 1))];
    changes.extend([(3000, attempt_ended(1, CauseClass::Crash)), (4000, attempt(2))]);
    changes.extend([(4001, rank(2, 0)), (4002, rank(2, 1)), (5000, committed(&gang))]);
    changes.extend([(7000, chunk(&map, 0, 5500)), (7000, chunk(&map, 1, 0)), (7001, committed(&map))]);
    changes
        .extend([(8000, attempt_ended(2, CauseClass::Completed)), (8001, Change::Ended(Outcome::Succeeded))]);
    history(job, changes)
}

fn spans(events: &[Event]) -> Vec<Span> {
    Tracer::replay(events, 0).1
}

#[test]
fn the_spans_of_a_job_are_one_tree() {
    let spans = spans(&whole(""));
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let gang = ["rank", "rank", "attempt"];
    let expected = [
        &["submit"][..],
        &gang,
        &gang,
        &["phase sft", "chunk", "chunk", "attempt"],
        &["phase preferences.generate", "job"],
    ];
    assert_eq!(names, expected.concat());
    for (at, span) in spans.iter().enumerate() {
        assert!(spans[at + 1..].iter().all(|later| later.context != span.context), "{span:?} occurs twice");
        let Some(parent) = span.parent else {
            assert_eq!(span.name, "submit");
            continue;
        };
        let parent = spans.iter().find(|other| other.context == parent).expect("a parent that is sent");
        // A job begins when its submission ends.
        let nests = parent.start <= span.start && span.end <= parent.end;
        assert!(nests || parent.name == "submit" && span.start == parent.end, "{span:?} in {parent:?}");
    }
    let submit = &spans[0];
    assert_eq!((submit.start, submit.end), (900_000_000, 1_000_000_000));
    let crashed = &spans[3];
    assert_eq!((crashed.name.as_str(), crashed.error.as_deref()), ("attempt", Some("why it ended")));
    assert_eq!(spans.iter().filter(|span| span.error.is_some()).count(), 1);
    let starts: Vec<u64> = spans.iter().filter(|span| span.name == "chunk").map(|span| span.start).collect();
    assert_eq!(starts, [5_500_000_000, 6_500_000_000]);
}

#[test]
fn a_leader_that_takes_over_anywhere_goes_on_with_the_same_spans() {
    let events = whole(CLIENT);
    let all = spans(&events);
    assert_eq!(all[0].parent.unwrap().to_string(), CLIENT);
    for taken_over in 1..events.len() {
        let (before, after) = events.split_at(taken_over);
        let (mut tracer, mut seen) = Tracer::replay(before, 0);
        seen.extend(after.iter().flat_map(|event| tracer.event(event)));
        assert_eq!(seen, all);
        let since = before.last().unwrap().at;
        let (_, again) = Tracer::replay(before, since);
        let recent: Vec<Span> =
            spans(before).into_iter().filter(|span| span.end >= since * 1_000_000).collect();
        assert_eq!(again, recent, "spans that ended long ago are not sent again");
    }
}

#[test]
fn a_job_that_ends_early_ends_its_phase() {
    for (class, outcome) in [
        (CauseClass::Cancelled, Outcome::Cancelled),
        (
            CauseClass::Data,
            Outcome::Failed(Box::new(foil_proto::v1::JobFailure {
                class: "data".into(),
                message: "why it ended".into(),
                ..Default::default()
            })),
        ),
    ] {
        let failed = outcome != Outcome::Cancelled;
        let changes =
            vec![(2000, attempt(1)), (3000, attempt_ended(1, class)), (3001, Change::Ended(outcome))];
        let spans = spans(&history(job(""), changes));
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["submit", "attempt", "phase sft", "job"]);
        assert_eq!(spans.iter().skip(1).all(|span| span.error.is_some()), failed);
    }
    let queued =
        history(job(""), vec![(2000, Change::CancelRequested), (2001, Change::Ended(Outcome::Cancelled))]);
    assert_eq!(spans(&queued).iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["submit", "job"]);
}

#[test]
fn a_compacted_log_gives_the_open_spans_of_the_whole_log() {
    let events = whole("");
    for cut in 1..events.len() {
        let (before, after) = events.split_at(cut);
        let compacted = crate::job::compact_events(before.to_vec());
        let rest = |before: &[Event]| {
            let mut tracer = Tracer::replay(before, 0).0;
            after.iter().flat_map(|event| tracer.event(event)).collect::<Vec<_>>()
        };
        assert_eq!(rest(&compacted), rest(before));
    }
}
