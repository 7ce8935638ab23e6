use super::*;
use crate::queue::Supply;

fn at(seconds: u64) -> Now {
    Now { mono: Duration::from_secs(seconds), wall: seconds * 1000 }
}

fn agent(id: &str, devices: usize, sessions: &[&str]) -> v1::AgentRegister {
    let device = |index| v1::Device { id: format!("cpu:{index}"), kind: "cpu".into(), ..Default::default() };
    v1::AgentRegister {
        agent_id: id.into(),
        devices: (0..devices).map(device).collect(),
        session_ids: sessions.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(Liveness::default());
    cluster.register(&agent("a", 2, &[]), 1, at(0));
    cluster.register(&agent("b", 1, &[]), 2, at(0));
    cluster
}

/// Free devices on agents that name no version.
fn find_free(cluster: &Cluster, kind: &str, count: usize) -> Option<Vec<Placement>> {
    cluster.find_free(kind, &Release::default(), count)
}

fn supply(cluster: &Cluster) -> Supply {
    let supplies: Vec<Supply> = cluster.supplies("cpu").into_values().collect();
    let [supply] = supplies[..] else { panic!("{supplies:?}") };
    supply
}

#[test]
fn a_device_holds_one_session() {
    let mut cluster = cluster();
    let placements = find_free(&cluster, "cpu", 3).unwrap();
    assert!(find_free(&cluster, "cpu", 4).is_none() && find_free(&cluster, "cuda", 1).is_none());
    placements
        .iter()
        .enumerate()
        .for_each(|(index, placement)| cluster.assign(placement, &format!("s{index}"), at(0)));
    assert!(find_free(&cluster, "cpu", 1).is_none());
    cluster.release(&placements[1], "another");
    assert!(find_free(&cluster, "cpu", 1).is_none());
    cluster.release(&placements[1], "s1");
    assert_eq!(find_free(&cluster, "cpu", 1).unwrap(), [placements[1].clone()]);
}

fn process(id: &str, instance: &str) -> v1::AgentRegister {
    v1::AgentRegister {
        instance: instance.into(),
        hostname: format!("host-of-{instance}"),
        ..agent(id, 1, &[])
    }
}

#[test]
fn a_name_belongs_to_one_process_while_that_is_heard() {
    let mut cluster = Cluster::new(Liveness::default());
    assert_eq!(cluster.admits(&process("a", "one"), at(0)), Ok(()));
    cluster.register(&process("a", "one"), 1, at(0));
    cluster.heard("a", 1, at(4));
    let taken = cluster.admits(&process("a", "two"), at(5)).unwrap_err();
    assert_eq!((taken.host.as_str(), taken.heard), ("host-of-one", Duration::from_secs(1)));
    assert!(taken.to_string().contains("give --agent-id another value"), "{taken}");
    assert!(cluster.admits(&process("a", ""), at(5)).is_err(), "a process without an id");
    assert_eq!(cluster.admits(&process("a", "one"), at(5)), Ok(()), "the next stream of the same process");
    assert_eq!(cluster.admits(&process("b", "two"), at(5)), Ok(()));
    assert_eq!(cluster.admits(&process("a", "two"), at(10)), Ok(()), "three heartbeats are missing");
    cluster.disconnected("a", 1, at(5));
    assert_eq!(cluster.admits(&process("a", "two"), at(5)), Ok(()), "its stream is closed");
}

#[test]
fn an_agent_that_leaves_takes_no_more_ranks_and_is_not_waited_for() {
    let mut cluster = Cluster::new(Liveness::default());
    cluster.register(&process("a", "one"), 1, at(0));
    let placement = find_free(&cluster, "cpu", 1).unwrap().remove(0);
    cluster.leaving("a", 7, at(1));
    assert!(find_free(&cluster, "cpu", 1).is_some(), "a replaced stream does not count");
    cluster.assign(&placement, "s", at(0));
    assert_eq!(cluster.leaving("a", 1, at(1)), ["s"]);
    assert!(find_free(&cluster, "cpu", 1).is_none());
    cluster.disconnected("a", 1, at(2));
    assert_eq!(cluster.expire(at(2)), [], "its rank may still run");
    cluster.release(&placement, "s");
    assert_eq!(cluster.expire(at(2)), [("a".to_owned(), Vec::new())]);
    cluster.register(&process("a", "two"), 2, at(3));
    assert!(find_free(&cluster, "cpu", 1).is_some(), "the next process of that name is a different one");
}

#[test]
fn agents_with_strikes_come_last_and_then_not_at_all() {
    let mut cluster = Cluster::new(Liveness::default());
    cluster.register(&process("!hole", "x"), 1, at(0));
    cluster.register(&process("good", "y"), 2, at(0));
    let first = |cluster: &Cluster| find_free(cluster, "cpu", 1).unwrap()[0].agent.clone();
    assert_eq!(first(&cluster), "!hole");
    assert_eq!(cluster.strike("!hole", AgentFault::NeverConnected, at(1)), None);
    assert_eq!(first(&cluster), "good", "others are tried first");
    assert_eq!(supply(&cluster), Supply { free: 2, connected: 2, ..Supply::default() });
    assert_eq!(cluster.strike("!hole", AgentFault::NeverConnected, at(2)), Some(Duration::from_secs(30)));
    assert_eq!(supply(&cluster), Supply { free: 1, connected: 1, excluded: 1, releasing: 0 });
    assert!(find_free(&cluster, "cpu", 2).is_none() && cluster.excluded() == 1);
    assert!(cluster.has_alternative("!hole", "cpu") && !cluster.has_alternative("good", "cpu"));
    // A new stream of the same process changes nothing; a new process does.
    cluster.register(&process("!hole", "x"), 3, at(3));
    assert_eq!(cluster.excluded(), 1);
    cluster.disconnected("good", 2, at(4));
    assert_eq!(first(&cluster), "!hole", "without another agent, an excluded one is better than none");
    assert!(!cluster.has_alternative("good", "cpu"));
    cluster.register(&process("!hole", "z"), 4, at(5));
    assert_eq!(cluster.excluded(), 0);
}

#[test]
fn a_closed_stream_has_a_short_grace_and_a_silent_one_the_fence() {
    let mut cluster = cluster();
    let placement = Placement { agent: "a".into(), device: "cpu:0".into() };
    cluster.assign(&placement, "s", at(0));
    cluster.disconnected("a", 1, at(5));
    assert!(cluster.expire(at(14)).is_empty());
    assert_eq!(find_free(&cluster, "cpu", 2), None, "a disconnected agent gets no new work");
    assert_eq!(cluster.expire(at(15)), [("a".to_owned(), vec!["s".to_owned()])]);
    assert!(cluster.heard("b", 2, at(30)));
    assert!(!cluster.heard("b", 1, at(60)), "a replaced connection does not count");
    assert!(cluster.expire(at(94)).is_empty());
    assert_eq!(cluster.expire(at(95)).len(), 1);
}

#[test]
fn an_expected_agent_has_the_whole_fence_period_to_come() {
    let mut cluster = Cluster::new(Liveness::default());
    let placement = Placement { agent: "a".into(), device: "cpu:1".into() };
    cluster.expect(&placement, "cpu", "kept", at(100));
    assert!(cluster.expire(at(164)).is_empty() && find_free(&cluster, "cpu", 1).is_none());
    let registered = cluster.register(&agent("a", 2, &["kept"]), 1, at(164));
    assert_eq!((registered.kept, registered.orphans.len()), (vec!["kept".to_owned()], 0));
    assert_eq!(find_free(&cluster, "cpu", 1).unwrap()[0].device, "cpu:0");
    let mut alone = Cluster::new(Liveness::default());
    alone.expect(&placement, "cpu", "kept", at(100));
    assert_eq!(alone.expire(at(165)), [("a".to_owned(), vec!["kept".to_owned()])]);
}

#[test]
fn each_release_is_a_supply_of_its_own() {
    let of = |id: &str, version: &str, build: &str| v1::AgentRegister {
        version: version.into(),
        build: build.into(),
        instance: format!("process of {id}"),
        ..agent(id, 2, &[])
    };
    let release = |version: &str, build: &str| Release { version: version.into(), build: build.into() };
    let mut cluster = Cluster::new(Liveness::default());
    for (hello, connection) in [(of("a", "1", "x"), 1), (of("b", "1", "x"), 2), (of("c", "1", "y"), 3)] {
        cluster.register(&hello, connection, at(0));
    }
    cluster.expect(&Placement { agent: "d".into(), device: "cpu:0".into() }, "cpu", "kept", at(0));
    let (one, other) = (release("1", "x"), release("1", "y"));
    let counts = |cluster: &Cluster| {
        let found = cluster.supplies("cpu").into_iter();
        found.map(|(name, supply)| (name.cloned(), supply.free, supply.connected)).collect::<Vec<_>>()
    };
    assert_eq!(counts(&cluster), [(None, 0, 1), (Some(one.clone()), 4, 4), (Some(other.clone()), 2, 2)]);
    assert!(cluster.find_free("cpu", &one, 5).is_none() && cluster.find_free("cpu", &other, 3).is_none());
    let found = cluster.find_free("cpu", &other, 2).unwrap();
    assert!(found.iter().all(|placement| placement.agent == "c"), "{found:?}");
    assert_eq!((cluster.release_of("a"), cluster.release_of("d")), (Some(&one), None));
    // The agent's next process has the other build.
    cluster.register(&of("b", "1", "y"), 4, at(1));
    assert_eq!(counts(&cluster)[1..], [(Some(one.clone()), 2, 2), (Some(other), 4, 4)]);
    assert_eq!(one.to_string(), "1 (build x)");
}

#[test]
fn an_agent_that_comes_back_keeps_what_still_runs() {
    let mut cluster = cluster();
    let placements = find_free(&cluster, "cpu", 2).unwrap();
    cluster.assign(&placements[0], "kept", at(0));
    cluster.assign(&placements[1], "died", at(0));
    cluster.disconnected("a", 1, at(1));
    let registered = cluster.register(&agent("a", 2, &["kept", "orphan"]), 3, at(2));
    let expected =
        Registered { lost: vec!["died".into()], orphans: vec!["orphan".into()], kept: vec!["kept".into()] };
    assert_eq!(registered, expected);
    cluster.release(&placements[1], "died");
    assert_eq!(find_free(&cluster, "cpu", 2), None, "the orphan may still hold a device");
    cluster.exited("a", "orphan");
    assert!(find_free(&cluster, "cpu", 2).is_some());
    cluster.disconnected("a", 1, at(3));
    assert!(cluster.expire(at(40)).is_empty(), "the end of a replaced stream does not count");
}

#[test]
fn the_view_shows_what_holds_each_device_and_since_when() {
    let mut cluster = cluster();
    let placement = find_free(&cluster, "cpu", 1).unwrap().remove(0);
    cluster.assign(&placement, "s", at(3));
    cluster.disconnected("a", 1, at(5));
    let agents: Vec<AgentView<'_>> = cluster.agents("").collect();
    let ids: Vec<&str> = agents.iter().map(|agent| agent.id).collect();
    assert_eq!(ids, ["a", "b"]);
    let (first, second) = (&agents[0], &agents[1]);
    assert_eq!(
        (first.link, first.heard, second.link),
        (LinkView::Disconnected, Some(at(5).mono), LinkView::Connected)
    );
    let held = agents.iter().flat_map(|agent| &agent.devices).filter_map(|device| device.holder);
    assert_eq!(held.collect::<Vec<_>>(), [("s", at(3).mono)]);
    assert_eq!(cluster.agents("a").map(|agent| agent.id).collect::<Vec<_>>(), ["b"]);
    assert!(agents.iter().all(|agent| agent.exclusion.is_none()));
    cluster.strike("b", AgentFault::FalseReport, at(6));
    let exclusion = cluster.agents("a").next().unwrap().exclusion.unwrap();
    assert_eq!((exclusion.0, exclusion.1 > at(6).mono), (AgentFault::FalseReport, true));
}

#[test]
fn ranks_are_on_as_few_hosts_as_have_room_and_those_of_a_host_follow_each_other() {
    let mut cluster = Cluster::new(Liveness::default());
    let on = |id: &str, host: &str, devices| v1::AgentRegister {
        hostname: host.into(),
        ..agent(id, devices, &[])
    };
    // The agents of a host need not have consecutive names.
    let agents = [("a", "one", 1), ("b", "two", 4), ("c", "one", 1), ("d", "three", 8), ("e", "", 3)];
    for (connection, (id, host, devices)) in (1..).zip(agents) {
        cluster.register(&on(id, host, devices), connection, at(0));
    }
    let agents = |cluster: &Cluster, count| -> String {
        find_free(cluster, "cpu", count).unwrap().into_iter().map(|placement| placement.agent).collect()
    };
    for (count, expected) in [
        (1, "a"),
        (2, "ac"),
        (3, "eee"),
        (4, "bbbb"),
        (6, "dddddd"),
        (9, "dddddddda"),
        (12, "ddddddddbbbb"),
        (17, "ddddddddbbbbeeeac"),
    ] {
        assert_eq!(agents(&cluster, count), expected, "{count} ranks");
    }
    assert!(find_free(&cluster, "cpu", 18).is_none());
    // Held devices do not count, and a strike puts a host after the others.
    cluster.assign(&Placement { agent: "b".to_owned(), device: "cpu:2".to_owned() }, "s", at(0));
    assert_eq!(agents(&cluster, 3), "bbb");
    cluster.strike("a", AgentFault::NeverConnected, at(1));
    assert_eq!(agents(&cluster, 1), "b");
    assert_eq!(agents(&cluster, 16), "ddddddddbbbeeeac");
}
