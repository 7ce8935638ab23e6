use foil_proto::v1::task::Work as TaskWork;

use super::*;
use crate::job::fixture::{JOB, after, commit_next, event, object, state};
use crate::job::{Cause, CauseClass, ChunkDone};

/// An attempt with a job's state beside it: changes are applied at once, effects kept.
struct Bench {
    state: JobState,
    run: Run,
    now: Now,
    effects: Vec<Effect>,
    ended: Option<Cause>,
}

impl Bench {
    /// All ranks are up and the `phase`-th phase begins.
    fn new(phase: usize) -> Self {
        let state = after(&[], phase);
        let now = Now { mono: Duration::from_secs(100), wall: 0 };
        let run = Run::new(&state, 1, Deadlines::default(), now);
        let mut bench = Self { state, run, now, effects: Vec::new(), ended: None };
        for rank in bench.run.vacancies() {
            bench.seat(rank);
        }
        bench
    }

    fn seat(&mut self, rank: usize) -> String {
        let place = Place { agent: "a".into(), device: format!("cpu:{rank}") };
        let (session, _) = self.run.fill(rank, place, self.now);
        let hello = v1::RankHello {
            session_id: session.clone(),
            job_id: JOB.into(),
            attempt: 1,
            rank: u32::try_from(rank).unwrap(),
        };
        self.feed(Input::Hello { session: session.clone(), hello }).unwrap();
        session
    }

    fn feed(&mut self, input: Input) -> Result<(), Refusal> {
        let decision = self.run.handle(&self.state, input, self.now)?;
        self.take(decision);
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        loop {
            let decision = self.run.advance(&self.state, self.now);
            let moved = !decision.changes.is_empty();
            self.take(decision);
            if !moved || self.ended.is_some() {
                return;
            }
        }
    }

    fn take(&mut self, decision: Decision) {
        for change in decision.changes {
            if let Change::AttemptEnded { cause, .. } = &change {
                self.ended = Some(cause.clone());
            }
            self.state.apply(&event(1, change)).unwrap();
        }
        self.effects.extend(decision.effects);
    }

    fn pass(&mut self, seconds: f64) {
        self.now = self.now.after(Duration::from_secs_f64(seconds));
        self.advance();
    }

    fn session(&self, rank: usize) -> String {
        self.run.slots[rank].process().unwrap().session.clone()
    }

    fn say(&mut self, rank: usize, message: Message) -> Result<(), Refusal> {
        self.feed(Input::Said { session: self.session(rank), message })
    }

    fn exit(&mut self, rank: usize, exit: v1::RankExited) {
        let session_id = self.session(rank);
        self.feed(Input::Exited(v1::RankExited { session_id, ..exit })).unwrap();
    }

    /// The chunk each rank holds, in order of ranks.
    fn held(&self) -> Vec<Option<u32>> {
        let chunk = |slot: &Slot| match slot {
            Slot::Up { busy: Busy::Chunk(chunk), .. } => Some(chunk.chunk),
            _ => None,
        };
        self.run.slots.iter().map(chunk).collect()
    }

    fn lease_of(&self, rank: usize) -> v1::RunChunk {
        let session = self.session(rank);
        let told = |effect: &Effect| match effect {
            Effect::Tell { session: to, command: Command::Chunk(run) } if *to == session => Some(run.clone()),
            _ => None,
        };
        self.effects.iter().rev().find_map(told).expect("the rank holds a lease")
    }

    fn result(&self, rank: usize, content: &str) -> Message {
        let run = self.lease_of(rank);
        Message::Chunk(v1::ChunkResult {
            lease: run.lease,
            phase: run.task.unwrap().phase,
            chunk: run.chunk,
            object: Some(v1::Object { key: run.key, size: 1, blake3: content.into(), path: String::new() }),
            moments: vec![v1::Moments {
                name: "length_mean".into(),
                count: 1,
                sum: 2.0,
                sum_of_squares: 4.0,
            }],
            calibration: None,
            seconds: 2.0,
        })
    }

    fn gang_result(&self, parameters: &str) -> Message {
        let phase = self.state.phase().unwrap().id.clone();
        let key = format!("jobs/{JOB}/phases/{phase}/a1/model.safetensors");
        Message::Gang(v1::GangResult {
            phase,
            attempt: 1,
            objects: vec![object(&key)],
            metrics: vec![],
            parameters_blake3: parameters.into(),
        })
    }

    fn counted(&self, counter: Counter) -> usize {
        self.effects.iter().filter(|effect| **effect == Effect::Count(counter)).count()
    }

    fn failure(&self, class: &str) -> Message {
        Message::Failure(v1::TaskFailure {
            phase: self.state.phase().unwrap().id.clone(),
            class: class.into(),
            message: format!("it is the {class}"),
            advice: "do this".into(),
            ..Default::default()
        })
    }
}

fn index_of(id: &str) -> usize {
    state(&[]).phases.iter().position(|phase| phase.id == id).unwrap()
}

fn killed(signal: i32) -> v1::RankExited {
    v1::RankExited { signal: Some(signal), log_tail: vec!["last words".into()], ..Default::default() }
}

#[test]
fn a_lost_rank_returns_its_lease_and_a_new_process_takes_its_place() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    assert_eq!(bench.held(), [Some(0), Some(1)]);
    bench.feed(Input::StreamEnded { session: bench.session(0) }).unwrap();
    assert_eq!(bench.held(), [None, Some(1)]);
    assert!(bench.run.vacancies().is_empty(), "its device is its own until it is dead");
    bench.say(1, bench.result(1, "h1")).unwrap();
    assert_eq!(bench.held(), [None, Some(0)], "the lost chunk comes first");
    bench.exit(0, killed(9));
    assert_eq!(bench.run.vacancies(), [0]);
    bench.seat(0);
    assert_eq!(bench.held(), [Some(2), Some(0)]);
    assert!(bench.ended.is_none());
}

#[test]
fn a_chunk_that_kills_every_rank_ends_the_job() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    for death in 1..=3 {
        let rank = bench.held().iter().position(|held| *held == Some(0)).unwrap();
        bench.exit(rank, killed(11));
        assert!(bench.ended.is_none());
        if death < 3 {
            bench.seat(rank);
        }
    }
    bench.pass(1.0);
    (0..2)
        .filter(|rank| bench.run.slots[*rank].process().is_some())
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|rank| bench.exit(rank, killed(9)));
    let cause = bench.ended.unwrap();
    assert_eq!(cause.class, CauseClass::NoProgress);
    assert!(cause.message.contains("chunk 0") && cause.message.contains("signal 11"), "{}", cause.message);
    assert_eq!(cause.log_tail, ["last words"]);
}

#[test]
fn a_straggling_chunk_is_leased_again_and_the_first_result_wins() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    for content in ["h1", "h2", "h3"] {
        bench.pass(2.0);
        bench.say(1, bench.result(1, content)).unwrap();
    }
    assert_eq!(bench.held(), [Some(0), Some(0)], "6 s is three times the median of 2 s");
    assert_eq!(bench.counted(Counter::ChunkReleased), 1);
    bench.pass(60.0);
    assert_eq!(bench.counted(Counter::ChunkReleased), 1, "twice is enough");
    let late = bench.result(0, "h0");
    bench.say(1, bench.result(1, "h0")).unwrap();
    assert_eq!(bench.state.phase().unwrap().id, "r01.reward.train", "committed");
    bench.say(0, late).unwrap();
    assert_eq!((bench.counted(Counter::DuplicateChunk), bench.counted(Counter::DeterminismAlarm)), (1, 0));
    assert!(
        bench.effects.iter().any(|effect| matches!(effect, Effect::Tell { command: Command::Gang(_), .. }))
    );
}

#[test]
fn a_duplicate_with_another_hash_raises_the_alarm() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    for content in ["h1", "h2", "h3"] {
        bench.pass(2.0);
        bench.say(1, bench.result(1, content)).unwrap();
    }
    bench.say(1, bench.result(1, "one")).unwrap();
    bench.say(0, bench.result(0, "another")).unwrap();
    assert_eq!(bench.counted(Counter::DeterminismAlarm), 1);
    let committed = bench.state.done("r01.reward.generate").unwrap();
    assert_eq!(committed.artifact.objects[0].blake3, "one");
    assert_eq!(committed.artifact.objects[0].path, "00000");
}

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
    bench.say(1, bench.gang_result("same")).unwrap();
    bench.say(0, bench.gang_result("same")).unwrap();
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
        let cause = bench.ended.clone().unwrap();
        assert_eq!((cause.class.as_str(), cause.rank, cause.advice.as_str()), (class, Some(1), "do this"));
        assert!(!bench.run.is_over(), "the ranks are still to be reaped");
    }
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
fn processes_that_never_connect_are_replaced_and_then_given_up() {
    let mut bench = Bench::new(index_of("r01.policy.score"));
    bench.exit(0, killed(9));
    let mut starts = 0;
    while bench.run.closing.is_none() {
        let place = Place { agent: "a".into(), device: "cpu:0".into() };
        bench.run.fill(0, place, bench.now);
        starts += 1;
        bench.pass(120.0);
        bench.exit(0, killed(9));
        assert!(starts < 20);
    }
    assert_eq!(starts, 5, "three losses per rank without progress");
}

#[test]
fn words_that_do_not_fit_are_refused() {
    let mut bench = Bench::new(index_of("r01.reward.generate"));
    let Message::Chunk(good) = bench.result(0, "h0") else { panic!() };
    let foreign = v1::Object { key: "jobs/other/phases/x/00000/1-1".into(), ..Default::default() };
    for bad in [
        v1::ChunkResult { object: None, ..good.clone() },
        v1::ChunkResult { object: Some(foreign), ..good.clone() },
        v1::ChunkResult { chunk: 77, ..good.clone() },
    ] {
        assert!(matches!(bench.say(0, Message::Chunk(bad)), Err(Refusal::Invalid(_))));
    }
    assert!(matches!(bench.say(0, bench.gang_result("x")), Err(Refusal::Invalid(_))));
    let stale = bench.feed(Input::Said { session: "j1-a0-r0-1".into(), message: bench.result(0, "h0") });
    assert!(matches!(stale, Err(Refusal::Stale { .. })));
    let moments = vec![v1::Moments { name: "reward_mean".into(), sum: f64::NAN, ..Default::default() }];
    bench.say(0, Message::Chunk(v1::ChunkResult { moments, ..good })).unwrap();
    assert_eq!(bench.ended.unwrap().class, CauseClass::Nonfinite);
}

#[test]
fn chunks_are_added_up_in_their_order() {
    let sums = [1e16, 1.0, -1e16, 1.0];
    let metrics = |order: [u32; 4]| {
        let mut state = after(&[], index_of("r01.reward.generate"));
        for chunk in order {
            let moments = vec![v1::Moments {
                name: "x".into(),
                count: 1,
                sum: sums[chunk as usize],
                sum_of_squares: 1.0,
            }];
            let done = ChunkDone {
                phase: "r01.reward.generate".into(),
                chunk,
                object: object(&format!("{chunk}")),
                moments,
                calibration: None,
                seconds: 1.0,
            };
            state.apply(&event(1, Change::ChunkDone(done))).unwrap();
        }
        let now = Now { mono: Duration::ZERO, wall: 0 };
        let mut run = Run::new(&state, 1, Deadlines::default(), now);
        let decision = run.advance(&state, now);
        let Some(Change::PhaseCommitted(done)) = decision.changes.into_iter().next() else { panic!() };
        done.metrics
    };
    assert_eq!(metrics([0, 1, 2, 3]), metrics([3, 1, 0, 2]));
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
