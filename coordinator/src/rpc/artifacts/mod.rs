//! The Artifacts service: bytes between clients, ranks and the store, streamed, hashed and bounded.

mod access;
mod direct;
mod log_bounds;
mod slots;
mod status;
#[cfg(test)]
mod tests;
mod upload_quota;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foil_common::rpc::{DATA_BYTES, MESSAGE_BYTES};
use foil_common::storage::object::{Digest, ObjectWriter};
use foil_common::storage::{ByteStream, Store, StoreError};
use foil_common::{failpoint, logs};
use foil_proto::v1;
use foil_proto::v1::artifacts_server::{Artifacts, ArtifactsServer};
use foil_proto::v1::put_request::Part;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use self::access::AttemptCheck;
use self::log_bounds::LogBounds;
use self::slots::{Credit, Interrupted, Slot, Slots};
use self::status::{bad_field, busy, from_store, too_slow};
use self::upload_quota::UploadQuota;
use super::auth::{RankClaim, caller};
use super::status::being_deleted;
use crate::auth::Principal;
use crate::collector::InUse;

/// Concurrent uploads of ranks and of clients; each holds up to three 8 MiB parts.
const RANK_UPLOADS: usize = 16;
const CLIENT_UPLOADS: usize = 8;
/// Concurrent uploads of log parts, which are small and must not wait for a checkpoint.
const LOG_UPLOADS: usize = 16;

/// Concurrent downloads; each holds a few 1 MiB messages.
const DOWNLOADS: usize = 64;

/// Timeout for an upload's first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// A download whose reader consumes nothing for this long is aborted.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The Artifacts service. Clients may write `inputs/{blake3}`, a namespace of their tenant, and read it and
/// their tenant's `jobs/`. Ranks of a job's current attempt may write below `jobs/{job}/phases/`, the job's
/// last rank processes may each write their own log, and ranks may read the job's objects.
pub struct ArtifactsService {
    store: Store,
    attempts: Arc<dyn AttemptCheck>,
    in_use: InUse,
    rank_uploads: Slots,
    client_uploads: Slots,
    log_uploads: Slots,
    downloads: Slots,
    log_bounds: LogBounds,
    upload_quota: UploadQuota,
    /// Size from which ranks read and write objects by URL, where the store has URLs.
    direct: Option<u64>,
}

impl ArtifactsService {
    pub fn new(store: Store, attempts: impl AttemptCheck, in_use: InUse) -> Self {
        Self {
            log_bounds: LogBounds::new(store.clone()),
            upload_quota: UploadQuota::new(store.clone()),
            store,
            attempts: Arc::new(attempts),
            in_use,
            rank_uploads: Slots::new(RANK_UPLOADS),
            client_uploads: Slots::new(CLIENT_UPLOADS),
            log_uploads: Slots::new(LOG_UPLOADS),
            downloads: Slots::new(DOWNLOADS),
            direct: None,
        }
    }

    /// Lets ranks read and write objects of at least this size in the store itself.
    #[must_use]
    pub fn with_direct_transfers(self, direct: Option<u64>) -> Self {
        Self { direct, ..self }
    }

    /// The service for a tonic server, with its message limits.
    pub fn into_server(self) -> ArtifactsServer<Self> {
        ArtifactsServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl Artifacts for ArtifactsService {
    async fn put(
        &self,
        request: Request<Streaming<v1::PutRequest>>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let caller = caller(&request)?;
        let mut parts = request.into_inner();
        let begin = match first_part(&mut parts).await? {
            Some(Part::Begin(begin)) => begin,
            _ => return Err(bad_field("begin", "the first message must hold begin")),
        };
        caller.changes(&begin.key);
        let announced = access::announced(&begin)?;
        if is_log(&begin) {
            return self.put_log(&begin, announced, &caller, &mut parts).await.map(Response::new);
        }
        let key = access::may_write(&begin, &caller, &*self.attempts)?;
        let is_rank = !begin.job_id.is_empty();
        let slot = if is_rank { &self.rank_uploads } else { &self.client_uploads }.take().await?;
        // From here on the key is not collected as garbage; after the upload, its age protects it for the
        // grace period.
        let _hold = self.in_use.hold([key.clone()]).map_err(|why| being_deleted(&why))?;
        if !is_rank {
            self.repair(&key, &announced).await?;
        }
        // Clients know their uploads by the keys that they specified.
        let named = |object| v1::Object { key: begin.key.clone(), ..object };
        if let Some(object) = self.already_there(&key, &announced).await? {
            if !is_rank {
                self.store.touch_object(&key).await.map_err(|error| from_store(&error))?;
            }
            return Ok(Response::new(v1::PutResponse { object: Some(named(object)) }));
        }
        // Writes of jobs are not refused: jobs that were already submitted continue.
        let admitted = match is_rank {
            true => None,
            false => self.upload_quota.admit(&caller.tenant, begin.size, &*self.attempts).await?,
        };
        failpoint::hit("artifact.receive").map_err(|injected| busy(&injected.to_string()))?;
        let mut writer = self.store.write_object(&key, announced).await.map_err(|e| from_store(&e))?;
        let received = receive(&mut parts, &mut writer, &slot).await;
        // An upload that became stale in the meantime must not become an object.
        let allowed = received.and_then(|()| access::may_write(&begin, &caller, &*self.attempts));
        if let Err(status) = allowed {
            writer.abandon().await;
            return Err(status);
        }
        let object = writer.finish().await.map_err(|error| from_store(&error))?;
        if let Some(admitted) = admitted {
            admitted.stored();
        }
        metrics::counter!("foil_artifact_bytes_total", "direction" => "in").increment(object.size);
        Ok(Response::new(v1::PutResponse { object: Some(named(object)) }))
    }

    async fn begin_upload(
        &self,
        request: Request<v1::PutBegin>,
    ) -> Result<Response<v1::BeginUploadResponse>, Status> {
        let caller = caller(&request)?;
        self.begin_by_url(request.into_inner(), &caller).await.map(Response::new)
    }

    async fn finish_upload(
        &self,
        request: Request<v1::FinishUploadRequest>,
    ) -> Result<Response<v1::FinishUploadResponse>, Status> {
        let caller = caller(&request)?;
        self.finish_by_url(request.into_inner(), &caller).await.map(Response::new)
    }

    type GetStream = ReceiverStream<Result<v1::GetResponse, Status>>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        self.attempts.serving()?;
        let (caller, rank) = (caller(&request)?, RankClaim::of(request.metadata()));
        let v1::GetRequest { key, offset, by_url } = request.into_inner();
        let stored = access::may_read(&key, &caller, rank.as_ref(), &*self.attempts).await?;
        if by_url
            && rank.is_some()
            && let Some(only) = self.read_by_url(&key, &stored).await?
        {
            let (sender, receiver) = mpsc::channel(1);
            // The receiver exists, and there is room for one message.
            let _ = sender.try_send(Ok(only));
            return Ok(Response::new(ReceiverStream::new(receiver)));
        }
        let slot = self.downloads.take().await?;
        let (object, bytes) =
            self.store.stream_object(&stored, offset).await.map_err(|error| from_store(&error))?;
        let object = v1::Object { key, ..object };
        if offset > object.size {
            return Err(bad_field("offset", &format!("the object has {} bytes only", object.size)));
        }
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(send(object, bytes, sender, slot));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::Object>, Status> {
        self.attempts.serving()?;
        let (caller, rank) = (caller(&request)?, RankClaim::of(request.metadata()));
        let key = request.into_inner().key;
        let stored = access::may_read(&key, &caller, rank.as_ref(), &*self.attempts).await?;
        let object = self.store.stat_object(&stored).await.map_err(|error| from_store(&error))?;
        Ok(Response::new(v1::Object { key, ..object }))
    }
}

/// Whether the upload is meant to be a part of a rank's log.
fn is_log(begin: &v1::PutBegin) -> bool {
    !begin.job_id.is_empty() && begin.key.starts_with(&format!("{}/", logs::prefix(&begin.job_id)))
}

impl ArtifactsService {
    /// Stores a part of a rank's log, and keeps all logs within their limits.
    async fn put_log(
        &self,
        begin: &v1::PutBegin,
        announced: Digest,
        caller: &Principal,
        parts: &mut Streaming<v1::PutRequest>,
    ) -> Result<v1::PutResponse, Status> {
        let part = access::log_part(begin, caller, &*self.attempts).await?;
        let slot = self.log_uploads.take().await?;
        if let Some(object) = self.already_there(&begin.key, &announced).await? {
            return Ok(v1::PutResponse { object: Some(object) });
        }
        let mut writer = self.store.write_object(&begin.key, announced).await.map_err(|e| from_store(&e))?;
        if let Err(status) = receive(parts, &mut writer, &slot).await {
            writer.abandon().await;
            return Err(status);
        }
        let object = writer.finish().await.map_err(|error| from_store(&error))?;
        self.log_bounds.enforce(&begin.job_id, &part);
        Ok(v1::PutResponse { object: Some(object) })
    }

    /// Removes a damaged object, so that a client can upload it again. Its key is the hash of the content, so
    /// the upload cannot be a different object.
    async fn repair(&self, key: &str, announced: &Digest) -> Result<(), Status> {
        let repaired = self.store.remove_unless(key, announced).await.map_err(|error| from_store(&error))?;
        if repaired {
            metrics::counter!("foil_object_verify_failures_total").increment(1);
            tracing::warn!(key, "replacing an input that was damaged in the store");
        }
        Ok(())
    }

    /// The existing object, if its content is the same.
    async fn already_there(&self, key: &str, announced: &Digest) -> Result<Option<v1::Object>, Status> {
        match self.store.stat_object(key).await {
            Ok(object) if Digest::from(&object) == *announced => Ok(Some(object)),
            Ok(object) => Err(from_store(&StoreError::Conflict {
                key: key.to_owned(),
                existing: object.blake3,
                offered: announced.blake3.clone(),
            })),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(from_store(&error)),
        }
    }
}

async fn first_part(parts: &mut Streaming<v1::PutRequest>) -> Result<Option<Part>, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, next_part(parts)).await;
    first.unwrap_or_else(|_| Err(too_slow(&format!("no message came within {FIRST_MESSAGE_TIMEOUT:?}"))))
}

async fn next_part(parts: &mut Streaming<v1::PutRequest>) -> Result<Option<Part>, Status> {
    match parts.message().await? {
        Some(request) => {
            request.part.map(Some).ok_or_else(|| bad_field("part", "a message must hold begin or data"))
        }
        None => Ok(None),
    }
}

/// Receives an upload, which must sustain the minimum rate.
async fn receive(
    parts: &mut Streaming<v1::PutRequest>,
    writer: &mut ObjectWriter,
    slot: &Slot,
) -> Result<(), Status> {
    let mut credit = Credit::new();
    loop {
        #[expect(clippy::disallowed_methods, reason = "transfers are timed")]
        let began = Instant::now();
        let part = slot.wait_for(credit.left(), next_part(parts)).await.map_err(interrupted)??;
        let waited = began.elapsed();
        let data = match part {
            Some(Part::Data(data)) => data,
            Some(Part::Begin(_)) => return Err(bad_field("begin", "only the first message may hold begin")),
            None => return Ok(()),
        };
        if data.len() > DATA_BYTES {
            return Err(bad_field("data", "a message may hold 1 MiB at most"));
        }
        credit.record(waited, data.len());
        slot.moved(data.len());
        writer.write(data).await.map_err(|error| from_store(&error))?;
    }
}

fn interrupted(reason: Interrupted) -> Status {
    match reason {
        Interrupted::Evicted => busy("other uploads are waiting, and this upload stalled or was slow"),
        Interrupted::TimedOut => {
            let rate = Credit::MIN_RATE >> 10;
            too_slow(&format!("an upload must send at least {rate} KiB per second, and this one did not"))
        }
    }
}

type Message = Result<v1::GetResponse, Status>;

/// Sends the object's metadata, then its bytes, as fast as the reader consumes them.
async fn send(object: v1::Object, mut bytes: ByteStream, sender: mpsc::Sender<Message>, slot: Slot) {
    let first = v1::GetResponse { object: Some(object), ..Default::default() };
    let mut sent = send_message(&slot, &sender, Ok(first)).await;
    while sent.is_ok()
        && let Some(next) = bytes.next().await
    {
        sent = match next {
            Ok(data) => send_data(data, &sender, &slot).await,
            Err(error) => send_message(&slot, &sender, Err(from_store(&error))).await,
        };
    }
    if let Err(ReaderGone) = sent {
        tracing::debug!("a download's reader disconnected or stalled");
    }
}

/// The reader has disconnected or has stopped reading.
struct ReaderGone;

async fn send_message(
    slot: &Slot,
    sender: &mpsc::Sender<Message>,
    message: Message,
) -> Result<(), ReaderGone> {
    match slot.wait_for(STALL_TIMEOUT, sender.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(Interrupted::Evicted | Interrupted::TimedOut) => Err(ReaderGone),
    }
}

async fn send_data(mut data: Bytes, sender: &mpsc::Sender<Message>, slot: &Slot) -> Result<(), ReaderGone> {
    while !data.is_empty() {
        let data = data.split_to(data.len().min(DATA_BYTES));
        metrics::counter!("foil_artifact_bytes_total", "direction" => "out").increment(data.len() as u64);
        let size = data.len();
        send_message(slot, sender, Ok(v1::GetResponse { data, ..Default::default() })).await?;
        slot.moved(size);
    }
    Ok(())
}
