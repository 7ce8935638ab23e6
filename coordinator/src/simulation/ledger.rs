//! What the world was told, held against what the log says.

use std::collections::BTreeMap;

use foil_proto::v1;

use crate::job::{CauseClass, Change, Event, JobState, Sweep};

/// Everything that ever left a coordinator as durable.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By revision of the one job.
    told: BTreeMap<u64, Event>,
    /// All that any leader ever deleted.
    sweeps: Vec<Sweep>,
    /// A client was told that its job is there.
    pub(super) submitted: bool,
}

impl Ledger {
    /// A leader says so.
    pub(super) fn tell(&mut self, revision: u64, event: &Event) -> Result<(), String> {
        if let Some(key) = named(event).find(|key| self.sweeps.iter().any(|sweep| sweep.condemns(key))) {
            return Err(format!("{} names {key}, which was swept", event.change.name()));
        }
        let event = Event { revision: None, ..event.clone() };
        match self.told.insert(revision, event.clone()) {
            Some(before) if before != event => Err(format!(
                "two leaders told of different events at revision {revision}: {} and {}",
                before.change.name(),
                event.change.name()
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn sweep(&mut self, sweep: Sweep) {
        self.sweeps.push(sweep);
    }

    /// The newest revision anybody was told.
    pub(super) fn newest(&self) -> u64 {
        self.told.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    /// Whether all that was told is in the log, or was folded away by what came later.
    pub(super) fn settle(&self, log: &[Event], state: Option<&JobState>) -> Result<(), String> {
        if self.submitted && state.is_none() {
            return Err("a job that its client was told of is not in the log".to_owned());
        }
        let mut revision = 0;
        let mut found: BTreeMap<u64, &Event> = BTreeMap::new();
        for event in log {
            revision = event.revision.unwrap_or(revision + 1);
            found.insert(revision, event);
        }
        for (number, told) in &self.told {
            let kept = found.get(number);
            let same = kept.is_some_and(|kept| kept.change == told.change && kept.at == told.at);
            let folded = kept.is_none()
                && *number < revision
                && matches!(told.change, Change::ChunkDone(_) | Change::RankStarted(_));
            if !same && !folded {
                let name = told.change.name();
                return Err(format!("{name} was told of at revision {number} and is not in the log"));
            }
        }
        Ok(())
    }
}

/// The objects that an event makes part of the job.
fn named(event: &Event) -> impl Iterator<Item = &str> {
    let objects: &[v1::Object] = match &event.change {
        Change::ChunkDone(done) => std::slice::from_ref(&done.object),
        Change::CheckpointCommitted(made) => &made.objects,
        Change::PhaseCommitted(done) => &done.artifact.objects,
        _ => &[],
    };
    objects.iter().map(|object| object.key.as_str())
}

/// The attempt that an event declares dead for want of a sign of life, or of a rank that failed.
pub(super) fn given_up(event: &Event) -> Option<u32> {
    match &event.change {
        Change::AttemptEnded { attempt, cause }
            if !matches!(cause.class, CauseClass::Completed | CauseClass::Cancelled) =>
        {
            Some(*attempt)
        }
        _ => None,
    }
}
