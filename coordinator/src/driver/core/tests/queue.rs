use super::releases::free;
use super::trust::{connected, to_the_end};
use super::*;
use crate::job::CauseClass;
use crate::queue::Policy;

/// No job overtakes a waiting one, and any attempt may be preempted once it has run for a moment.
fn strict() -> Policy {
    let (settling, backfill) = (Duration::ZERO, Duration::ZERO);
    Policy { settling, backfill, preempt_exempt: Duration::from_millis(200), ..Policy::default() }
}

fn simulator(seed: u64, policy: Policy) -> Simulator {
    let mut simulator = Simulator::new(seed);
    simulator.policy = policy;
    simulator.core.set_policy(policy);
    simulator
}

fn job(request_id: &str, ranks: u32, priority: i32) -> Submitted {
    let mut submitted = Submitted { request_id: request_id.into(), ..submitted(&[]) };
    submitted.spec.get_or_insert_default().priority = Some(priority);
    submitted.spec.get_or_insert_default().resources.get_or_insert_default().ranks = Some(ranks);
    submitted
}

fn status(simulator: &Simulator, id: &str) -> &'static str {
    simulator.core.state(id).unwrap().status.name()
}

fn reason(simulator: &Simulator, id: &str) -> String {
    simulator.core.job_view(id).unwrap().waiting.map(|waiting| waiting.reason).unwrap_or_default()
}

/// The jobs in the order of their starts.
fn starts(simulator: &Simulator) -> Vec<&str> {
    let starts = simulator.log.iter().filter(|event| matches!(event.change, Change::AttemptStarted { .. }));
    starts.map(|event| event.job.as_str()).collect()
}

/// Runs until these jobs have ended.
fn all_end(simulator: &mut Simulator, jobs: &[&str]) {
    for _ in 0..200_000 {
        if jobs.iter().all(|id| simulator.core.state(id).unwrap().is_ended()) && simulator.ranks.is_empty() {
            return;
        }
        simulator.step();
    }
    panic!("{:?}", jobs.iter().map(|id| status(simulator, id)).collect::<Vec<_>>());
}

#[test]
fn jobs_wait_their_turn_and_say_why() {
    let mut simulator = simulator(9, strict());
    for (id, ranks) in [("typo", 80), ("large", 4), ("small", 1)] {
        simulator.core.submit(id, job(id, ranks, 0), simulator.now);
    }
    while simulator.state().committed.len() < 4 {
        simulator.step();
    }
    assert_eq!(reason(&simulator, JOB), "");
    let typo = "waiting for 80 cpu devices; the workers connected now have 4";
    assert_eq!(reason(&simulator, "typo"), typo);
    let large = "waiting for 4 cpu devices; 2 of 4 free; second in the queue";
    assert_eq!(reason(&simulator, "large"), large);
    let kept = "waiting for 1 cpu device; 2 of 4 free, kept for a job before this one; third in the queue";
    assert_eq!(reason(&simulator, "small"), kept);
    assert_eq!(simulator.core.job_summary("small").unwrap().waiting.unwrap().position, 3);
    all_end(&mut simulator, &[JOB, "large", "small"]);
    assert_eq!(starts(&simulator), [JOB, "large", "small"]);
    assert_eq!(status(&simulator, "typo"), "queued");
    assert!(simulator.core.cancel("typo", simulator.now));
    assert_eq!(reason(&simulator, "typo"), "", "a canceled job waits for nothing");
    simulator.core.tick(simulator.now);
    assert_eq!(simulator.core.job_view("typo").unwrap().waiting, None);
}

#[test]
fn a_small_job_goes_ahead_of_a_large_one_that_cannot_start() {
    let mut simulator = simulator(9, Policy::default());
    simulator.core.submit("large", job("large", 4, 0), simulator.now);
    simulator.core.submit("small", job("small", 1, 0), simulator.now);
    all_end(&mut simulator, &[JOB, "large", "small"]);
    assert_eq!(starts(&simulator), [JOB, "small", "large"]);
}

#[test]
fn an_urgent_job_takes_the_devices_of_another_which_goes_on_later_with_the_same_artifacts() {
    let expected = outcome(simulate(0, false).state());
    let (mut preemptions, mut checkpoints) = (0, 0);
    for seed in 1..=60 {
        let mut simulator = simulator(seed, strict());
        let faults = seed % 2 == 0;
        for _ in 0..15 * (seed % 20) {
            simulator.step();
        }
        simulator.core.submit("urgent", job("urgent", 4, 100), simulator.now);
        simulator.flush();
        for turn in 0..60_000 {
            simulator.faults = faults && turn < 1_000;
            if turn >= 1_000 && [JOB, "urgent"].iter().all(|id| simulator.core.state(id).unwrap().is_ended())
            {
                break;
            }
            simulator.step();
        }
        for id in [JOB, "urgent"] {
            let state = simulator.core.state(id).unwrap();
            match &state.status {
                JobStatus::Ended { outcome: Outcome::Succeeded, .. } => {}
                JobStatus::Ended { outcome: Outcome::Failed(_), .. } if faults => continue,
                status => panic!("seed {seed}: {id} is {status:?}"),
            }
            let own = |(phase, hashes, metrics): &(String, Vec<String>, Vec<v1::Metric>)| {
                // Keys, and with them the hashes of these made-up objects, name the job.
                (phase.clone(), hashes.len(), metrics.clone())
            };
            let found = outcome(state);
            assert!(found.iter().map(own).eq(expected.iter().map(own)), "seed {seed}: {id}");
            assert!(id != JOB || found == expected, "seed {seed}: {id}");
        }
        preemptions += simulator.state().preemptions;
        checkpoints += check_preemptions(&simulator, seed, faults);
        if !faults {
            assert!(simulator.state().preemptions <= 1, "seed {seed}: it is preempted again and again");
            assert_eq!(simulator.state().failures.len(), 0, "seed {seed}: preemption is not a failure");
        }
    }
    assert!(preemptions > 15 && checkpoints > 1, "{preemptions} preemptions, {checkpoints} checkpoints");
}

/// Checks that a preempted job starts again only after the job that it made room for. Returns the number of
/// checkpoints that were committed.
fn check_preemptions(simulator: &Simulator, seed: u64, faults: bool) -> usize {
    let mut has_made_room = false;
    for event in &simulator.log {
        match (&event.change, event.job.as_str()) {
            (Change::AttemptEnded { cause, .. }, job) if cause.detail.preempted_by.is_some() => {
                assert_eq!(cause.class, CauseClass::Preempted);
                assert_eq!((job, cause.detail.preempted_by.as_deref()), (JOB, Some("urgent")));
                has_made_room = true;
            }
            (Change::AttemptStarted { .. }, "urgent") => has_made_room = false,
            // With faults, the other job may be too large for the remaining devices.
            (Change::AttemptStarted { .. }, _) => {
                assert!(!has_made_room || faults, "seed {seed}: it takes back the devices it gave up");
            }
            _ => {}
        }
    }
    simulator.log.iter().filter(|event| matches!(event.change, Change::CheckpointCommitted(_))).count()
}

#[test]
fn equal_priority_preempts_nothing() {
    let mut simulator = simulator(5, strict());
    while simulator.state().committed.len() < 2 {
        simulator.step();
    }
    simulator.core.submit("equal", job("equal", 4, 0), simulator.now);
    all_end(&mut simulator, &[JOB, "equal"]);
    assert_eq!((simulator.state().preemptions, simulator.state().attempt), (0, 1));
}

/// The failure of a job that has ended.
fn failure(simulator: &Simulator, id: &str) -> v1::JobFailure {
    match &simulator.core.state(id).unwrap().status {
        JobStatus::Ended { outcome: Outcome::Failed(failure), .. } => (**failure).clone(),
        status => panic!("{id} is {status:?}"),
    }
}

#[test]
fn a_job_fails_when_its_timeout_is_over_whichever_coordinator_leads() {
    for restarts in [false, true] {
        let mut simulator = connected(6);
        to_the_end(&mut simulator);
        let mut limited = job("limited", 2, 0);
        limited.spec.get_or_insert_default().timeout = "3s".to_owned();
        simulator.core.submit("limited", limited, simulator.now);
        simulator.flush();
        while simulator.core.state("limited").unwrap().committed.is_empty() {
            simulator.step();
        }
        if restarts {
            simulator.restart();
        }
        assert_eq!(status(&simulator, "limited"), "running");
        all_end(&mut simulator, &["limited"]);
        let failure = failure(&simulator, "limited");
        assert_eq!((failure.class.as_str(), failure.failed_attempts), ("timeout", 1));
        assert!(failure.message.contains("timeout of 3s"), "{failure:?}");
        let state = simulator.core.state("limited").unwrap();
        let JobStatus::Ended { at, .. } = state.status else { panic!() };
        let ran = at - state.times.started.unwrap();
        assert!((3_000..9_000).contains(&ran), "it ran for {ran} ms");
        assert_eq!(free(&simulator), 4);
    }
}

#[test]
fn a_job_whose_timeout_is_over_while_it_waits_ends_too() {
    let mut simulator = connected(6);
    to_the_end(&mut simulator);
    let mut limited = job("limited", 4, 0);
    limited.spec.get_or_insert_default().timeout = "1m".to_owned();
    simulator.core.submit("limited", limited, simulator.now);
    while simulator.core.state("limited").unwrap().committed.is_empty() {
        simulator.step();
    }
    // Two devices are lost, and the attempt cannot continue.
    let connection = simulator.agents.remove("b").flatten().unwrap();
    simulator.core.agent_disconnected("b", connection, simulator.now);
    simulator.ranks.retain(|_, rank| rank.agent != "b");
    simulator.pending.retain(|pending| !matches!(pending, Pending::Exit { agent, .. } if agent == "b"));
    simulator.core.submit("small", job("small", 2, 0), simulator.now);
    all_end(&mut simulator, &["limited", "small"]);
    assert_eq!(failure(&simulator, "limited").class, "timeout");
    assert_eq!(status(&simulator, "small"), "succeeded");
}
