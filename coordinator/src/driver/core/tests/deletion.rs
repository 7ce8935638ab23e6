//! Deletion of jobs and what protects against it.

use super::*;
use crate::job::{GarbageSet, TOMBSTONES_KEPT, Tombstone};

/// An object of the first job that the second one inherits.
const INHERITED: &str = "jobs/j1/phases/r00.sft/a1/tokenizer.json";

/// A job that starts from the first one's policy.
fn child(request: &str) -> Submitted {
    let mut submitted = submitted(&[|spec| {
        let policy = spec.policy.get_or_insert_default();
        (policy.model, policy.init) = (format!("job:{JOB}/policy@1"), "weights".to_owned());
        // More ranks than there are devices, so that the job stays in the queue.
        spec.resources.get_or_insert_default().ranks = Some(64);
    }]);
    submitted.request_id = request.into();
    submitted.policy.objects = vec![object(INHERITED), object("inputs/other")];
    submitted
}

impl Simulator {
    /// Takes the output and returns what is to be deleted.
    fn erasures(&mut self) -> Vec<GarbageSet> {
        let outbox = self.core.drain().unwrap();
        self.log.extend(outbox.events);
        let erase = |action: Action| match action {
            Action::Erase { job, garbage } => (job == JOB).then_some(garbage),
            _ => None,
        };
        outbox.actions.into_iter().filter_map(erase).collect()
    }

    fn replayed(&self, events: Vec<Event>) -> Core {
        let mut core = Core::replay(events, 2, Liveness::default(), Deadlines::default(), issuer()).unwrap();
        core.recover(self.now);
        core
    }
}

fn erases(core: &mut Core) -> bool {
    core.drain().unwrap().actions.iter().any(|action| matches!(action, Action::Erase { .. }))
}

#[test]
fn a_job_is_kept_while_another_starts_from_it_and_what_that_one_inherits_for_longer() {
    let mut simulator = Simulator::new(3);
    let now = simulator.now;
    let running = DeleteError::NotEnded { state: "queued" };
    assert_eq!(simulator.core.delete(JOB, "", now), Err(running));
    let mut simulator = simulate(3, false);
    simulator.core.submit("j2", child("r2"), now);
    let Err(DeleteError::Held(holders)) = simulator.core.delete(JOB, "", now) else { panic!("it is held") };
    let [Holder::Job { id, artifact, state, .. }] = holders.as_slice() else { panic!("{holders:?}") };
    assert_eq!((id.as_str(), artifact.as_str(), *state), ("j2", "policy@1", "queued"));

    simulator.core.cancel("j2", now);
    simulator.core.delete(JOB, "alice", now).unwrap();
    let erasures = simulator.erasures();
    let [garbage] = erasures.as_slice() else { panic!("{erasures:?}") };
    assert!(!garbage.is_garbage(INHERITED), "j2 still refers to it");
    assert!(garbage.is_garbage(&format!("jobs/{JOB}/data/sft.jsonl")));
    assert!(!garbage.is_garbage("jobs/j10/data/sft.jsonl") && !garbage.is_garbage("inputs/other"));
    let core = &simulator.core;
    assert!(core.state(JOB).is_none() && core.position(JOB).is_none());
    assert!(core.is_referenced(INHERITED) && core.is_referenced("inputs/other"));
    assert!(!core.is_referenced("inputs/config.json"), "only the deleted job referred to it");
    assert_eq!(core.tombstone(JOB).map(|tombstone| tombstone.by.as_str()), Some("alice"));

    assert_eq!(core.refusal(&child("r3")), Some(Refusal::OriginDeleted { job: JOB.into() }));
    assert_eq!(core.refusal(&submitted(&[])), Some(Refusal::RequestOfDeleted { job: JOB.into() }));
    assert_eq!(core.refusal(&Submitted { request_id: "r4".into(), ..submitted(&[]) }), None);
    assert_eq!(simulator.core.delete(JOB, "", now), Err(DeleteError::NoJob));

    simulator.core.delete("j2", "", now).unwrap();
    assert!(!simulator.core.is_referenced(INHERITED), "no job refers to it any more");
}

#[test]
fn a_later_leader_goes_on_with_a_deletion_until_the_objects_are_gone() {
    let mut simulator = simulate(4, false);
    simulator.core.delete(JOB, "", simulator.now).unwrap();
    simulator.erasures();
    let snapshot = compact_events(simulator.log.clone());
    assert_eq!(snapshot.len(), 1, "{snapshot:?}");
    for events in [simulator.log.clone(), snapshot] {
        let mut core = simulator.replayed(events);
        assert!(core.state(JOB).is_none() && core.tombstone(JOB).is_some());
        assert!(erases(&mut core));
        assert!(core.find_request("default", "r1").is_none() && core.refusal(&submitted(&[])).is_some());
        core.submit(JOB, submitted(&[]), simulator.now);
        assert!(core.drain().is_err(), "an id is never reused");
    }
    simulator.core.erased(JOB, simulator.now);
    simulator.core.erased(JOB, simulator.now);
    simulator.erasures();
    let snapshot = compact_events(simulator.log.clone());
    for events in [simulator.log.clone(), snapshot.clone(), compact_events(snapshot)] {
        let mut core = simulator.replayed(events);
        assert!(core.tombstone(JOB).is_some() && !erases(&mut core));
    }
}

#[test]
fn pins_protect_a_job_and_survive_a_snapshot() {
    let mut simulator = simulate(5, false);
    let now = simulator.now;
    simulator.core.pin(JOB, "", "alice", now).unwrap();
    simulator.core.pin(JOB, "policy", "bob", now).unwrap();
    simulator.core.pin(JOB, "policy@2", "carol", now).unwrap();
    assert!(matches!(simulator.core.pin(JOB, "policy@9", "", now), Err(PinError::NoArtifact(_))));
    assert_eq!(simulator.core.pin("j9", "", "", now), Err(PinError::NoJob));
    simulator.core.unpin(JOB, "", now).unwrap();
    simulator.core.pin(JOB, "", "dave", now).unwrap();
    let pins = |core: &Core| -> Vec<(String, String)> {
        let pins = core.state(JOB).unwrap().pins.iter();
        pins.map(|(artifact, by)| (artifact.to_owned(), by.to_owned())).collect()
    };
    let expected = [("".into(), "dave".into()), ("policy@2".into(), "bob".into())];
    assert_eq!(pins(&simulator.core), expected, "the first pin of an artifact stays");
    simulator.erasures();
    let snapshot = compact_events(simulator.log.clone());
    let kept = snapshot.iter().filter(|event| matches!(event.change, Change::Pinned(_))).count();
    assert_eq!(kept, 2);
    for events in [simulator.log.clone(), snapshot] {
        let core = simulator.replayed(events);
        assert_eq!((pins(&core), core.state(JOB)), (expected.to_vec(), simulator.core.state(JOB)));
    }

    let Err(DeleteError::Held(holders)) = simulator.core.delete(JOB, "", now) else { panic!("it is pinned") };
    assert_eq!(holders.len(), 2);
    simulator.core.unpin(JOB, "", now).unwrap();
    simulator.core.unpin(JOB, "policy", now).unwrap();
    let Err(PinError::NoArtifact(why)) = simulator.core.unpin(JOB, "policy@2", now) else { panic!("no pin") };
    assert!(why.contains("policy@2 is not pinned") && why.contains("pins on nothing"), "{why}");
    simulator.core.delete(JOB, "", now).unwrap();
}

#[test]
fn the_number_of_tombstones_is_bounded() {
    let deleted = |number: usize| {
        let job = format!("j{number:06}");
        let (request_id, tenant) = (format!("r{number}"), "default".to_owned());
        let tombstone = Tombstone { request_id, tenant, ..Tombstone::default() };
        let first = Event { revision: Some(9), ..Event::new(&job, 1, Change::Deleted(tombstone)) };
        [first, Event::new(&job, 1, Change::Erased)]
    };
    let log: Vec<Event> = (0..TOMBSTONES_KEPT + 3).flat_map(deleted).collect();
    let simulator = Simulator::new(6);
    let snapshot = compact_events(log.clone());
    assert_eq!(snapshot.len(), 2 * TOMBSTONES_KEPT);
    for events in [log, snapshot] {
        let core = simulator.replayed(events);
        assert!(core.tombstone("j000002").is_none() && core.tombstone("j000003").is_some());
        let of = |request: &str| Submitted { request_id: request.into(), ..submitted(&[]) };
        assert!(core.refusal(&of("r2")).is_none() && core.refusal(&of("r3")).is_some());
    }
}

/// A job with a TTL of an hour, canceled immediately.
fn expiring(simulator: &mut Simulator, id: &str, origin: Option<&str>) {
    let mut submitted = submitted(&[|spec| spec.ttl_after_finished = "1h".to_owned()]);
    submitted.request_id = format!("request-{id}");
    if let Some(origin) = origin {
        submitted.spec.get_or_insert_default().policy.get_or_insert_default().model =
            format!("job:{origin}/policy@1");
    }
    simulator.core.submit(id, submitted, simulator.now);
    simulator.core.cancel(id, simulator.now);
    assert!(simulator.core.state(id).unwrap().is_ended());
}

#[test]
fn a_job_is_deleted_when_its_ttl_is_over_and_kept_while_something_holds_it() {
    let mut simulator = Simulator::new(7);
    for (id, origin) in [("free", None), ("pinned", None), ("origin", None), ("heir", Some("origin"))] {
        expiring(&mut simulator, id, origin);
    }
    let started = simulator.now;
    let mut child = child("live");
    child.spec.get_or_insert_default().policy.get_or_insert_default().model =
        "job:origin/policy@1".to_owned();
    simulator.core.submit("live", child, started);
    simulator.core.pin("pinned", "", "alice", started).unwrap();
    simulator.erasures();
    let at = |milliseconds: u64| {
        let later = Duration::from_millis(milliseconds);
        Now { mono: started.mono + later, wall: started.wall + milliseconds }
    };
    let kept = |core: &Core| core.states().skip(1).map(|state| state.id.clone()).collect::<Vec<_>>();
    // TTLs are measured by the log's times, whichever coordinator leads.
    for mut core in
        [simulator.replayed(simulator.log.clone()), simulator.replayed(compact_events(simulator.log.clone()))]
    {
        core.tick(at(3_599_999));
        assert_eq!(kept(&core), ["free", "pinned", "origin", "heir", "live"]);
        let view = core.job_view("pinned").unwrap();
        assert_eq!(view.expires_at, Some(crate::clock::timestamp(started.wall + 3_600_000)));
        assert_eq!(view.kept_by, ["it is pinned by alice (`foil unpin pinned`)"]);
        assert!(
            core.job_view("free").unwrap().kept_by.is_empty()
                && core.job_view(JOB).unwrap().expires_at.is_none()
        );

        core.tick(at(3_605_000));
        assert_eq!(kept(&core), ["pinned", "origin", "live"], "an ended job holds no other");
        assert!(core.job_view("origin").unwrap().kept_by[0].contains("starts from its policy@1"));
        assert_eq!(core.tombstone("free").map(|tombstone| tombstone.by.as_str()), Some(""));
        let erased = core.drain().unwrap().actions;
        assert_eq!(erased.iter().filter(|action| matches!(action, Action::Erase { .. })).count(), 2);

        core.unpin("pinned", "", at(3_606_000)).unwrap();
        core.cancel("live", at(3_606_000));
        core.tick(at(3_609_999));
        assert_eq!(kept(&core).len(), 3, "the check runs every five seconds");
        core.tick(at(3_610_000));
        assert_eq!(kept(&core), ["live"], "it has no TTL of its own");
    }
}

#[test]
fn a_look_deletes_so_many_jobs_at_most() {
    let mut simulator = Simulator::new(8);
    for number in 0..20 {
        expiring(&mut simulator, &format!("e{number:02}"), None);
    }
    let mut now = simulator.now;
    (now.wall, now.mono) = (now.wall + 3_600_000, now.mono + Duration::from_secs(3600));
    for left in [5, 1] {
        simulator.core.tick(now);
        assert_eq!(simulator.core.states().len(), left);
        now.mono += Duration::from_secs(5);
    }
}
