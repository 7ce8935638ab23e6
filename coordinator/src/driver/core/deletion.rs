//! Deletion of jobs, and pins that protect against it.
//!
//! A deletion is an event in the log. Only after it are objects deleted, by whichever leader gets to it,
//! until a second event records that this is done. Objects that other jobs still refer to are kept; the
//! deletion of those jobs or a garbage collection removes them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foil_common::spec;

use super::{Action, Core};
use crate::clock::Now;
use crate::job::{
    Change, Event, GarbageSet, JobState, Pin, StateError, Submitted, TOMBSTONES_KEPT, Tombstone,
    find_committed, origins,
};

/// Interval between checks for jobs whose `ttl_after_finished` has passed.
const EXPIRY_PERIOD: Duration = Duration::from_secs(5);
/// Maximum number of jobs deleted per check: each deletion lists and deletes objects in the background.
const EXPIRED_AT_ONCE: usize = 16;
/// Maximum number of holders listed.
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
    /// Describes the holder of a job, and how to release the job, in one line.
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

    /// Describes the first holders of a job, one per line, and counts the others.
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

/// The reason why an artifact or job cannot be pinned or unpinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinError {
    NoJob,
    /// There is no such artifact or pin; the message lists the existing ones.
    NoArtifact(String),
}

/// The reason why a job that was valid when its submission began cannot be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request created a job that has since been deleted.
    RequestOfDeleted { job: String },
    /// The job starts from a job that was deleted after its submission began.
    OriginDeleted { job: String },
}

/// Jobs that were deleted, by id.
#[derive(Debug, Default)]
pub(super) struct Graves {
    jobs: BTreeMap<String, Grave>,
    /// Number of jobs whose objects have been deleted.
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

    /// Marks a job whose objects have been deleted; returns the tombstones that are forgotten in exchange.
    /// None if the job was not deleted, or was marked before.
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
    /// Deletes a job that has ended, on behalf of a user.
    pub fn delete(&mut self, id: &str, by: &str, now: Now) -> Result<(), DeleteError> {
        self.bury(id, by, "deleted by a user", now)
    }

    /// Deletes jobs whose `ttl_after_finished` has passed. Jobs that are held are retried.
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

    /// Describes what keeps an ended job from being deleted, one line each.
    pub(super) fn kept_by(&self, state: &JobState) -> Vec<String> {
        Holder::describe_all(&self.holders(state), &state.id)
    }

    /// What keeps an ended job from being deleted.
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

    /// The reason why a submission that was valid when it began is invalid by now.
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

    /// Pins an artifact, named in full or as `policy` or `policy@best`, or the whole job for an empty name.
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

    /// Removes a pin.
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

    /// Records that the objects of a deleted job have been deleted.
    pub fn erased(&mut self, id: &str, now: Now) {
        if self.graves.jobs.get(id).is_some_and(|grave| !grave.erased) {
            self.commit(id, Change::Erased, "its objects are gone", now);
        }
    }

    /// True if a job refers to the key from outside the key's own job.
    pub fn is_referenced(&self, key: &str) -> bool {
        self.references.contains(key)
    }

    /// Continues the deletions that a previous leader began.
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
                    // The first event of the job in a snapshot.
                    None if event.revision.is_some() && !self.graves.contains(id) => {}
                    None => return Err(unknown()),
                }
                if let Some(entry) = self.jobs.shift_remove(id) {
                    self.references.remove(&entry.state);
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
