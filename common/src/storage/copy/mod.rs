//! Copies a store, even one that a running service writes to: for backups, and to move to another store.
//!
//! The log determines what exists, and a record names only objects that were in the store before it. So
//! objects are copied first, then a state of the log is read, then the objects that were added up to that
//! state are copied, and the log is written last. The target has no log, and nothing can lead it, until
//! everything that the log names is there. What the source's service deletes during the copy is also garbage
//! in that state, except for jobs that are deleted and checkpoints that are superseded while the copy runs.
//!
//! Both passes walk source and target side by side in key order, so that existing objects are recognized
//! without a request for each and without a list of them: [`listing`] holds one page of keys in memory,
//! however large a store is. The second listing of the source finds what was added during the first. The
//! log's live part, which every coordinator reads as a whole, is in memory from its reading to its writing.

mod listing;
mod pairs;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use self::pairs::{Found, Pairs};
use super::log::{self, LogError};
use super::object::Digest;
use super::{Put, Store, StoreError};

/// Number of objects copied concurrently.
const PARALLEL: usize = 8;
/// Size limit of an object without a sidecar. A larger one is left over from an interrupted write.
const MAX_PLAIN_BYTES: u64 = 1 << 20;

/// The result of a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Objects of the target that are also in the source, excluding the log.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Number of them that were already present, from an interrupted copy; approximate if the source is
    /// written to.
    pub present: u64,
    /// Number of records of the log and of its snapshots.
    pub records: u64,
    /// Number of the log's last record.
    pub last_record: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(
        "{location} holds a log already, of a service or of an earlier copy: copy to an empty place, or remove that one \
         first"
    )]
    Occupied { location: String },
    #[error(
        "{location} holds no log, so it is no store of a coordinator; check its address, with the prefix"
    )]
    NoLog { location: String },
    #[error(
        "{location} lists {key} after {last}, and a copy relies on the order of keys; copy it with the tools of its \
         provider, while no coordinator runs on it"
    )]
    Disorder { location: String, last: String, key: String },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies a store's log, and its objects below `prefixes`, to a place without a log. Each object is verified
/// against its hash on the way. An interrupted copy may be repeated, and resumes.
///
/// `progress` is called with each object's size once it is in the target.
pub async fn copy(
    from: &Store,
    to: &Store,
    prefixes: &[&str],
    progress: impl Fn(u64) + Sync,
) -> Result<Copied, CopyError> {
    to.probe().await?;
    if log::last(to).await?.is_some() {
        return Err(CopyError::Occupied { location: to.location().to_owned() });
    }
    let Some(last) = log::last(from).await? else {
        return Err(CopyError::NoLog { location: from.location().to_owned() });
    };
    let seen = from.object_age(&last).await?.unwrap_or_default();
    let mut copied = Copied::default();
    for prefix in prefixes {
        let pass = Pass { from, to, progress: &progress, window: None };
        copied.present += pass.objects(prefix).await?.present;
    }
    let export = log::export(from).await?;
    let until = match export.records.last() {
        Some((key, _)) => from.object_age(key).await?.unwrap_or(u64::MAX),
        None => u64::MAX,
    };
    for prefix in prefixes {
        let pass = Pass { from, to, progress: &progress, window: Some(Window { seen, until }) };
        let found = pass.objects(prefix).await?;
        copied.objects += found.objects;
        copied.bytes += found.bytes;
        copied.present += found.present;
    }
    copied.present = copied.present.min(copied.objects);
    // Snapshots first: records without their snapshot are not a valid log, and are reported as such.
    for (key, bytes) in export.snapshots.into_iter().chain(export.records) {
        // An interrupted copy may have left a snapshot.
        if to.create(&key, bytes.clone()).await? == Put::Exists && to.get(&key).await? != bytes {
            return Err(CopyError::Occupied { location: to.location().to_owned() });
        }
        copied.records += 1;
    }
    let read = log::read(to).await?;
    copied.last_record = read.next.checked_sub(1);
    Ok(copied)
}

/// The times of a second pass, by the source's clock.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// Objects written before this time were seen by the first pass.
    seen: u64,
    /// The time of the log's state: younger objects might have other content in its future.
    until: u64,
}

/// The action for an object of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Skip,
    /// It is in the target.
    Count,
    /// It is in the target, from an earlier copy: the hashes must be the same.
    Compare,
    /// It has a sidecar, and is not in the target.
    Write,
    /// It has no sidecar.
    WritePlain,
}

impl Step {
    fn of(found: &Found, is_present: bool, window: Option<Window>) -> Self {
        let Some(Window { seen, until }) = window else {
            return match (found.hashed, is_present) {
                // An object without a sidecar may still be being written: leave it to the last pass.
                (false, _) => Self::Skip,
                (true, true) => Self::Compare,
                (true, false) => Self::Write,
            };
        };
        let is_of_state = found.modified <= until;
        match (found.hashed, is_present) {
            (false, _) if is_of_state && found.size <= MAX_PLAIN_BYTES => Self::WritePlain,
            (true, true) if is_of_state && found.modified >= seen => Self::Compare,
            (true, true) => Self::Count,
            (true, false) if is_of_state => Self::Write,
            _ => Self::Skip,
        }
    }
}

/// One walk over the objects of source and target: the first pass, or the second if it has a window.
struct Pass<'a, P> {
    from: &'a Store,
    to: &'a Store,
    progress: &'a P,
    window: Option<Window>,
}

impl<P: Fn(u64) + Sync> Pass<'_, P> {
    async fn objects(&self, prefix: &str) -> Result<Copied, CopyError> {
        let mut copied = Copied::default();
        let mut copies = side_by_side(self.from, self.to, prefix)
            .map_ok(|(found, is_present)| self.copy(found, is_present))
            .try_buffer_unordered(PARALLEL);
        while let Some((size, step, outcome)) = copies.try_next().await? {
            let Some(put) = outcome else { continue };
            copied.objects += 1;
            copied.bytes += size;
            // The second pass does not count again what the first one found in the target.
            let is_found_again = self.window.is_some() && matches!(step, Step::Count | Step::Compare);
            if !is_found_again {
                copied.present += u64::from(put == Put::Exists);
                (self.progress)(size);
            }
        }
        Ok(copied)
    }

    /// Size and outcome of an object; no outcome if it is left out, or if the source has since deleted it.
    async fn copy(&self, found: Found, is_present: bool) -> Result<(u64, Step, Option<Put>), CopyError> {
        let (from, to, key) = (self.from, self.to, found.key.as_str());
        let step = Step::of(&found, is_present, self.window);
        let outcome = match step {
            Step::Skip => None,
            Step::Count => Some(Put::Exists),
            Step::Compare => compare(from, to, key).await?,
            Step::Write => write(from, to, key).await?,
            Step::WritePlain => plain(from, to, key).await?,
        };
        Ok((found.size, step, outcome))
    }
}

/// The source's objects in order, and whether each is in the target, with its sidecar.
fn side_by_side<'a>(
    from: &'a Store,
    to: &'a Store,
    prefix: &str,
) -> BoxStream<'a, Result<(Found, bool), CopyError>> {
    let walk = (Pairs::new(from, prefix), Pairs::new(to, prefix), None::<Found>);
    let steps = stream::try_unfold(walk, |(mut source, mut target, mut there)| async move {
        let Some(found) = source.next().await? else { return Ok(None) };
        let place = found.place();
        while there.as_ref().is_none_or(|there| there.place() < place) {
            there = target.next().await?;
            if there.is_none() {
                break;
            }
        }
        let is_present = there.as_ref().is_some_and(|there| there.key == found.key && there.hashed);
        Ok(Some(((found, is_present), (source, target, there))))
    });
    steps.boxed()
}

/// Compares an object that is in both stores; `None` if the source has since deleted it.
async fn compare(from: &Store, to: &Store, key: &str) -> Result<Option<Put>, StoreError> {
    let object = match from.stat_object(key).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        found => found?,
    };
    match to.stat_object(key).await {
        Ok(present) if Digest::from(&present) == Digest::from(&object) => Ok(Some(Put::Exists)),
        // Different content is a conflict, which the writer reports.
        Ok(_) | Err(StoreError::NotFound { .. }) => write(from, to, key).await,
        Err(error) => Err(error),
    }
}

/// Copies an object with a sidecar; `None` if the source has since deleted it.
async fn write(from: &Store, to: &Store, key: &str) -> Result<Option<Put>, StoreError> {
    let (object, mut bytes) = match from.stream_object(key, 0).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        found => found?,
    };
    let mut writer = to.write_object(key, Digest::from(&object)).await?;
    while let Some(next) = bytes.next().await {
        match next {
            Ok(next) => writer.write(next).await?,
            Err(error) => {
                writer.abandon().await;
                return Err(error);
            }
        }
    }
    match writer.finish().await {
        Ok(_) => Ok(Some(Put::Created)),
        // The source's bytes do not match its sidecar.
        Err(StoreError::Mismatch { key, expected, found }) => {
            Err(StoreError::Corrupt { key, expected, found })
        }
        Err(error) => Err(error),
    }
}

async fn plain(from: &Store, to: &Store, key: &str) -> Result<Option<Put>, StoreError> {
    match from.get(key).await {
        Err(StoreError::NotFound { .. }) => Ok(None),
        bytes => to.create(key, bytes?).await.map(Some),
    }
}

#[cfg(test)]
mod tests;
