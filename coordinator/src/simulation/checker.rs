//! Checks all output of the coordinators against the log.

use std::collections::{BTreeMap, BTreeSet};

use foil_proto::v1;

use super::URGENT;
use crate::driver::core::Core;
use crate::job::fixture::JOB;
use crate::job::{CauseClass, Change, Event, GarbageSet};

/// Everything that a coordinator has ever released as durable.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// Events by job and revision.
    observed: BTreeMap<(String, u64), Event>,
    /// Everything that any leader has deleted.
    garbage: Vec<GarbageSet>,
    /// Jobs whose submission was confirmed to a client.
    pub(super) submitted: BTreeSet<&'static str>,
    pub(super) preemptions: usize,
}

impl Checker {
    /// Records an event that a leader released.
    pub(super) fn record_event(&mut self, revision: u64, event: &Event) -> Result<(), String> {
        if let Some(key) = named(event).find(|key| self.garbage.iter().any(|garbage| garbage.is_garbage(key)))
        {
            return Err(format!("{} names {key}, which was deleted as garbage", event.change.name()));
        }
        let event = Event { revision: None, ..event.clone() };
        if let Change::AttemptEnded { cause, .. } = &event.change
            && let Some(by) = &cause.detail.preempted_by
        {
            self.preemptions += 1;
            if (event.job.as_str(), by.as_str()) != (JOB, URGENT) {
                return Err(format!("job {by} preempted job {} of no lower priority", event.job));
            }
        }
        match self.observed.insert((event.job.clone(), revision), event.clone()) {
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

    /// The latest released revision of a job.
    pub(super) fn newest(&self, job: &str) -> u64 {
        let of_job = (job.to_owned(), 0)..=(job.to_owned(), u64::MAX);
        self.observed.range(of_job).next_back().map_or(0, |((_, revision), _)| *revision)
    }

    /// Checks that every released event is in the log, unless it was compacted away.
    pub(super) fn check_log(&self, log: &[Event], core: &Core) -> Result<(), String> {
        if self.submitted.iter().any(|job| core.state(job).is_none()) {
            return Err("a job whose submission was confirmed is not in the log".to_owned());
        }
        let mut revisions: BTreeMap<&str, u64> = BTreeMap::new();
        let mut found: BTreeMap<(&str, u64), &Event> = BTreeMap::new();
        for event in log {
            let revision = revisions.entry(&event.job).or_default();
            *revision = event.revision.unwrap_or(*revision + 1);
            found.insert((&event.job, *revision), event);
        }
        for ((job, number), event) in &self.observed {
            let kept = found.get(&(job.as_str(), *number));
            let same = kept.is_some_and(|kept| kept.change == event.change && kept.at == event.at);
            let compacted = kept.is_none()
                && revisions.get(job.as_str()).is_some_and(|last| number < last)
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
