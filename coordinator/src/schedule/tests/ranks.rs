use super::*;
use crate::job::CauseClass;

#[test]
fn the_rank_that_died_is_blamed_and_not_the_one_that_noticed() {
    let mut harness = Harness::new(0);
    harness.report(0, harness.failure(v1::FailureClass::Internal)).unwrap();
    harness.exit(1, killed(11));
    assert!(harness.ended.is_none(), "rank 0 is still alive");
    harness.elapse(1.0);
    harness.exit(0, v1::RankExited { exit_code: Some(1), ..Default::default() });
    let cause = harness.ended.clone().unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Crash, Some(1)));
    assert!(harness.attempt.is_over());
}

#[test]
fn a_failure_that_would_repeat_ends_the_attempt_at_once() {
    for class in [v1::FailureClass::User, v1::FailureClass::Data, v1::FailureClass::Nonfinite] {
        let mut harness = Harness::new(0);
        harness.report(1, harness.failure(class)).unwrap();
        let stops = harness.effects.iter().filter(|effect| matches!(effect, Effect::Stop { .. })).count();
        assert_eq!(stops, 2, "without waiting for anything");
        assert!(harness.ended.is_none(), "the ranks' log tails have not arrived");
        harness.exit(0, v1::RankExited { log_tail: vec!["of another".into()], ..killed(9) });
        harness.exit(1, killed(9));
        let cause = harness.ended.clone().unwrap();
        assert_eq!(
            (cause.class, cause.rank, cause.advice.as_str()),
            (CauseClass::from(class), Some(1), "do this")
        );
        assert_eq!(cause.log_tail, ["last line"]);
        assert_eq!(cause.detail.signal, None, "it was killed on request");
        assert!(harness.attempt.is_over());
    }
}

#[test]
fn processes_that_never_connect_are_replaced_until_the_job_is_given_up() {
    let mut harness = Harness::new(index_of("r01.policy.score"));
    harness.exit(0, killed(9));
    let mut starts = 0;
    while harness.attempt.teardown.is_none() {
        let placement = Placement { agent: "a".into(), device: "cpu:0".into() };
        harness.attempt.start_rank(0, placement, &issuer(), harness.now);
        starts += 1;
        harness.elapse(120.0);
        harness.exit(0, killed(9));
        assert!(starts < 20);
    }
    assert_eq!(starts, 5, "three losses per rank without progress");
}

#[test]
fn a_process_gets_no_longer_to_connect_than_the_hang_timeout() {
    let mut harness = Harness::new(index_of("r01.policy.score"));
    harness.state.spec.resources.hang_timeout = Duration::from_secs(10);
    harness.exit(0, killed(9));
    let placement = Placement { agent: "a".into(), device: "cpu:0".into() };
    let (process, _) = harness.attempt.start_rank(0, placement, &issuer(), harness.now);
    let session = process.session;
    let stopped = |harness: &Harness| {
        let stops =
            |effect: &Effect| matches!(effect, Effect::Stop { session: stopped, .. } if *stopped == session);
        harness.effects.iter().any(stops)
    };
    harness.elapse(9.0);
    assert!(!stopped(&harness));
    harness.elapse(1.0);
    assert!(stopped(&harness));
}

#[test]
fn reports_that_do_not_match_the_lease_are_rejected() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    let Message::Chunk(good) = harness.result(0, "h0") else { panic!() };
    let foreign = v1::Object { key: "jobs/other/phases/x/00000/1-1".into(), ..Default::default() };
    let elsewhere =
        good.object.clone().map(|object| v1::Object { key: format!("{}9", object.key), ..object });
    for bad in [
        v1::ChunkResult { object: elsewhere, ..good.clone() },
        v1::ChunkResult { lease: good.lease + 1, ..good.clone() },
        v1::ChunkResult { chunk: 1, ..good.clone() },
        v1::ChunkResult { object: None, ..good.clone() },
        v1::ChunkResult { object: Some(foreign), ..good.clone() },
        v1::ChunkResult { chunk: 77, ..good.clone() },
    ] {
        assert!(matches!(harness.report(0, Message::Chunk(bad)), Err(ProtocolError::FalseReport(_))));
    }
    assert!(matches!(harness.report(0, harness.gang_result("x")), Err(ProtocolError::Invalid(_))));
    let stale = harness.handle(Input::Report {
        session: "j1-a0-r0-1".into(),
        report: harness.result(0, "h0").try_into().unwrap(),
        flaw: None,
    });
    assert!(matches!(stale, Err(ProtocolError::Stale { .. })));
    let moments = vec![v1::Moments { name: "reward_mean".into(), sum: f64::NAN, ..Default::default() }];
    harness.report(0, Message::Chunk(v1::ChunkResult { moments, ..good })).unwrap();
    harness.exit(0, killed(9));
    harness.exit(1, killed(9));
    assert_eq!(harness.ended.unwrap().class, CauseClass::Nonfinite);
}

#[test]
fn the_last_commit_ends_the_ranks() {
    let mut harness = Harness::new(state(&[]).phases.len() - 1);
    commit_next(&mut harness.state);
    harness.advance();
    assert_eq!(harness.ended.as_ref().unwrap().class, CauseClass::Completed);
    let exits = harness
        .effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Send { command: Command::Exit(_), .. }));
    assert_eq!(exits.count(), 2);
    for rank in [0, 1] {
        harness.exit(rank, v1::RankExited { exit_code: Some(0), ..Default::default() });
    }
    assert!(harness.attempt.is_over());
    assert!(!harness.effects.iter().any(|effect| matches!(effect, Effect::Stop { .. })));
}

fn step(harness: &mut Harness, rank: usize, step: u64) {
    let report = v1::StepReport {
        phase: "r00.sft".into(),
        attempt: 1,
        step,
        steps: 9,
        metrics: Vec::new(),
        ..Default::default()
    };
    harness.report(rank, Message::Step(report)).unwrap();
}

#[test]
fn a_crash_is_reported_with_its_signal_its_step_and_its_log_tail() {
    let mut harness = Harness::new(0);
    step(&mut harness, 1, 4);
    harness.exit(1, killed(11));
    harness.elapse(1.0);
    harness.exit(0, killed(9));
    let cause = harness.ended.clone().unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Crash, Some(1)));
    assert_eq!(cause.message, "rank 1 in r00.sft: its process was ended by SIGSEGV");
    assert_eq!((cause.detail.signal.as_deref(), cause.detail.step), (Some("SIGSEGV"), Some(4)));
    assert_eq!(cause.log_tail, ["last line"]);
}

#[test]
fn a_rank_s_own_failure_report_is_kept() {
    let mut harness = Harness::new(0);
    step(&mut harness, 0, 2);
    let Message::Failure(failure) = harness.failure(v1::FailureClass::Nonfinite) else { panic!() };
    let rows = vec!["human pair 5".to_owned()];
    let said = v1::TaskFailure { step: Some(3), rows: rows.clone(), ..failure };
    harness.report(0, Message::Failure(said)).unwrap();
    harness.exit(0, killed(9));
    harness.exit(1, killed(9));
    let detail = harness.ended.clone().unwrap().detail;
    assert_eq!((detail.step, detail.rows), (Some(3), rows), "the step it happened in, not the one before");
}

#[test]
fn out_of_memory_is_reported_with_sizes() {
    let memory =
        v1::MemoryShortage { place: "host".into(), limit_bytes: Some(3 << 30), ..Default::default() };
    let mut harness = Harness::new(0);
    // The echo of the death arrives before the exit.
    harness.report(0, harness.failure(v1::FailureClass::Internal)).unwrap();
    harness.exit(1, v1::RankExited { out_of_memory: true, memory: Some(memory.clone()), ..killed(9) });
    harness.elapse(1.0);
    harness.exit(0, killed(9));
    let cause = harness.ended.clone().unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::OutOfMemory, Some(1)));
    assert_eq!(cause.detail.memory, Some(memory));
    assert!(
        cause.message.ends_with("SIGKILL, out of host memory: the limit is 3.0 GiB"),
        "{}",
        cause.message
    );
}

#[test]
fn only_the_process_that_was_started_may_say_hello() {
    let mut harness = Harness::new(index_of("r01.policy.score"));
    harness.exit(0, killed(9));
    let placement = Placement { agent: "a".into(), device: "cpu:0".into() };
    let (process, effect) = harness.attempt.start_rank(0, placement, &issuer(), harness.now);
    let Effect::Start { start, .. } = effect else { panic!() };
    assert!(!start.secret.is_empty() && process.proof != start.secret, "the log keeps no secret");
    let session = process.session;
    let hello = |secret: &str| v1::RankHello {
        session_id: session.clone(),
        job_id: JOB.into(),
        attempt: 1,
        rank: 0,
        secret: secret.into(),
        ..Default::default()
    };
    for wrong in ["", "guessed", process.proof.as_str()] {
        let refused = harness.handle(Input::Hello(hello(wrong).try_into().unwrap()));
        assert!(matches!(refused, Err(ProtocolError::Unauthenticated { .. })), "{wrong:?}");
    }
    harness.handle(Input::Hello(hello(&start.secret).try_into().unwrap())).unwrap();
    let vouches = |effect: &Effect| matches!(effect, Effect::RankConnected { agent } if agent == "a");
    assert!(harness.effects.iter().any(vouches));
}

#[test]
fn failed_starts_are_the_agents_fault_while_there_are_others() {
    let mut harness = Harness::new(index_of("r01.policy.score"));
    harness.no_alternative = false;
    harness.exit(0, killed(9));
    for _ in 0..20 {
        let placement = Placement { agent: "hole".into(), device: "cpu:0".into() };
        harness.attempt.start_rank(0, placement, &issuer(), harness.now);
        harness.elapse(120.0);
        harness.exit(0, v1::RankExited::default());
        assert!(harness.attempt.teardown.is_none());
    }
    let blamed = harness.effects.iter().filter(
        |effect| matches!(effect, Effect::AgentFault { placement, fault: AgentFault::NeverConnected, .. } if placement.agent == "hole"),
    );
    assert_eq!(blamed.count(), 20, "once each");
}

fn with_flaw(harness: &mut Harness, rank: usize, message: Message) {
    let session = harness.session(rank);
    let report = message.try_into().unwrap();
    let input = Input::Report { session: session.clone(), report, flaw: Some("it is not there".into()) };
    let Err(ProtocolError::FalseReport(why)) = harness.handle(input) else { panic!("believed") };
    harness.handle(Input::FalseReport { session, why }).unwrap();
}

#[test]
fn a_chunk_with_a_false_report_goes_to_another_rank() {
    let mut harness = Harness::new(index_of("r01.reward.generate"));
    harness.no_alternative = false;
    for _ in 0..20 {
        let rank = harness.held().iter().position(|held| *held == Some(0)).unwrap();
        let forged = harness.result(rank, "forged");
        with_flaw(&mut harness, rank, forged);
        harness.exit(rank, killed(9));
        harness.start(rank);
    }
    assert!(
        harness.ended.is_none() && harness.attempt.teardown.is_none(),
        "none of it counts against the job"
    );
    assert!(!harness.state.chunks.contains_key(&0));
    // Without another agent, the job must end eventually.
    harness.no_alternative = true;
    for _ in 0..3 {
        let rank = harness.held().iter().position(|held| *held == Some(0)).unwrap();
        let forged = harness.result(rank, "forged");
        with_flaw(&mut harness, rank, forged);
        harness.exit(rank, killed(9));
        if harness.attempt.teardown.is_none() {
            harness.start(rank);
        }
    }
    assert!(harness.attempt.teardown.is_some());
}

#[test]
fn a_forged_model_ends_an_attempt_that_does_not_count() {
    for (no_alternative, class) in [(false, CauseClass::Worker), (true, CauseClass::Crash)] {
        let mut harness = Harness::new(0);
        harness.no_alternative = no_alternative;
        harness.report(1, harness.gang_result("same")).unwrap();
        let forged = harness.gang_result("same");
        with_flaw(&mut harness, 0, forged);
        harness.elapse(1.0);
        for rank in [0, 1] {
            harness.exit(rank, killed(9));
        }
        let cause = harness.ended.clone().unwrap();
        assert_eq!((cause.class, cause.rank), (class, Some(0)));
        assert_eq!(cause.class.counts(), no_alternative);
        assert!(cause.message.contains("it is not there"), "{}", cause.message);
        assert!(harness.state.committed.is_empty());
    }
}

#[test]
fn a_failure_class_of_a_later_version_counts_as_a_crash() {
    let mut harness = Harness::new(0);
    let Message::Failure(failure) = harness.failure(v1::FailureClass::Internal) else { panic!() };
    harness.report(0, Message::Failure(v1::TaskFailure { class: 999, ..failure })).unwrap();
    harness.elapse(1.0);
    for rank in [0, 1] {
        harness.exit(rank, v1::RankExited { exit_code: Some(0), ..Default::default() });
    }
    assert_eq!(harness.ended.unwrap().class, CauseClass::Crash);
}
