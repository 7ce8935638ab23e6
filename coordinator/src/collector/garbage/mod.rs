//! Finding and deleting garbage.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use foil_common::storage::Scanned;
use foil_common::storage::object::SIDECAR;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::kind::{INPUTS, JOBS, job_of, job_prefix};
use super::{CollectError, Collector};
use crate::driver::Handle;
use crate::leadership::NotLeading;
use crate::lease::Lease;

/// Number of objects that are condemned, rechecked and deleted together.
const BATCH: usize = 64;
/// Number of concurrent requests to the store.
const PARALLEL: usize = 8;

/// Why an object is garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// An input that no job refers to.
    UnnamedInput,
    /// An object of a deleted job.
    DeletedJob,
    /// An object of a submission that never became a job.
    AbandonedSubmission,
}

/// An object that is garbage; its sidecar goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    pub key: String,
    /// Bytes, its sidecar's included.
    pub bytes: u64,
    pub reason: Reason,
}

/// Everything that was deleted, or would be in a dry run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub objects: u64,
    pub bytes: u64,
}

/// An object with its sidecar.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    bytes: u64,
    modified: u64,
}

impl Found {
    fn add(&mut self, scanned: &Scanned) {
        self.bytes += scanned.size;
        self.modified = self.modified.max(scanned.modified);
    }
}

/// One collection.
struct Run<'a> {
    collector: &'a Collector,
    driver: Handle,
    lease: Lease,
    /// Only inputs and submissions last written before this time are garbage, in milliseconds since the Unix
    /// epoch.
    before: u64,
    dry_run: bool,
}

impl Collector {
    /// Deletes all garbage, sending the deleted objects to `report` in batches. Inputs and submissions
    /// younger than `grace` are kept; remains of deleted jobs are not. A dry run deletes nothing.
    pub async fn collect(
        &self,
        grace: Duration,
        dry_run: bool,
        report: Option<mpsc::Sender<Vec<Garbage>>>,
    ) -> Result<Summary, CollectError> {
        let _turn = self.turn.try_lock().map_err(|_| CollectError::Busy)?;
        let (driver, lease) = self.leadership.leading()?;
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let before = self.clock.now().wall.saturating_sub(grace);
        let run = Run { collector: self, driver, lease, before, dry_run };
        let mut summary = Summary::default();
        for batch in chunks(run.unnamed_inputs().await?) {
            let deleted = run.delete_inputs(batch).await?;
            summary.add(&deleted);
            tell(report.as_ref(), deleted).await?;
        }
        for (job, reason) in run.dead_jobs().await? {
            for batch in chunks(run.objects_of(&job, reason).await?) {
                let deleted = run.delete_of_job(&job, batch).await?;
                summary.add(&deleted);
                tell(report.as_ref(), deleted).await?;
            }
        }
        if !dry_run {
            let Summary { objects, bytes } = summary;
            metrics::counter!("foil_objects_deleted_total").increment(objects);
            tracing::info!(objects, bytes, "garbage collected");
        }
        Ok(summary)
    }
}

impl Summary {
    fn add(&mut self, deleted: &[Garbage]) {
        self.objects += deleted.len() as u64;
        self.bytes += deleted.iter().map(|garbage| garbage.bytes).sum::<u64>();
    }
}

impl Run<'_> {
    /// Old inputs that no job referred to when they were listed.
    async fn unnamed_inputs(&self) -> Result<Vec<Garbage>, CollectError> {
        let store = &self.collector.store;
        let found = store.scan(INPUTS, BTreeMap::<String, Found>::new, |found, scanned| {
            found.entry(own_key(&scanned.key)).or_default().add(&scanned);
        });
        let before = self.before;
        let old = found.await?.into_iter().filter(|(_, found)| found.modified < before);
        let old = old.map(|(key, Found { bytes, .. })| Garbage { key, bytes, reason: Reason::UnnamedInput });
        self.unnamed(old.collect()).await
    }

    /// The objects that no job refers to at present.
    async fn unnamed(&self, objects: Vec<Garbage>) -> Result<Vec<Garbage>, CollectError> {
        let unnamed = self.driver.survey(move |core| {
            let unnamed = |garbage: &Garbage| !core.is_referenced(&garbage.key);
            objects.into_iter().filter(unnamed).collect()
        });
        Ok(unnamed.await?)
    }

    async fn delete_inputs(&self, batch: Vec<Garbage>) -> Result<Vec<Garbage>, CollectError> {
        if self.dry_run {
            return Ok(batch);
        }
        let condemned = self.collector.in_use.condemn(batch.iter().map(|garbage| garbage.key.clone()));
        let free = batch.into_iter().filter(|garbage| condemned.keys.contains(&garbage.key)).collect();
        // No new use can begin from here on, but one may have begun since the listing.
        let free = self.unnamed(free).await?;
        let before = self.before;
        let old: Vec<Garbage> = stream::iter(free)
            .map(|garbage| (self.collector.store.clone(), garbage))
            .map(|(store, garbage)| async move {
                let age = store.object_age(&garbage.key).await?;
                Ok::<_, CollectError>(age.is_some_and(|age| age < before).then_some(garbage))
            })
            .buffer_unordered(PARALLEL)
            .try_filter_map(|old| async move { Ok(old) })
            .try_collect()
            .await?;
        self.delete(&old).await?;
        Ok(old)
    }

    /// Ids that have objects below them but belong to no job.
    async fn dead_jobs(&self) -> Result<Vec<(String, Reason)>, CollectError> {
        let store = &self.collector.store;
        let found = store.scan(JOBS, BTreeMap::<String, Found>::new, |found, scanned| {
            if let Some(job) = job_of(&scanned.key) {
                found.entry(job.to_owned()).or_default().add(&scanned);
            }
        });
        let (found, before) = (found.await?, self.before);
        let dead = self.driver.survey(move |core| {
            let dead = found.into_iter().filter_map(|(id, found)| {
                let reason = match core.tombstone(&id) {
                    Some(_) => Some(Reason::DeletedJob),
                    None => (found.modified < before).then_some(Reason::AbandonedSubmission),
                };
                Some((core.state(&id).is_none().then_some(id)?, reason?))
            });
            dead.collect()
        });
        Ok(dead.await?)
    }

    async fn objects_of(&self, job: &str, reason: Reason) -> Result<Vec<Garbage>, CollectError> {
        let prefix = job_prefix(job);
        let store = &self.collector.store;
        let found =
            store.scan(prefix.trim_end_matches('/'), BTreeMap::<String, Found>::new, |found, scanned| {
                found.entry(own_key(&scanned.key)).or_default().add(&scanned);
            });
        let objects =
            found.await?.into_iter().map(|(key, Found { bytes, .. })| Garbage { key, bytes, reason });
        self.unnamed(objects.collect()).await
    }

    async fn delete_of_job(&self, job: &str, batch: Vec<Garbage>) -> Result<Vec<Garbage>, CollectError> {
        if self.dry_run {
            return Ok(batch);
        }
        // A submission holds its job's prefix.
        let condemned = self.collector.in_use.condemn([job_prefix(job)]);
        let id = job.to_owned();
        let is_job = self.driver.survey(move |core| core.state(&id).is_some()).await?;
        if condemned.keys.is_empty() || is_job {
            return Ok(Vec::new());
        }
        let free = self.unnamed(batch).await?;
        self.delete(&free).await?;
        Ok(free)
    }

    async fn delete(&self, batch: &[Garbage]) -> Result<(), CollectError> {
        let deletions = stream::iter(batch.to_vec())
            .map(|garbage| (self.collector.store.clone(), self.lease.clone(), garbage))
            .map(|(store, lease, Garbage { key, reason, .. })| async move {
                if !lease.is_valid() {
                    return Err(CollectError::from(NotLeading::LeaseExpired));
                }
                tracing::debug!(key, ?reason, "deleting garbage");
                Ok(store.delete_object(&key).await?)
            });
        deletions.buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await.map(drop)
    }
}

async fn tell(report: Option<&mpsc::Sender<Vec<Garbage>>>, batch: Vec<Garbage>) -> Result<(), CollectError> {
    match report {
        Some(report) if !batch.is_empty() => report.send(batch).await.map_err(|_| CollectError::Abandoned),
        _ => Ok(()),
    }
}

/// The key of an object, given its own key or its sidecar's.
fn own_key(key: &str) -> String {
    key.strip_suffix(SIDECAR).unwrap_or(key).to_owned()
}

fn chunks(objects: Vec<Garbage>) -> impl Iterator<Item = Vec<Garbage>> {
    let mut left = objects.into_iter().peekable();
    std::iter::from_fn(move || {
        left.peek()?;
        Some(left.by_ref().take(BATCH).collect())
    })
}
