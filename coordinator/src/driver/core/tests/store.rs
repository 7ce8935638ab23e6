use super::*;

#[test]
fn watchers_are_notified_once_of_a_store_outage_and_once_of_its_end() {
    let mut simulator = Simulator::new(3);
    simulator.faults = false;
    while simulator.state().committed.is_empty() {
        simulator.step();
    }
    let notices = |simulator: &mut Simulator, trouble: Option<&str>| {
        simulator.core.set_store_trouble(trouble.map(str::to_owned), simulator.now);
        let actions = simulator.core.drain().unwrap().actions.into_iter();
        let texts = actions.filter_map(|action| match action {
            Action::Publish { event, .. } => match &event.event {
                Some(v1::job_event::Event::Notice(notice)) => Some(notice.text.clone()),
                _ => None,
            },
            _ => None,
        });
        texts.collect::<Vec<_>>()
    };
    assert!(notices(&mut simulator, None).is_empty());
    let outage = notices(&mut simulator, Some("503"));
    assert!(outage.len() == 1 && outage[0].contains("503"), "{outage:?}");
    assert!(notices(&mut simulator, Some("503 still")).is_empty());
    let late = simulator.core.current_notice(JOB).map(|(level, text)| (level, text.contains("503 still")));
    assert_eq!(late, Some(("warning", true)), "later watchers are notified too");
    assert_eq!(notices(&mut simulator, None), ["the store is available again; the job continues"]);
    assert_eq!(simulator.core.current_notice(JOB), None);
}

#[test]
fn agents_that_cannot_register_without_a_valid_lease_are_not_lost() {
    let mut simulator = Simulator::new(5);
    while simulator.state().committed.is_empty() {
        simulator.step();
    }
    let connections: Vec<_> =
        simulator.agents.iter_mut().filter_map(|(agent, at)| Some((agent.clone(), at.take()?))).collect();
    assert!(!connections.is_empty());
    for (agent, connection) in &connections {
        simulator.core.agent_disconnected(agent, *connection, simulator.now);
    }
    let wait = |simulator: &mut Simulator, is_lease_valid: bool, seconds: u64| {
        for _ in 0..seconds {
            simulator.now = simulator.now.after(Duration::from_secs(1));
            if !is_lease_valid {
                simulator.core.restart_reconnect_timeouts(simulator.now);
            }
            simulator.core.tick(simulator.now);
            simulator.flush();
        }
    };
    let reconnect_timeout = Liveness::default().reconnect_timeout.as_secs();
    wait(&mut simulator, false, 10 * reconnect_timeout);
    wait(&mut simulator, true, reconnect_timeout - 1);
    assert_eq!(simulator.core.cluster().counts().agents.get("disconnected"), Some(&connections.len()));
    while !simulator.state().is_ended() {
        simulator.step();
    }
    assert_eq!((simulator.state().status.name(), simulator.state().attempt), ("succeeded", 1));
}
