use super::*;
use crate::job::{CauseClass, ChunkDone};

#[test]
fn a_lost_rank_returns_its_lease_and_a_new_process_takes_its_place() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    assert_eq!(harness.held(), [Some(0), Some(1)]);
    harness.handle(Input::StreamEnded { session: harness.session(0) }).unwrap();
    assert_eq!(harness.held(), [None, Some(1)]);
    assert!(harness.attempt.vacancies().is_empty(), "it holds its device until it is dead");
    harness.report(1, harness.result(1, "h1")).unwrap();
    assert_eq!(harness.held(), [None, Some(0)], "the lost chunk comes first");
    harness.exit(0, killed(9));
    assert_eq!(harness.attempt.vacancies(), [0]);
    harness.start(0);
    assert_eq!(harness.held(), [Some(2), Some(0)]);
    assert!(harness.ended.is_none());
}

#[test]
fn a_chunk_that_kills_every_rank_ends_the_job() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    for death in 1..=3 {
        let rank = harness.held().iter().position(|held| *held == Some(0)).unwrap();
        harness.exit(rank, killed(11));
        assert!(harness.ended.is_none());
        if death < 3 {
            harness.start(rank);
        }
    }
    harness.elapse(1.0);
    (0..2)
        .filter(|rank| harness.attempt.ranks.slot(*rank).and_then(Slot::process).is_some())
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|rank| harness.exit(rank, killed(9)));
    let cause = harness.ended.unwrap();
    assert_eq!(cause.class, CauseClass::NoProgress);
    assert!(cause.message.contains("chunk 0") && cause.message.contains("SIGSEGV"), "{}", cause.message);
    assert_eq!((cause.detail.last_class, cause.detail.chunk), (Some(CauseClass::Crash), Some(0)));
    assert_eq!(cause.detail.signal.as_deref(), Some("SIGSEGV"));
    assert_eq!(cause.log_tail, ["last line"]);
}

#[test]
fn metrics_over_more_rows_than_the_plan_has_are_rejected() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    let Message::Chunk(honest) = harness.result(0, "h0") else { panic!() };
    let counting = |count| v1::Moments { count, ..honest.moments[0].clone() };
    let calibration = |count| v1::Calibration { count: vec![count; 10], ..Default::default() };
    for wrong in [
        v1::ChunkResult { moments: vec![counting(1 << 40)], ..honest.clone() },
        v1::ChunkResult { calibration: Some(calibration(1 << 40)), ..honest.clone() },
        v1::ChunkResult { calibration: Some(calibration(u64::MAX)), ..honest.clone() },
    ] {
        assert!(matches!(harness.report(0, Message::Chunk(wrong)), Err(ProtocolError::FalseReport(_))));
    }
    assert!(harness.state.chunks.is_empty());
}

#[test]
fn a_chunk_is_not_blamed_for_agents_that_shut_down() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    for _ in 0..20 {
        let rank = harness.held().iter().position(|held| *held == Some(0)).unwrap();
        harness.handle(Input::AgentLeaving { session: harness.session(rank) }).unwrap();
        harness.handle(Input::StreamEnded { session: harness.session(rank) }).unwrap();
        // Its process may be stopped before it exits by itself.
        harness.exit(rank, killed(9));
        harness.start(rank);
    }
    assert!(harness.ended.is_none());
}

#[test]
fn a_straggling_chunk_is_leased_again_and_the_first_result_wins() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    for content in ["h1", "h2", "h3"] {
        harness.elapse(2.0);
        harness.report(1, harness.result(1, content)).unwrap();
    }
    assert_eq!(harness.held(), [Some(0), Some(0)], "6 s is three times the median of 2 s");
    assert_eq!(harness.counted(Counter::ChunkReleased), 1);
    harness.elapse(60.0);
    assert_eq!(harness.counted(Counter::ChunkReleased), 1, "twice is enough");
    let late = harness.result(0, "h0");
    harness.report(1, harness.result(1, "h0")).unwrap();
    assert_eq!(harness.state.phase().unwrap().id, "r01.reward.train", "committed");
    harness.report(0, late).unwrap();
    assert_eq!(
        (harness.counted(Counter::DuplicateChunk), harness.counted(Counter::DeterminismAlarm)),
        (1, 0)
    );
    assert!(
        harness.effects.iter().any(|effect| matches!(effect, Effect::Send { command: Command::Gang(_), .. }))
    );
}

#[test]
fn a_duplicate_with_another_hash_raises_the_alarm() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    for content in ["h1", "h2", "h3"] {
        harness.elapse(2.0);
        harness.report(1, harness.result(1, content)).unwrap();
    }
    harness.report(1, harness.result(1, "one")).unwrap();
    harness.report(0, harness.result(0, "another")).unwrap();
    assert_eq!(harness.counted(Counter::DeterminismAlarm), 1);
    let committed = harness.state.done("r01.reward.generate").unwrap();
    assert_eq!(committed.artifact.objects[0].blake3, "one");
    assert_eq!(committed.artifact.objects[0].path, "00000");
}

#[test]
fn slow_loading_of_a_chunk_is_progress_but_counts_no_rows() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    for done in 1..=5 {
        harness.elapse(500.0);
        harness.report(0, at(&harness, 0, done, "bytes loaded")).unwrap();
        assert_eq!(shown(&mut harness), (done, 9000, "bytes loaded".to_owned()));
    }
    assert_eq!(harness.held()[0], Some(0));
    harness.report(0, at(&harness, 0, 4500, "samples")).unwrap();
    let (done, total, unit) = shown(&mut harness);
    assert!(done > 0 && done < total, "half of a chunk: {done} of {total}");
    assert_eq!(unit, "prompts");
    harness.elapse(600.0);
    assert_eq!(harness.held()[0], None, "silent for the maximum time");
}

#[test]
fn a_phase_whose_generator_and_trainer_disagree_is_committed_with_a_warning() {
    for (distance, warned) in [(1e-6, false), (0.5, true)] {
        let mut harness = Harness::new(index_of("r01.reward.generate"));
        for content in ["h0", "h1", "h2", "h3"] {
            let rank = harness.held().iter().position(Option::is_some).unwrap();
            let Message::Chunk(mut result) = harness.result(rank, content) else { panic!("no chunk") };
            result.moments = vec![v1::Moments {
                name: "drift_mean".into(),
                count: 2,
                sum: 2.0 * distance,
                sum_of_squares: 2.0 * distance * distance,
                max: Some(distance),
                ..Default::default()
            }];
            harness.report(rank, Message::Chunk(result)).unwrap();
        }
        let committed = harness.state.done("r01.reward.generate").unwrap();
        let max = committed.metrics.iter().find(|metric| metric.name == "drift_max").unwrap();
        assert_eq!(max.value, distance);
        let warning = |effect: &Effect| match effect {
            Effect::Notice { level: Level::Warning, text } => text.contains("in r01.reward.generate"),
            _ => false,
        };
        assert_eq!(harness.effects.iter().any(warning), warned);
    }
}

#[test]
fn chunk_sums_do_not_depend_on_the_order_of_completion() {
    let sums = [1e16, 1.0, -1e16, 1.0];
    let metrics = |order: [u32; 4]| {
        let mut state = after(&[], index_of("r01.reward.generate"));
        for chunk in order {
            let moments = vec![v1::Moments {
                name: "x".into(),
                count: 1,
                sum: sums[chunk as usize],
                sum_of_squares: 1.0,
                ..Default::default()
            }];
            let done = ChunkDone {
                phase: "r01.reward.generate".into(),
                chunk,
                object: object(&format!("{chunk}")),
                moments,
                calibration: None,
                seconds: 1.0,
                leased_at: 0,
            };
            state.apply(&event(1, Change::ChunkDone(done))).unwrap();
        }
        let now = Now { mono: Duration::ZERO, wall: 0 };
        let mut attempt = Attempt::new(&state, 1, 1, Deadlines::default(), now);
        let decision = attempt.advance(&state, now);
        let Some(Change::PhaseCommitted(done)) = decision.changes.into_iter().next() else { panic!() };
        done.metrics
    };
    assert_eq!(metrics([0, 1, 2, 3]), metrics([3, 1, 0, 2]));
}
