use foil_proto::v1::task::Work as TaskWork;

use super::*;
use crate::job::CauseClass;

#[test]
fn a_gang_that_waits_replaces_a_rank_with_an_obsolete_chunk() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    for content in ["h1", "h2", "h3", "h0"] {
        harness.elapse(2.0);
        harness.report(1, harness.result(1, content)).unwrap();
    }
    assert_eq!(harness.held(), [Some(0), None]);
    harness.elapse(6.0);
    harness.exit(0, killed(9));
    harness.start(0);
    let ranks: Vec<u32> = harness
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { command: Command::Gang(run), .. } => Some(run.rank),
            _ => None,
        })
        .collect();
    assert_eq!(ranks, [0, 1]);
    assert!(harness.ended.is_none());
}

#[test]
fn a_gang_meets_at_rank_0_and_commits_the_result_that_all_agree_on() {
    let mut harness = Harness::new(0);
    let offer = |harness: &Harness| v1::RendezvousOffer {
        phase: harness.state.phase().unwrap().id.to_string(),
        attempt: 1,
        host: "127.0.0.1".into(),
        port: 7,
    };
    let wrong = harness.report(1, Message::Rendezvous(offer(&harness)));
    assert!(matches!(wrong, Err(ProtocolError::Invalid(_))));
    harness.report(0, Message::Rendezvous(offer(&harness))).unwrap();
    let relayed: Vec<&String> = harness
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { session, command: Command::Rendezvous(_) } => Some(session),
            _ => None,
        })
        .collect();
    assert_eq!(relayed, [&harness.session(1)]);
    let figure = v1::Metric { name: "loss".into(), value: 0.5, se: None };
    for rank in [0, 1] {
        let step = v1::StepReport {
            phase: "r00.sft".into(),
            attempt: 1,
            step: 1,
            steps: 3,
            metrics: vec![figure.clone(), v1::Metric { name: "seconds".into(), value: -1.0, se: None }],
            collective_wait_seconds: Some([-1.0, 0.5][rank]),
            device_memory_peak_bytes: Some(7),
        };
        harness.report(rank, Message::Step(step)).unwrap();
    }
    let steps = harness.effects.iter().filter_map(|effect| match effect {
        Effect::Step(step) => {
            Some((step.work.name(), step.step, step.resumed_after, step.seconds, step.is_finite))
        }
        _ => None,
    });
    // Rank 0 represents all ranks; an impossible time is dropped.
    assert_eq!(steps.collect::<Vec<_>>(), [("sft", 1, 0, None, true)]);
    let usage = harness.effects.iter().filter_map(|effect| match effect {
        Effect::Usage(usage) => Some((usage.rank, usage.collective_wait, usage.device_memory_peak)),
        _ => None,
    });
    let half = Some(Duration::from_millis(500));
    assert_eq!(usage.collect::<Vec<_>>(), [(0, None, Some(7)), (1, half, Some(7))]);
    let progress = harness.attempt.progress(&harness.state).unwrap();
    assert_eq!((progress.done, progress.total), (1, 3));
    let report = harness.gang_result("same");
    harness.report(1, report.clone()).unwrap();
    harness.report(0, report.clone()).unwrap();
    let Some(Effect::WriteSteps { key, body, .. }) = harness.effects.last() else {
        panic!("{:?}", harness.effects)
    };
    assert_eq!(key, "jobs/j1/phases/r00.sft/a1/metrics.jsonl");
    assert_eq!(body.lines().count(), 1);
    assert!(body.contains(r#""loss":0.5"#) && body.contains(r#""step":1"#), "{body}");
    assert_eq!(harness.state.committed.len(), 0, "not before the step metrics are durable");
    let result = Ok(object(&key.clone()));
    harness.handle(Input::StepsWritten { phase: "r00.sft".into(), result }).unwrap();
    let artifact = harness.state.artifact("policy@0").unwrap();
    let files: Vec<&str> = artifact.objects.iter().map(|object| object.path.as_str()).collect();
    assert_eq!(files, ["model.safetensors", "tokenizer.json"], "the tokenizer comes from the start model");
    assert_eq!(harness.held(), [Some(0), Some(1)], "the next phase continues with the same processes");
    // Ranks repeat their reports to a new leader, because they do not know what the previous one received.
    harness.report(1, report).unwrap();
    assert_eq!(harness.held(), [Some(0), Some(1)], "a repeated report costs no rank its slot");
}

#[test]
fn ranks_that_disagree_end_the_attempt() {
    let mut harness = Harness::new(0);
    harness.report(0, harness.gang_result("one")).unwrap();
    harness.report(1, harness.gang_result("another")).unwrap();
    harness.elapse(1.0);
    for rank in [0, 1] {
        harness.exit(rank, killed(9));
    }
    let cause = harness.ended.unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Crash, Some(1)));
    assert!(harness.state.committed.is_empty());
}

#[test]
fn a_hang_blames_the_rank_that_is_behind() {
    let mut harness = Harness::new(0);
    let step = |step| {
        Message::Step(v1::StepReport {
            phase: "r00.sft".into(),
            attempt: 1,
            step,
            steps: 3,
            metrics: vec![],
            ..Default::default()
        })
    };
    harness.elapse(500.0);
    harness.report(0, step(1)).unwrap();
    harness.report(1, step(1)).unwrap();
    harness.elapse(1.0);
    harness.report(0, step(2)).unwrap();
    harness.elapse(599.0);
    assert!(harness.attempt.teardown.is_none());
    harness.elapse(1.0);
    harness.elapse(1.0);
    for rank in [0, 1] {
        harness.exit(rank, killed(9));
    }
    let cause = harness.ended.unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Hang, Some(1)));
}

#[test]
fn slow_loading_is_progress_and_stalled_loading_is_a_hang() {
    let mut harness = Harness::new(0);
    for done in 1..=5 {
        harness.elapse(500.0);
        harness.report(1, at(&harness, 0, done, "bytes loaded")).unwrap();
        harness.report(0, at(&harness, 0, 2 * done, "bytes downloaded")).unwrap();
        assert_eq!(shown(&mut harness), (2 * done, 9000, "bytes downloaded".to_owned()), "rank 0's");
    }
    harness.elapse(500.0);
    harness.report(0, at(&harness, 0, 0, "ranks met")).unwrap();
    harness.elapse(599.0);
    assert!(harness.attempt.teardown.is_none());
    harness.elapse(1.0);
    harness.elapse(1.0);
    for rank in [0, 1] {
        harness.exit(rank, killed(9));
    }
    let cause = harness.ended.unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Hang, Some(1)), "the rank that the others waited for");
}

#[test]
fn slow_uploading_is_progress() {
    let mut harness = Harness::new(0);
    let step = v1::StepReport {
        phase: "r00.sft".into(),
        attempt: 1,
        step: 3,
        steps: 3,
        metrics: vec![],
        ..Default::default()
    };
    harness.report(0, Message::Step(step)).unwrap();
    assert_eq!(shown(&mut harness), (3, 3, "steps".to_owned()));
    harness.report(1, harness.gang_result("same")).unwrap();
    for done in 1..=5 {
        harness.elapse(500.0);
        harness.report(0, at(&harness, 0, done, "bytes uploaded")).unwrap();
        assert_eq!(shown(&mut harness), (done, 9000, "bytes uploaded".to_owned()));
    }
    assert!(harness.attempt.teardown.is_none());
}

#[test]
fn a_gang_task_is_the_same_on_all_ranks() {
    let harness = Harness::new(0);
    let tasks: Vec<&v1::RunGang> = harness
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { command: Command::Gang(run), .. } => Some(run),
            _ => None,
        })
        .collect();
    assert_eq!(tasks.len(), 2);
    assert_eq!(tasks[0].task, tasks[1].task);
    assert!(matches!(tasks[0].task.as_ref().unwrap().work, Some(TaskWork::Sft(_))));
    assert_eq!(tasks[1].key_prefix, "jobs/j1/phases/r00.sft/a1/");
}

#[test]
fn no_rank_is_hung_while_the_store_is_unavailable() {
    let mut harness = Harness::new(0);
    let limit = harness.state.spec.resources.hang_timeout.as_secs_f64();
    for _ in 0..10 {
        harness.attempt.reset_deadlines(harness.now);
        harness.elapse(limit * 0.9);
    }
    assert!(harness.attempt.teardown.is_none());
    harness.elapse(limit * 0.2);
    assert!(harness.attempt.teardown.is_some(), "the store is back, and no rank has made progress since");
}
