//! Deletion of jobs, and pins that protect from it.
//!
//! A deletion is an event in the log; only then are objects deleted, by whichever leader gets to it, until a
//! second event says that they are gone. What other jobs still name is left: their own deletion or a
//! collection of garbage takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foil_common::spec;

use super::{Action, Core};
use crate::clock::Now;
use crate::job::{
    Change, Event, GarbageSet, JobState, Pin, StateError, Submitted, TOMBSTONES_KEPT, Tombstone,
    find_committed, origins,
};

/// Period of looks for jobs whose `ttl_after_finished` is over.
const EXPIRY_PERIOD: Duration = Duration::from_secs(5);
/// Maximum number of jobs that one look deletes: each deletion lists and deletes objects in the background.
const EXPIRED_AT_ONCE: usize = 16;
/// Number of holders that are named.
const HOLDERS_SHOWN: usize = 5;

/// What prevents a job's deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A job that has not ended starts from one of its artifacts.
    Job { id: String, name: String, state: &'static str, artifact: String },
    /// A pin on an artifact, or on the whole job for an empty name; `by` is empty if unknown.
    Pin { artifact: String, by: String },
}

impl Holder {
    /// The holder of a job, and what releases the job, in one line.
    fn describe(&self, job: &str) -> String {
        match self {
            Self::Job { id, name, state, artifact } => {
                format!("job {id} ({name}), which is {state}, starts from its {artifact}")
            }
            Self::Pin { artifact, by } => {
                let (what, path) = match artifact.as_str() {
                    "" => ("it".to_owned(), job.to_owned()),
                    artifact => (format!("its {artifact}"), format!("{job}/{artifact}")),
                };
                let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
                format!("{what} is pinned{by} (`foil unpin {path}`)")
            }
        }
    }

    /// The first holders of a job, a line each, and the number of the others.
    pub fn describe_all(holders: &[Self], job: &str) -> Vec<String> {
        let shown = holders.iter().take(HOLDERS_SHOWN).map(|holder| holder.describe(job));
        let more = holders.len().saturating_sub(HOLDERS_SHOWN);
        shown.chain((more > 0).then(|| format!("and {more} more"))).collect()
    }
}

/// The reason why a job cannot be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeleteError {
    NoJob,
    NotEnded { state: &'static str },
    Held(Vec<Holder>),
}

/// The reason why nothing can be pinned or unpinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinError {
    NoJob,
    /// There is no such artifact, or no such pin; the message names those there are.
    NoArtifact(String),
}

/// The reason why a job cannot be submitted, as of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request made a job that was deleted since.
    RequestOfDeleted { job: String },
    /// It starts from a job that was deleted since its submission began.
    OriginDeleted { job: String },
}

/// Jobs that were deleted, by id.
#[derive(Debug, Default)]
pub(super) struct Graves {
    jobs: BTreeMap<String, Grave>,
    /// Number of those whose objects are gone.
    erased: usize,
}

#[derive(Debug)]
struct Grave {
    tombstone: Tombstone,
    erased: bool,
}

impl Graves {
    pub(super) fn contains(&self, id: &str) -> bool {
        self.jobs.contains_key(id)
    }

    /// Marks a job whose objects are gone; returns the tombstones of those that are forgotten for it. None if
    /// it was not deleted.
    fn erase(&mut self, id: &str) -> Option<Vec<Tombstone>> {
        let grave = self.jobs.get_mut(id).filter(|grave| !grave.erased)?;
        grave.erased = true;
        self.erased += 1;
        let mut forgotten = Vec::new();
        while self.erased > TOMBSTONES_KEPT {
            let oldest = self.jobs.iter().find(|(_, grave)| grave.erased).map(|(id, _)| id.clone());
            let Some(grave) = oldest.and_then(|id| self.jobs.remove(&id)) else { break };
            self.erased -= 1;
            forgotten.push(grave.tombstone);
        }
        Some(forgotten)
    }
}

impl Core {
    /// Deletes a job that has ended, for a user.
    pub fn delete(&mut self, id: &str, by: &str, now: Now) -> Result<(), DeleteError> {
        self.bury(id, by, "deleted by a user", now)
    }

    /// Deletes jobs whose `ttl_after_finished` is over. Those that are held are tried again.
    pub(super) fn delete_expired(&mut self, now: Now) {
        if self.next_expiry.is_some_and(|next| now.mono < next) {
            return;
        }
        self.next_expiry = Some(now.mono + EXPIRY_PERIOD);
        let states = self.jobs.values().map(|entry| &*entry.state);
        let is_over = |state: &&JobState| state.expires_at().is_some_and(|at| now.wall >= at);
        let expired: Vec<String> = states.filter(is_over).map(|state| state.id.clone()).collect();
        let mut deleted = 0;
        for id in expired {
            deleted += usize::from(self.bury(&id, "", "its ttl_after_finished is over", now).is_ok());
            if deleted >= EXPIRED_AT_ONCE {
                break;
            }
        }
    }

    /// Deletes a job that has ended and that nothing holds.
    fn bury(&mut self, id: &str, by: &str, reason: &str, now: Now) -> Result<(), DeleteError> {
        let state = self.state(id).ok_or(DeleteError::NoJob)?;
        if !state.is_ended() {
            return Err(DeleteError::NotEnded { state: state.status.name() });
        }
        let holders = self.holders(state);
        if !holders.is_empty() {
            return Err(DeleteError::Held(holders));
        }
        let tombstone = Tombstone {
            request_id: state.submitted.request_id.clone(),
            name: state.name().to_owned(),
            tenant: state.submitted.tenant().to_owned(),
            by: by.to_owned(),
        };
        self.commit(id, Change::Deleted(tombstone), reason, now);
        self.erase(id);
        Ok(())
    }

    /// Lines that say who keeps an ended job from being deleted.
    pub(super) fn kept_by(&self, state: &JobState) -> Vec<String> {
        Holder::describe_all(&self.holders(state), &state.id)
    }

    /// Those who keep an ended job from being deleted.
    fn holders(&self, state: &JobState) -> Vec<Holder> {
        let pins = state
            .pins
            .iter()
            .map(|(artifact, by)| Holder::Pin { artifact: artifact.to_owned(), by: by.to_owned() });
        let live = self.jobs.values().map(|entry| &entry.state).filter(|other| !other.is_ended());
        let jobs = live.flat_map(|other| {
            let starts = origins(&other.spec).filter(|(origin, _)| *origin == state.id);
            starts.map(|(_, artifact)| Holder::Job {
                id: other.id.clone(),
                name: other.name().to_owned(),
                state: other.status.name(),
                artifact: artifact.to_owned(),
            })
        });
        pins.chain(jobs).collect()
    }

    /// The tombstone of a job that was deleted.
    pub fn tombstone(&self, id: &str) -> Option<&Tombstone> {
        self.graves.jobs.get(id).map(|grave| &grave.tombstone)
    }

    /// The reason why a submission that was valid when it began is not any more.
    pub fn refusal(&self, submitted: &Submitted) -> Option<Refusal> {
        let request = (submitted.tenant().to_owned(), submitted.request_id.clone());
        if let Some(job) = self.requests.get(&request)
            && self.graves.contains(job)
        {
            return Some(Refusal::RequestOfDeleted { job: job.clone() });
        }
        let job = spec::Job::try_from(submitted.spec.as_deref()?.clone()).ok()?;
        let gone = origins(&job).find(|(origin, _)| self.graves.contains(origin));
        gone.map(|(origin, _)| Refusal::OriginDeleted { job: origin.to_owned() })
    }

    /// Pins an artifact, by its name or as `policy`, `policy@best`, or the whole job for an empty name.
    pub fn pin(&mut self, id: &str, artifact: &str, by: &str, now: Now) -> Result<(), PinError> {
        let state = self.state(id).ok_or(PinError::NoJob)?;
        let artifact = match artifact {
            "" => String::new(),
            wanted => find_committed(state, wanted).map_err(PinError::NoArtifact)?.name.clone(),
        };
        if !state.pins.contains(&artifact) {
            let pin = Pin { artifact, by: by.to_owned() };
            self.commit(id, Change::Pinned(pin), "asked by a user", now);
        }
        Ok(())
    }

    /// Lifts a pin.
    pub fn unpin(&mut self, id: &str, artifact: &str, now: Now) -> Result<(), PinError> {
        let state = self.state(id).ok_or(PinError::NoJob)?;
        let exact = match artifact {
            "" => String::new(),
            wanted => {
                find_committed(state, wanted).map_or_else(|_| wanted.to_owned(), |found| found.name.clone())
            }
        };
        if !state.pins.contains(&exact) {
            return Err(PinError::NoArtifact(no_pin(state, &exact)));
        }
        self.commit(id, Change::Unpinned { artifact: exact }, "asked by a user", now);
        Ok(())
    }

    /// The objects of a deleted job are gone.
    pub fn erased(&mut self, id: &str, now: Now) {
        if self.graves.jobs.get(id).is_some_and(|grave| !grave.erased) {
            self.commit(id, Change::Erased, "its objects are gone", now);
        }
    }

    /// True if a job names the key, other than one below its own prefix.
    pub fn is_referenced(&self, key: &str) -> bool {
        self.references.contains(key)
    }

    /// Goes on with the deletions that a previous leader has begun.
    pub(super) fn erase_deleted(&mut self) {
        let begun: Vec<String> =
            self.graves.jobs.iter().filter(|(_, grave)| !grave.erased).map(|(id, _)| id.clone()).collect();
        for id in begun {
            self.erase(&id);
        }
    }

    fn erase(&mut self, id: &str) {
        let kept: BTreeSet<String> = self.references.below(&format!("jobs/{id}/")).cloned().collect();
        let garbage = GarbageSet::of_deleted_job(id, kept);
        self.outbox.actions.push(Action::Erase { job: id.to_owned(), garbage });
    }

    /// Applies [`Change::Deleted`] or [`Change::Erased`].
    pub(super) fn apply_deletion(&mut self, event: &Event) -> Result<(), StateError> {
        let id = &event.job;
        let unknown = || StateError::Unknown { job: id.clone(), event: event.change.name().to_owned() };
        match &event.change {
            Change::Deleted(tombstone) => {
                match self.jobs.get_mut(id) {
                    Some(entry) => entry.state.apply(event)?,
                    // The first event that a snapshot keeps of the job.
                    None if event.revision.is_some() && !self.graves.contains(id) => {}
                    None => return Err(unknown()),
                }
                if let Some(entry) = self.jobs.remove(id) {
                    self.references.remove(&entry.state);
                    self.order.retain(|other| other != id);
                }
                self.requests.insert(tombstone.request(), id.clone());
                let grave = Grave { tombstone: tombstone.clone(), erased: false };
                self.graves.jobs.insert(id.clone(), grave);
            }
            _ => {
                for forgotten in self.graves.erase(id).ok_or_else(unknown)? {
                    self.requests.remove(&forgotten.request());
                }
            }
        }
        Ok(())
    }
}

fn no_pin(state: &JobState, artifact: &str) -> String {
    let name = |artifact: &str| match artifact {
        "" => "the whole job".to_owned(),
        name => name.to_owned(),
    };
    let pinned: Vec<String> = state.pins.iter().map(|(pinned, _)| name(pinned)).collect();
    let pinned = if pinned.is_empty() { "nothing".to_owned() } else { pinned.join(", ") };
    format!("{} is not pinned; job {} has pins on {pinned}", name(artifact), state.id)
}
