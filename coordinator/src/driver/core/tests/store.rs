use super::*;

#[test]
fn watchers_hear_once_that_the_store_is_away_and_once_that_it_is_back() {
    let mut world = World::new(3);
    world.faults = false;
    while world.state().committed.is_empty() {
        world.step();
    }
    let told = |world: &mut World, trouble: Option<&str>| {
        world.core.store_is(trouble.map(str::to_owned), world.now);
        let actions = world.core.drain().unwrap().actions.into_iter();
        let notices = actions.filter_map(|action| match action {
            Action::Publish { event, .. } => match &event.event {
                Some(v1::job_event::Event::Notice(notice)) => Some(notice.text.clone()),
                _ => None,
            },
            _ => None,
        });
        notices.collect::<Vec<_>>()
    };
    assert!(told(&mut world, None).is_empty());
    let away = told(&mut world, Some("503"));
    assert!(away.len() == 1 && away[0].contains("503"), "{away:?}");
    assert!(told(&mut world, Some("503 still")).is_empty());
    let late = world.core.held_up(JOB).map(|(level, text)| (level, text.contains("503 still")));
    assert_eq!(late, Some(("warning", true)), "who watches from now on hears of it too");
    assert_eq!(told(&mut world, None), ["the store takes what is asked again; the job goes on"]);
    assert_eq!(world.core.held_up(JOB), None);
}
