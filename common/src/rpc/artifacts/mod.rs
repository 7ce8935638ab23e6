//! Transfer of artifacts between a client or a rank and the coordinator: 1 MiB messages, verified by BLAKE3.
//!
//! An interrupted download resumes; an upload restarts. Only unavailability is retried: of the
//! coordinator for about two minutes, of its store for an hour. Use a separate connection: other calls on it
//! would wait behind the bytes.

#![expect(clippy::disallowed_methods, reason = "retries end by the clock")]

mod direct;
mod direct_upload;
mod download;
mod error;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::Retryable;
use bytes::{Bytes, BytesMut};
use foil_proto::v1;
use foil_proto::v1::artifacts_client::ArtifactsClient;
use foil_proto::v1::put_request::Part;
use futures::{Stream, StreamExt};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tonic::Code;

pub use self::direct::DirectAccess;
pub use self::download::{download_bytes, download_to_cache, download_to_file};
pub use self::error::TransferError;
use super::{DATA_BYTES, LeaderChannel, MESSAGE_BYTES, UNARY_DEADLINE, backoff, request};
use crate::storage::object::Digest;

/// Called with the number of bytes transferred since the last call. Bytes of a retry are not counted twice.
pub type Moved = Arc<dyn Fn(u64) + Send + Sync>;

/// A callback that does nothing.
pub fn unfollowed() -> Moved {
    Arc::new(|_| ())
}

/// The party that uploads, which determines where it may write.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Writer {
    job_id: String,
    attempt: u32,
    session_id: String,
    secret: String,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job_id, attempt, session_id, secret: _ } = self;
        write!(f, "Writer({job_id}, {attempt}, {session_id})")
    }
}

impl Writer {
    /// A user's client, which may write `inputs/{blake3}` only.
    pub fn client() -> Self {
        Self::default()
    }

    /// A rank of a job's attempt, authenticated by its secret; it may write below `jobs/{job}/phases/` while
    /// the attempt is current, and its own log also for a while after that.
    pub fn rank(job_id: &str, attempt: u32, session_id: &str, secret: &str) -> Self {
        let (job_id, session_id) = (job_id.to_owned(), session_id.to_owned());
        Self { job_id, attempt, session_id, secret: secret.to_owned() }
    }

    /// The announcement of an object.
    fn begin(&self, key: &str, digest: &Digest) -> v1::PutBegin {
        v1::PutBegin {
            key: key.to_owned(),
            size: digest.size,
            blake3: digest.blake3.clone(),
            job_id: self.job_id.clone(),
            attempt: self.attempt,
            session_id: self.session_id.clone(),
            secret: self.secret.clone(),
        }
    }
}

/// Retries a request until it succeeds or fails permanently.
async fn persist<T, F>(once: impl FnMut() -> F) -> Result<T, TransferError>
where
    F: Future<Output = Result<T, TransferError>>,
{
    let started = Instant::now();
    once.retry(backoff())
        .when(|error| error.may_pass(started.elapsed()))
        .adjust(|error, pause| pause.map(|pause| error.pause(pause)))
        .notify(note)
        .await
}

fn client(line: &LeaderChannel) -> ArtifactsClient<LeaderChannel> {
    ArtifactsClient::new(line.clone())
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
}

/// An object's size and hash; `None` if it does not exist.
pub async fn stat(line: &LeaderChannel, key: &str) -> Result<Option<v1::Object>, TransferError> {
    let once = || async {
        let message = v1::StatRequest { key: key.to_owned() };
        match client(line).stat(request(message, UNARY_DEADLINE)).await {
            Ok(response) => Ok(Some(response.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(TransferError::from_status(key, status)),
        }
    };
    persist(once).await
}

/// Uploads an object from memory.
pub async fn upload_bytes(
    line: &LeaderChannel,
    key: &str,
    writer: &Writer,
    bytes: Bytes,
    moved: &Moved,
) -> Result<v1::Object, TransferError> {
    let digest = Digest::of(&bytes);
    let told = Arc::default();
    let once = || {
        let chunks = (0..bytes.len())
            .step_by(DATA_BYTES)
            .map(|start| bytes.slice(start..bytes.len().min(start + DATA_BYTES)))
            .collect::<Vec<_>>();
        put(line, key, writer, &digest, followed(futures::stream::iter(chunks), moved, &told))
    };
    persist(once).await
}

/// Uploads a user's file as `inputs/{blake3}`. If it exists already, the coordinator verifies it, answers
/// early, and takes the bytes only if its copy is damaged. The `path` of the result is the file's name.
pub async fn upload_input(
    line: &LeaderChannel,
    path: &Path,
    moved: &Moved,
) -> Result<v1::Object, TransferError> {
    let digest = digest_of_file(path).await?;
    let key = input_key(&digest.blake3);
    let taken = Arc::new(AtomicU64::new(0));
    let counted = {
        let (taken, moved) = (Arc::clone(&taken), Arc::clone(moved));
        let count: Moved = Arc::new(move |bytes| {
            taken.fetch_add(bytes, Ordering::Relaxed);
            moved(bytes);
        });
        count
    };
    let object = upload_file(line, &key, &Writer::client(), (path, &digest), None, &counted).await?;
    moved(digest.size.saturating_sub(taken.load(Ordering::Relaxed)));
    Ok(object)
}

/// Uploads bytes as `inputs/{blake3}`, like [`upload_input`].
pub async fn upload_input_bytes(line: &LeaderChannel, bytes: Bytes) -> Result<v1::Object, TransferError> {
    let key = input_key(&Digest::of(&bytes).blake3);
    upload_bytes(line, &key, &Writer::client(), bytes, &unfollowed()).await
}

/// The key of a client's upload with this hash.
pub fn input_key(blake3: &str) -> String {
    format!("inputs/{blake3}")
}

/// Size and BLAKE3 of a file.
pub async fn digest_of_file(path: &Path) -> Result<Digest, TransferError> {
    let fail = |source| TransferError::File { path: path.to_owned(), source };
    let owned = path.to_owned();
    let hashing = tokio::task::spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(owned)?)?;
        Ok(Digest { size: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
    });
    hashing.await.map_err(|error| fail(io::Error::other(error)))?.map_err(fail)
}

/// Uploads an object from a file of known digest: a large one to the store itself, if there is access to it.
/// The `path` of the result is the file's name.
pub async fn upload_file(
    line: &LeaderChannel,
    key: &str,
    writer: &Writer,
    (path, digest): (&Path, &Digest),
    direct: Option<&DirectAccess>,
    moved: &Moved,
) -> Result<v1::Object, TransferError> {
    let told = Arc::default();
    let sent = match direct {
        Some(direct) => {
            let begin = writer.begin(key, digest);
            direct_upload::put_file(line, direct, begin, path, moved, &told).await?
        }
        None => None,
    };
    let object = match sent {
        Some(object) => object,
        None => put_file(line, key, writer, path, digest, moved, &told).await?,
    };
    Ok(v1::Object { path: file_name(path), ..object })
}

/// `told` is the number of bytes that earlier tries have reported to `moved`.
async fn put_file(
    line: &LeaderChannel,
    key: &str,
    writer: &Writer,
    path: &Path,
    digest: &Digest,
    moved: &Moved,
    told: &Arc<AtomicU64>,
) -> Result<v1::Object, TransferError> {
    let once = || async {
        let file =
            File::open(path).await.map_err(|source| TransferError::File { path: path.to_owned(), source })?;
        let trouble = Arc::new(Mutex::new(None));
        let chunks = followed(file_chunks(file, u64::MAX, Arc::clone(&trouble)), moved, told);
        let result = put(line, key, writer, digest, chunks).await;
        let trouble = trouble.lock().ok().and_then(|mut slot| slot.take());
        match (trouble, result) {
            (Some(source), _) => Err(TransferError::File { path: path.to_owned(), source }),
            (None, Err(TransferError::Refused { status, .. })) if status.code() == Code::DataLoss => {
                Err(TransferError::Changed { path: path.to_owned() })
            }
            (None, result) => result,
        }
    };
    persist(once).await
}

/// The chunks, reporting each to `moved` when the connection accepts it, except for bytes that an earlier try
/// has reported.
fn followed<S>(chunks: S, moved: &Moved, told: &Arc<AtomicU64>) -> impl Stream<Item = Bytes> + Send + 'static
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let (moved, told) = (Arc::clone(moved), Arc::clone(told));
    let mut at = 0;
    chunks.inspect(move |data| {
        at += data.len() as u64;
        let before = told.fetch_max(at, Ordering::Relaxed);
        if at > before {
            moved(at - before);
        }
    })
}

/// At most `length` bytes of a file from its position on. An error ends the stream early, so that the server
/// refuses the upload, and is kept in `trouble`.
fn file_chunks(
    file: File,
    length: u64,
    trouble: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = Bytes> + Send + Unpin + 'static {
    let file = file.take(length);
    let chunks = futures::stream::unfold((file, trouble), |(mut file, trouble)| async move {
        let mut buffer = BytesMut::with_capacity(DATA_BYTES);
        while buffer.len() < DATA_BYTES {
            let room = (DATA_BYTES - buffer.len()) as u64;
            match (&mut file).take(room).read_buf(&mut buffer).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    if let Ok(mut slot) = trouble.lock() {
                        *slot = Some(error);
                    }
                    return None;
                }
            }
        }
        (!buffer.is_empty()).then(|| (buffer.freeze(), (file, trouble)))
    });
    Box::pin(chunks)
}

async fn put(
    line: &LeaderChannel,
    key: &str,
    writer: &Writer,
    digest: &Digest,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<v1::Object, TransferError> {
    let begin = writer.begin(key, digest);
    let message = |part| v1::PutRequest { part: Some(part) };
    let parts = futures::stream::once(async move { message(Part::Begin(begin)) })
        .chain(chunks.map(move |data| message(Part::Data(data))));
    let response = client(line).put(parts).await.map_err(|status| TransferError::from_status(key, status))?;
    Ok(response.into_inner().object.unwrap_or_else(|| digest.clone().object(key)))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn note(error: &TransferError, wait: Duration) {
    tracing::warn!(%error, ?wait, "retrying the transfer");
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn an_upload_that_is_tried_again_is_counted_once() {
        let counted = Arc::new(AtomicU64::new(0));
        let moved: Moved = {
            let counted = Arc::clone(&counted);
            Arc::new(move |bytes| {
                counted.fetch_add(bytes, Ordering::Relaxed);
            })
        };
        let told = Arc::default();
        let pieces = || futures::stream::iter([3usize, 4, 5].map(|size| Bytes::from(vec![0; size])));
        for (taken, total) in [(2, 7), (1, 7), (3, 12), (3, 12)] {
            let sent: Vec<Bytes> = followed(pieces(), &moved, &told).take(taken).collect().await;
            assert_eq!((sent.len(), counted.load(Ordering::Relaxed)), (taken, total));
        }
    }
}
