use super::*;
use crate::job::CauseClass;

#[test]
fn the_rank_that_died_is_blamed_and_not_the_one_that_noticed() {
    let mut bench = Bench::new(0);
    bench.say(0, bench.failure("internal")).unwrap();
    bench.exit(1, killed(11));
    assert!(bench.ended.is_none(), "rank 0 still lives");
    bench.pass(1.0);
    bench.exit(0, v1::RankExited { exit_code: Some(1), ..Default::default() });
    let cause = bench.ended.clone().unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Crash, Some(1)));
    assert!(bench.run.is_over());
}

#[test]
fn what_another_attempt_cannot_mend_ends_it_at_once() {
    for class in ["user", "data", "nonfinite"] {
        let mut bench = Bench::new(0);
        bench.say(1, bench.failure(class)).unwrap();
        let stops = bench.effects.iter().filter(|effect| matches!(effect, Effect::Stop { .. })).count();
        assert_eq!(stops, 2, "nothing is waited for");
        assert!(bench.ended.is_none(), "the ranks' last words are still to come");
        bench.exit(0, v1::RankExited { log_tail: vec!["of another".into()], ..killed(9) });
        bench.exit(1, killed(9));
        let cause = bench.ended.clone().unwrap();
        assert_eq!((cause.class.as_str(), cause.rank, cause.advice.as_str()), (class, Some(1), "do this"));
        assert_eq!(cause.log_tail, ["last words"]);
        assert_eq!(cause.detail.signal, None, "its death was asked for");
        assert!(bench.run.is_over());
    }
}

#[test]
fn processes_that_never_connect_are_replaced_and_then_given_up() {
    let mut bench = Bench::new(index_of("r01.policy.score"));
    bench.exit(0, killed(9));
    let mut starts = 0;
    while bench.run.closing.is_none() {
        let placement = Placement { agent: "a".into(), device: "cpu:0".into() };
        bench.run.fill(0, placement, &issuer(), bench.now);
        starts += 1;
        bench.pass(120.0);
        bench.exit(0, killed(9));
        assert!(starts < 20);
    }
    assert_eq!(starts, 5, "three losses per rank without progress");
}

#[test]
fn a_process_that_never_connects_gets_no_longer_than_a_silent_rank() {
    let mut bench = Bench::new(index_of("r01.policy.score"));
    bench.state.spec.resources.hang_timeout = Duration::from_secs(10);
    bench.exit(0, killed(9));
    let placement = Placement { agent: "a".into(), device: "cpu:0".into() };
    let (process, _) = bench.run.fill(0, placement, &issuer(), bench.now);
    let session = process.session;
    let stopped = |bench: &Bench| {
        let stops =
            |effect: &Effect| matches!(effect, Effect::Stop { session: stopped, .. } if *stopped == session);
        bench.effects.iter().any(stops)
    };
    bench.pass(9.0);
    assert!(!stopped(&bench));
    bench.pass(1.0);
    assert!(stopped(&bench));
}

#[test]
fn words_that_do_not_fit_are_refused() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    let Message::Chunk(good) = bench.result(0, "h0") else { panic!() };
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
        assert!(matches!(bench.say(0, Message::Chunk(bad)), Err(Refusal::Untrue(_))));
    }
    assert!(matches!(bench.say(0, bench.gang_result("x")), Err(Refusal::Invalid(_))));
    let stale =
        bench.feed(Input::Said { session: "j1-a0-r0-1".into(), message: bench.result(0, "h0"), flaw: None });
    assert!(matches!(stale, Err(Refusal::Stale { .. })));
    let moments = vec![v1::Moments { name: "reward_mean".into(), sum: f64::NAN, ..Default::default() }];
    bench.say(0, Message::Chunk(v1::ChunkResult { moments, ..good })).unwrap();
    bench.exit(0, killed(9));
    bench.exit(1, killed(9));
    assert_eq!(bench.ended.unwrap().class, CauseClass::Nonfinite);
}

#[test]
fn the_last_commit_lets_the_ranks_go() {
    let mut bench = Bench::new(state(&[]).phases.len() - 1);
    commit_next(&mut bench.state);
    bench.advance();
    assert_eq!(bench.ended.as_ref().unwrap().class, CauseClass::Completed);
    let exits = bench
        .effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Tell { command: Command::Exit(_), .. }));
    assert_eq!(exits.count(), 2);
    for rank in [0, 1] {
        bench.exit(rank, v1::RankExited { exit_code: Some(0), ..Default::default() });
    }
    assert!(bench.run.is_over());
    assert!(!bench.effects.iter().any(|effect| matches!(effect, Effect::Stop { .. })));
}

fn step(bench: &mut Bench, rank: usize, step: u64) {
    let report = v1::StepReport { phase: "r00.sft".into(), attempt: 1, step, steps: 9, figures: Vec::new() };
    bench.say(rank, Message::Step(report)).unwrap();
}

#[test]
fn a_crash_is_told_with_its_signal_its_step_and_its_last_words() {
    let mut bench = Bench::new(0);
    step(&mut bench, 1, 4);
    bench.exit(1, killed(11));
    bench.pass(1.0);
    bench.exit(0, killed(9));
    let cause = bench.ended.clone().unwrap();
    assert_eq!((cause.class, cause.rank), (CauseClass::Crash, Some(1)));
    assert_eq!(cause.message, "rank 1 in r00.sft: its process was ended by SIGSEGV");
    assert_eq!((cause.detail.signal.as_deref(), cause.detail.step), (Some("SIGSEGV"), Some(4)));
    assert_eq!(cause.log_tail, ["last words"]);
}

#[test]
fn what_a_rank_says_of_its_failure_is_kept_whole() {
    let mut bench = Bench::new(0);
    step(&mut bench, 0, 2);
    let Message::Failure(failure) = bench.failure("nonfinite") else { panic!() };
    let rows = vec!["human pair 5".to_owned()];
    let said = v1::TaskFailure { step: Some(3), rows: rows.clone(), ..failure };
    bench.say(0, Message::Failure(said)).unwrap();
    bench.exit(0, killed(9));
    bench.exit(1, killed(9));
    let detail = bench.ended.clone().unwrap().detail;
    assert_eq!((detail.step, detail.rows), (Some(3), rows), "the step it happened in, not the one before");
}

#[test]
fn memory_that_ran_out_is_told_with_sizes() {
    let memory =
        v1::MemoryShortage { place: "host".into(), limit_bytes: Some(3 << 30), ..Default::default() };
    let mut bench = Bench::new(0);
    // The echo of the death comes first.
    bench.say(0, bench.failure("internal")).unwrap();
    bench.exit(1, v1::RankExited { out_of_memory: true, memory: Some(memory.clone()), ..killed(9) });
    bench.pass(1.0);
    bench.exit(0, killed(9));
    let cause = bench.ended.clone().unwrap();
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
    let mut bench = Bench::new(index_of("r01.policy.score"));
    bench.exit(0, killed(9));
    let placement = Placement { agent: "a".into(), device: "cpu:0".into() };
    let (process, effect) = bench.run.fill(0, placement, &issuer(), bench.now);
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
        let refused = bench.feed(Input::Hello { session: session.clone(), hello: hello(wrong) });
        assert!(matches!(refused, Err(Refusal::Stranger { .. })), "{wrong:?}");
    }
    bench.feed(Input::Hello { session: session.clone(), hello: hello(&start.secret) }).unwrap();
    let vouches = |effect: &Effect| matches!(effect, Effect::Vouch { agent } if agent == "a");
    assert!(bench.effects.iter().any(vouches));
}

#[test]
fn starts_that_never_connect_are_the_agents_fault_while_there_are_others() {
    let mut bench = Bench::new(index_of("r01.policy.score"));
    bench.alone = false;
    bench.exit(0, killed(9));
    for _ in 0..20 {
        let placement = Placement { agent: "hole".into(), device: "cpu:0".into() };
        bench.run.fill(0, placement, &issuer(), bench.now);
        bench.pass(120.0);
        bench.exit(0, v1::RankExited::default());
        assert!(bench.run.closing.is_none());
    }
    let blamed = bench.effects.iter().filter(
        |effect| matches!(effect, Effect::Blame { placement, fault: AgentFault::NeverConnected, .. } if placement.agent == "hole"),
    );
    assert_eq!(blamed.count(), 20, "once each");
}

fn with_flaw(bench: &mut Bench, rank: usize, message: Message) {
    let session = bench.session(rank);
    let input = Input::Said { session: session.clone(), message, flaw: Some("it is not there".into()) };
    let Err(Refusal::Untrue(why)) = bench.feed(input) else { panic!("believed") };
    bench.feed(Input::Misreported { session, why }).unwrap();
}

#[test]
fn a_chunk_that_the_store_does_not_bear_out_goes_to_another_rank() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    bench.alone = false;
    for _ in 0..20 {
        let rank = bench.held().iter().position(|held| *held == Some(0)).unwrap();
        let forged = bench.result(rank, "forged");
        with_flaw(&mut bench, rank, forged);
        bench.exit(rank, killed(9));
        bench.seat(rank);
    }
    assert!(bench.ended.is_none() && bench.run.closing.is_none(), "the job bears none of it");
    assert!(!bench.state.chunks.contains_key(&0));
    // Alone, it must end some time.
    bench.alone = true;
    for _ in 0..3 {
        let rank = bench.held().iter().position(|held| *held == Some(0)).unwrap();
        let forged = bench.result(rank, "forged");
        with_flaw(&mut bench, rank, forged);
        bench.exit(rank, killed(9));
        if bench.run.closing.is_none() {
            bench.seat(rank);
        }
    }
    assert!(bench.run.closing.is_some());
}

#[test]
fn a_forged_model_ends_an_attempt_that_does_not_count() {
    for (alone, class) in [(false, CauseClass::Worker), (true, CauseClass::Crash)] {
        let mut bench = Bench::new(0);
        bench.alone = alone;
        bench.say(1, bench.gang_result("same")).unwrap();
        let forged = bench.gang_result("same");
        with_flaw(&mut bench, 0, forged);
        bench.pass(1.0);
        for rank in [0, 1] {
            bench.exit(rank, killed(9));
        }
        let cause = bench.ended.clone().unwrap();
        assert_eq!((cause.class, cause.rank), (class, Some(0)));
        assert_eq!(cause.class.counts(), alone);
        assert!(cause.message.contains("it is not there"), "{}", cause.message);
        assert!(bench.state.committed.is_empty());
    }
}
