//! Checks everything that left a coordinator against the log.

use std::collections::BTreeMap;

use foil_proto::v1;

use crate::job::{CauseClass, Change, Event, GarbageSet, JobState};

/// Everything that a coordinator has ever released as durable.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// Events of the one job, by revision.
    observed: BTreeMap<u64, Event>,
    /// Everything that any leader has deleted.
    garbage: Vec<GarbageSet>,
    /// A client was told that its job was submitted.
    pub(super) submitted: bool,
}

impl Checker {
    /// Records an event that a leader released.
    pub(super) fn record_event(&mut self, revision: u64, event: &Event) -> Result<(), String> {
        if let Some(key) = named(event).find(|key| self.garbage.iter().any(|garbage| garbage.is_garbage(key)))
        {
            return Err(format!("{} names {key}, which was deleted as garbage", event.change.name()));
        }
        let event = Event { revision: None, ..event.clone() };
        match self.observed.insert(revision, event.clone()) {
            Some(before) if before != event => Err(format!(
                "two leaders released different events at revision {revision}: {} and {}",
                before.change.name(),
                event.change.name()
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn record_garbage(&mut self, garbage: GarbageSet) {
        self.garbage.push(garbage);
    }

    /// The newest revision that was released.
    pub(super) fn newest(&self) -> u64 {
        self.observed.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    /// Checks that every released event is in the log, unless it was compacted away.
    pub(super) fn check_log(&self, log: &[Event], state: Option<&JobState>) -> Result<(), String> {
        if self.submitted && state.is_none() {
            return Err("a job whose submission was confirmed is not in the log".to_owned());
        }
        let mut revision = 0;
        let mut found: BTreeMap<u64, &Event> = BTreeMap::new();
        for event in log {
            revision = event.revision.unwrap_or(revision + 1);
            found.insert(revision, event);
        }
        for (number, event) in &self.observed {
            let kept = found.get(number);
            let same = kept.is_some_and(|kept| kept.change == event.change && kept.at == event.at);
            let compacted = kept.is_none()
                && *number < revision
                && matches!(event.change, Change::ChunkDone(_) | Change::RankStarted(_));
            if !same && !compacted {
                let name = event.change.name();
                return Err(format!("{name} was released at revision {number} and is not in the log"));
            }
        }
        Ok(())
    }
}

/// Keys of the objects that an event refers to.
fn named(event: &Event) -> impl Iterator<Item = &str> {
    let objects: &[v1::Object] = match &event.change {
        Change::ChunkDone(done) => std::slice::from_ref(&done.object),
        Change::CheckpointCommitted(made) => &made.objects,
        Change::PhaseCommitted(done) => &done.artifact.objects,
        _ => &[],
    };
    objects.iter().map(|object| object.key.as_str())
}

/// The attempt that an event declares failed.
pub(super) fn failed_attempt(event: &Event) -> Option<u32> {
    match &event.change {
        Change::AttemptEnded { attempt, cause }
            if !matches!(cause.class, CauseClass::Completed | CauseClass::Cancelled) =>
        {
            Some(*attempt)
        }
        _ => None,
    }
}
