//! The durable order of events; the only writer of the log.
//!
//! A decision of the coordinator is final once its event is appended here. Events that arrive while a record
//! is being written to the store share the next record (group commit), in the order in which they were
//! appended.

mod compactor;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use foil_common::storage::Store;
use foil_common::storage::log::{Entry, Log, LogError, LogState, Record};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::compactor::{Selected, Selection, SnapshotPolicy};

use self::compactor::Compactor;

/// Size beyond which a record takes no more events.
const RECORD_BYTES: usize = 1 << 20;

/// Failure to read or write the journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    Log(#[from] Arc<LogError>),
    #[error(
        "event {index} of {key} cannot be read: {reason}; run the version of Foil that wrote it, or a later one"
    )]
    Unreadable { key: String, index: usize, reason: String },
    #[error("an event would not be readable again ({0}); this is a bug in Foil, please report it")]
    Unencodable(String),
    #[error("the journal has ended after an earlier failure; start the coordinator again")]
    Ended,
}

impl JournalError {
    /// True if another coordinator has been elected.
    pub fn is_deposed(&self) -> bool {
        matches!(self, Self::Log(error) if matches!(**error, LogError::Deposed { .. }))
    }
}

/// The leader's handle to the log, for events of type `E`. Cheap to clone.
///
/// After an error nothing more can be appended, and the outcome of appends in flight is unknown: the process
/// must end, and the next one reads from the log what was written.
pub struct Journal<E> {
    term: u64,
    queue: mpsc::UnboundedSender<PendingAppend>,
    failed: watch::Receiver<Option<JournalError>>,
    events: PhantomData<fn(E)>,
}

struct PendingAppend {
    events: Vec<Bytes>,
    reply: oneshot::Sender<Result<u64, JournalError>>,
}

impl<E> Clone for Journal<E> {
    fn clone(&self) -> Self {
        let (queue, failed) = (self.queue.clone(), self.failed.clone());
        Self { term: self.term, queue, failed, events: PhantomData }
    }
}

impl<E: Serialize + DeserializeOwned + 'static> Journal<E> {
    /// Becomes the store's leader, whichever process leads at the time, and returns all events so far.
    /// `leader` names this process in messages.
    ///
    /// Must be called within a tokio runtime: a separate task writes the log until all clones are dropped.
    pub async fn open(
        store: Store,
        leader: &str,
        snapshot_policy: SnapshotPolicy<E>,
    ) -> Result<(Self, Vec<E>), JournalError> {
        let (log, read) = Log::lead(store.clone(), leader).await.map_err(Arc::new)?;
        Self::begin(store, log, &read, &snapshot_policy)
    }

    /// Like [`Journal::open`], but only if nothing was appended after `read`; otherwise the error is
    /// [`JournalError::is_deposed`].
    pub async fn campaign(
        store: Store,
        read: LogState,
        leader: &str,
        snapshot_policy: SnapshotPolicy<E>,
    ) -> Result<(Self, Vec<E>), JournalError> {
        let log = Log::campaign(store.clone(), &read, leader).await.map_err(Arc::new)?;
        Self::begin(store, log, &read, &snapshot_policy)
    }

    fn begin(
        store: Store,
        log: Log,
        read: &LogState,
        snapshot_policy: &SnapshotPolicy<E>,
    ) -> Result<(Self, Vec<E>), JournalError> {
        let compactor = Compactor::new(store, snapshot_policy, read);
        let mut events = decode_all(&read.snapshot, "the snapshot")?;
        for record in &read.records {
            events.extend(decode(record)?);
        }
        let term = log.term();
        let (queue, pending) = mpsc::unbounded_channel();
        let (failure, failed) = watch::channel(None);
        tokio::spawn(write(log, pending, failure, compactor));
        Ok((Self { term, queue, failed, events: PhantomData }, events))
    }

    /// The term in which this process leads.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Makes all of the events durable, or none, and returns the number of their record.
    ///
    /// The call itself fixes the order of the events; the future only waits, and dropping it does not cancel
    /// the append. The owner of the state may therefore continue, as long as nothing leaves the process
    /// before the future has completed.
    pub fn append(
        &self,
        events: &[E],
    ) -> impl Future<Output = Result<u64, JournalError>> + Send + 'static + use<E> {
        let failed = self.failed.clone();
        let encoded = events.iter().map(encode).collect::<Result<Vec<_>, _>>();
        let (reply, answer) = oneshot::channel();
        let sent = encoded.map(|events| self.queue.send(PendingAppend { events, reply }).is_ok());
        async move {
            match sent {
                Ok(true) => answer.await.unwrap_or(Err(JournalError::Ended)),
                Ok(false) => Err(failed.borrow().clone().unwrap_or(JournalError::Ended)),
                Err(unencodable) => Err(unencodable),
            }
        }
    }

    /// Waits until the journal fails.
    pub async fn failure(&self) -> JournalError {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(JournalError::Ended),
            Err(_) => JournalError::Ended,
        }
    }
}

/// Events are MessagePack with field names: floats keep their bits (NaN too), and fields may be added later.
fn encode<E: Serialize + DeserializeOwned>(event: &E) -> Result<Bytes, JournalError> {
    let bytes =
        rmp_serde::to_vec_named(event).map_err(|error| JournalError::Unencodable(error.to_string()))?;
    // A single unreadable event would lock every later coordinator out of the whole log.
    rmp_serde::from_slice::<E>(&bytes).map_err(|error| JournalError::Unencodable(error.to_string()))?;
    Ok(bytes.into())
}

fn decode<E: DeserializeOwned>(record: &Record) -> Result<Vec<E>, JournalError> {
    let Some(Entry::Events(events)) = &record.entry else { return Ok(Vec::new()) };
    decode_all(&events.events, &foil_common::storage::log::key(record.seq))
}

fn decode_all<E: DeserializeOwned>(events: &[Bytes], key: &str) -> Result<Vec<E>, JournalError> {
    let one = |(index, bytes): (usize, &Bytes)| {
        rmp_serde::from_slice(bytes).map_err(|error| JournalError::Unreadable {
            key: key.to_owned(),
            index,
            reason: error.to_string(),
        })
    };
    events.iter().enumerate().map(one).collect()
}

/// Writes one record after another until every handle is dropped or an append fails.
async fn write(
    mut log: Log,
    mut pending: mpsc::UnboundedReceiver<PendingAppend>,
    failure: watch::Sender<Option<JournalError>>,
    mut compactor: Compactor,
) {
    while let Some(first) = pending.recv().await {
        let (events, replies) = batch(first, &mut pending);
        match log.append(events).await {
            Ok(seq) => {
                replies.into_iter().for_each(|reply| drop(reply.send(Ok(seq))));
                compactor.record_appended();
            }
            Err(error) => {
                let error = JournalError::Log(Arc::new(error));
                failure.send_replace(Some(error.clone()));
                replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
                return;
            }
        }
    }
}

type Reply = oneshot::Sender<Result<u64, JournalError>>;

fn batch(
    first: PendingAppend,
    pending: &mut mpsc::UnboundedReceiver<PendingAppend>,
) -> (Vec<Bytes>, Vec<Reply>) {
    let (mut events, mut replies) = (first.events, vec![first.reply]);
    let mut bytes: usize = events.iter().map(Bytes::len).sum();
    while bytes < RECORD_BYTES {
        let Ok(next) = pending.try_recv() else { break };
        bytes += next.events.iter().map(Bytes::len).sum::<usize>();
        events.extend(next.events);
        replies.push(next.reply);
    }
    (events, replies)
}
