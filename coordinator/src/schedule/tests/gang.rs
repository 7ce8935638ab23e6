use foil_proto::v1::task::Work as TaskWork;

use super::*;
use crate::job::CauseClass;

#[test]
fn a_gang_that_waits_replaces_a_rank_with_an_obsolete_chunk() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    for content in ["h1", "h2", "h3", "h0"] {
        bench.pass(2.0);
        bench.say(1, bench.result(1, content)).unwrap();
    }
    assert_eq!(bench.held(), [Some(0), None]);
    bench.pass(6.0);
    bench.exit(0, killed(9));
    bench.seat(0);
    let ranks: Vec<u32> = bench
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Tell { command: Command::Gang(run), .. } => Some(run.rank),
            _ => None,
        })
        .collect();
    assert_eq!(ranks, [0, 1]);
    assert!(bench.ended.is_none());
}

#[test]
fn a_gang_meets_at_rank_0_and_commits_what_all_agree_on() {
    let mut bench = Bench::new(0);
    let offer = |bench: &Bench| v1::RendezvousOffer {
        phase: bench.state.phase().unwrap().id.clone(),
        attempt: 1,
        host: "127.0.0.1".into(),
        port: 7,
    };
    let wrong = bench.say(1, Message::Rendezvous(offer(&bench)));
    assert!(matches!(wrong, Err(Refusal::Invalid(_))));
    bench.say(0, Message::Rendezvous(offer(&bench))).unwrap();
    let relayed: Vec<&String> = bench
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Tell { session, command: Command::Rendezvous(_) } => Some(session),
            _ => None,
        })
        .collect();
    assert_eq!(relayed, [&bench.session(1)]);
    let figure = v1::Metric { name: "loss".into(), value: 0.5, se: None };
    for rank in [0, 1] {
        let step = v1::StepReport {
            phase: "r00.sft".into(),
            attempt: 1,
            step: 1,
            steps: 3,
            figures: vec![figure.clone()],
        };
        bench.say(rank, Message::Step(step)).unwrap();
    }
    let progress = bench.run.progress(&bench.state).unwrap();
    assert_eq!((progress.done, progress.total), (1, 3));
    let told = bench.gang_result("same");
    bench.say(1, told.clone()).unwrap();
    bench.say(0, told.clone()).unwrap();
    let Some(Effect::WriteSteps { key, body, .. }) = bench.effects.last() else {
        panic!("{:?}", bench.effects)
    };
    assert_eq!(key, "jobs/j1/phases/r00.sft/a1/metrics.jsonl");
    assert_eq!(body.lines().count(), 1);
    assert!(body.contains(r#""loss":0.5"#) && body.contains(r#""step":1"#), "{body}");
    assert_eq!(bench.state.committed.len(), 0, "not before the step figures are durable");
    let result = Ok(object(&key.clone()));
    bench.feed(Input::StepsWritten { phase: "r00.sft".into(), result }).unwrap();
    let artifact = bench.state.artifact("policy@0").unwrap();
    let files: Vec<&str> = artifact.objects.iter().map(|object| object.path.as_str()).collect();
    assert_eq!(files, ["model.safetensors", "tokenizer.json"], "the tokenizer comes from the start model");
    assert_eq!(bench.held(), [Some(0), Some(1)], "the next phase goes on with the same processes");
    // As ranks do that find a new leader and do not know what the one before it heard.
    bench.say(1, told).unwrap();
    assert_eq!(bench.held(), [Some(0), Some(1)], "what is told again costs nobody his place");
}

#[test]
fn ranks_that_disagree_end_the_attempt() {
    let mut bench = Bench::new(0);
    bench.say(0, bench.gang_result("one")).unwrap();
    bench.say(1, bench.gang_result("another")).unwrap();
    bench.pass(1.0);
    for rank in [0, 1] {
        bench.exit(rank, killed(9));
    }
    let cause = bench.ended.unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Crash, Some(1)));
    assert!(bench.state.committed.is_empty());
}

#[test]
fn a_hang_names_the_rank_that_is_behind() {
    let mut bench = Bench::new(0);
    let step = |step| {
        Message::Step(v1::StepReport { phase: "r00.sft".into(), attempt: 1, step, steps: 3, figures: vec![] })
    };
    bench.pass(500.0);
    bench.say(0, step(1)).unwrap();
    bench.say(1, step(1)).unwrap();
    bench.pass(1.0);
    bench.say(0, step(2)).unwrap();
    bench.pass(599.0);
    assert!(bench.run.closing.is_none());
    bench.pass(1.0);
    bench.pass(1.0);
    for rank in [0, 1] {
        bench.exit(rank, killed(9));
    }
    let cause = bench.ended.unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Hang, Some(1)));
}

#[test]
fn a_gang_that_loads_slowly_moves_and_one_that_loads_no_more_hangs() {
    let mut bench = Bench::new(0);
    for done in 1..=5 {
        bench.pass(500.0);
        bench.say(1, at(&bench, 0, done, "bytes loaded")).unwrap();
        bench.say(0, at(&bench, 0, 2 * done, "bytes downloaded")).unwrap();
        assert_eq!(shown(&mut bench), (2 * done, 9000, "bytes downloaded".to_owned()), "rank 0's");
    }
    bench.pass(500.0);
    bench.say(0, at(&bench, 0, 0, "ranks met")).unwrap();
    bench.pass(599.0);
    assert!(bench.run.closing.is_none());
    bench.pass(1.0);
    bench.pass(1.0);
    for rank in [0, 1] {
        bench.exit(rank, killed(9));
    }
    let cause = bench.ended.unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Hang, Some(1)), "the one that was waited for");
}

#[test]
fn a_gang_that_uploads_slowly_moves() {
    let mut bench = Bench::new(0);
    let step = v1::StepReport { phase: "r00.sft".into(), attempt: 1, step: 3, steps: 3, figures: vec![] };
    bench.say(0, Message::Step(step)).unwrap();
    assert_eq!(shown(&mut bench), (3, 3, "steps".to_owned()));
    bench.say(1, bench.gang_result("same")).unwrap();
    for done in 1..=5 {
        bench.pass(500.0);
        bench.say(0, at(&bench, 0, done, "bytes uploaded")).unwrap();
        assert_eq!(shown(&mut bench), (done, 9000, "bytes uploaded".to_owned()));
    }
    assert!(bench.run.closing.is_none());
}

#[test]
fn a_gang_task_is_the_same_on_all_ranks() {
    let bench = Bench::new(0);
    let tasks: Vec<&v1::RunGang> = bench
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Tell { command: Command::Gang(run), .. } => Some(run),
            _ => None,
        })
        .collect();
    assert_eq!(tasks.len(), 2);
    assert_eq!(tasks[0].task, tasks[1].task);
    assert!(matches!(tasks[0].task.as_ref().unwrap().work, Some(TaskWork::Sft(_))));
    assert_eq!(tasks[1].key_prefix, "jobs/j1/phases/r00.sft/a1/");
}

#[test]
fn nobody_hangs_while_the_store_is_away() {
    let mut bench = Bench::new(0);
    let limit = bench.state.spec.resources.hang_timeout.as_secs_f64();
    for _ in 0..10 {
        bench.run.excuse(bench.now);
        bench.pass(limit * 0.9);
    }
    assert!(bench.run.closing.is_none());
    bench.pass(limit * 0.2);
    assert!(bench.run.closing.is_some(), "it is back, and nobody has moved since");
}
