use super::*;

/// Plays on until the job has ended.
fn to_the_end(world: &mut World) {
    for _ in 0..200_000 {
        if world.state().is_ended() && world.ranks.is_empty() {
            return;
        }
        world.step();
    }
    panic!("the job never ended: {:?}", world.state().life);
}

/// A world that both agents have registered in.
fn connected(seed: u64) -> World {
    let mut world = World::new(seed);
    while world.agents.values().any(Option::is_none) {
        world.step();
    }
    world
}

fn with_ranks(request_id: &str, ranks: u32) -> Submitted {
    let mut submitted = Submitted { request_id: request_id.into(), ..submitted(&[]) };
    submitted.spec.resources.get_or_insert_default().ranks = Some(ranks);
    submitted
}

#[test]
fn an_agent_that_starts_nothing_costs_a_job_no_attempt() {
    let expected = outcome(play(0, false).state());
    for seed in 1..=10 {
        let mut world = connected(seed);
        world.hole = Some("a");
        to_the_end(&mut world);
        assert_eq!(world.state().life.name(), "succeeded", "seed {seed}");
        assert_eq!(outcome(world.state()), expected, "seed {seed}");
        assert_eq!(world.state().attempt, 1, "seed {seed}: nothing counted against it");
    }
}

#[test]
fn an_agent_whose_ranks_lie_commits_nothing_and_harms_nobody() {
    let expected = outcome(play(0, false).state());
    for seed in 1..=10 {
        let mut world = connected(seed);
        world.liar = Some("a");
        to_the_end(&mut world);
        assert_eq!(world.state().life.name(), "succeeded", "seed {seed}");
        assert_eq!(outcome(world.state()), expected, "seed {seed}");
    }
}

#[test]
fn where_there_is_no_other_agent_a_job_does_not_try_for_ever() {
    for (hole, liar) in [(Some("a"), None), (None, Some("a"))] {
        let mut world = World::new(5);
        world.agents.remove("b");
        (world.hole, world.liar) = (hole, liar);
        to_the_end(&mut world);
        let Life::Ended { outcome: Outcome::Failed(failure), .. } = &world.state().life else { panic!() };
        assert_eq!(failure.class, "no_progress", "{failure:?}");
    }
}

#[test]
fn an_agent_speaks_for_its_own_ranks_only() {
    let mut world = World::new(3);
    while world.state().committed.is_empty() {
        world.step();
    }
    let seat = world.state().seats[&0].clone();
    let other = if seat.agent == "a" { "b" } else { "a" };
    let exit = v1::RankExited { session_id: seat.session.clone(), signal: Some(9), ..Default::default() };
    world.core.rank_exited(other, exit.clone(), world.now);
    assert_eq!(world.state().seats[&0], seat, "nothing came of it");
    assert!(world.core.drain().unwrap().events.is_empty());
    world.core.rank_exited(&seat.agent, exit, world.now);
    assert!(!world.core.drain().unwrap().events.is_empty(), "another process takes the seat");
}

#[test]
fn a_job_that_no_worker_has_room_for_keeps_nobody_waiting_and_says_why_it_waits() {
    let mut world = World::new(9);
    world.core.submit("typo", with_ranks("r2", 80), world.now);
    world.core.submit("large", with_ranks("r3", 4), world.now);
    world.core.submit("small", with_ranks("r4", 1), world.now);
    while world.state().committed.len() < 4 {
        world.step();
    }
    let waiting = |world: &World, id: &str| world.core.shown(id).unwrap().waiting.unwrap_or_default();
    assert_eq!(waiting(&world, JOB), v1::JobWait::default());
    assert_eq!(
        waiting(&world, "typo").reason,
        "waiting for 80 cpu devices; the workers connected now have 4"
    );
    assert_eq!(
        waiting(&world, "large").reason,
        "waiting for 4 cpu devices; 2 of 4 free; second in the queue"
    );
    let kept = "waiting for 1 cpu device; 2 of 4 free, kept for a job before this one; third in the queue";
    assert_eq!(waiting(&world, "small").reason, kept);
    assert_eq!(world.core.listed("small").unwrap().waiting.unwrap().position, 3);
    for _ in 0..60_000 {
        world.step();
    }
    let ends = world.log.iter().filter(|event| matches!(event.change, Change::Ended(_)));
    let order: Vec<&str> = ends.map(|event| event.job.as_str()).collect();
    assert_eq!(order, [JOB, "large", "small"]);
    assert_eq!(world.core.state("typo").unwrap().life.name(), "queued");
    assert!(world.core.cancel("typo", world.now));
    assert_eq!(waiting(&world, "typo"), v1::JobWait::default(), "who is asked to stop waits for nothing");
    world.core.tick(world.now);
    assert_eq!(world.core.shown("typo").unwrap().waiting, None);
}

#[test]
fn an_attempt_that_cannot_be_whole_any_more_makes_room_for_others() {
    let mut world = connected(4);
    to_the_end(&mut world);
    world.core.submit("wide", with_ranks("r2", 4), world.now);
    let maps = |world: &World| {
        let state = world.core.state("wide").unwrap();
        state.seats.len() == 4 && state.phase().is_some_and(|phase| !phase.work.is_gang())
    };
    while !maps(&world) {
        world.step();
    }
    // An agent goes for good, with its ranks; those left go on with the map phase, and wait before the gang after it.
    let connection = world.agents.remove("b").flatten().unwrap();
    world.core.agent_disconnected("b", connection, world.now);
    world.ranks.retain(|_, rank| rank.agent != "b");
    world.news.retain(|news| !matches!(news, News::Exit { agent, .. } if agent == "b"));
    world.core.submit("small", with_ranks("r3", 1), world.now);
    for _ in 0..30_000 {
        world.step();
    }
    let state = |id: &str| world.core.state(id).unwrap();
    assert_eq!(state("small").life.name(), "succeeded");
    assert_eq!((state("wide").life.name(), state("wide").failures.len()), ("recovering", 0));
    assert!(world.core.shown("wide").unwrap().waiting.unwrap().reason.contains("connected now have 2"));
}
