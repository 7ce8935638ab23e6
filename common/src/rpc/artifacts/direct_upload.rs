//! Uploads of ranks to the store itself: the parts go to the URLs that the coordinator gives, which then
//! makes the object exist.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::Retryable;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use foil_proto::v1;
use futures::{StreamExt, TryStreamExt};
use md5::{Digest as _, Md5};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::direct::{DirectAccess, NotSent};
use super::{LeaderChannel, Moved, TransferError, UNARY_DEADLINE, backoff, client, note, request};
use crate::storage::object::Digest;

/// Size below which no coordinator lets ranks write to the store themselves.
const MIN_BYTES: u64 = 64 << 10;
/// Deadline of completing an upload, for which a store may take minutes.
const FINISH_DEADLINE: Duration = Duration::from_secs(600);
const FINISH_RETRIES: usize = 5;
/// Number of parts that are sent at the same time.
const PARTS_IN_FLIGHT: usize = 4;

/// Uploads a file; `None` if the object goes through the coordinator. `told` is set to the number of bytes
/// that were reported to `moved`.
pub(super) async fn put_file(
    line: &LeaderChannel,
    direct: &DirectAccess,
    begin: v1::PutBegin,
    path: &Path,
    moved: &Moved,
    told: &Arc<AtomicU64>,
) -> Result<Option<v1::Object>, TransferError> {
    if begin.size < MIN_BYTES || !direct.is_on() {
        return Ok(None);
    }
    let begun = match begin_upload(line, &begin).await {
        Ok(begun) => begun,
        Err(error) => return through_coordinator(error),
    };
    if begun.object.is_some() {
        return Ok(begun.object);
    }
    let parts = begin.size.checked_div(begun.part_bytes).map(|_| begin.size.div_ceil(begun.part_bytes));
    if begun.upload_id.is_empty() || parts != Some(begun.urls.len() as u64) {
        return Ok(None);
    }
    let counted: Moved = {
        let (moved, told) = (Arc::clone(moved), Arc::clone(told));
        Arc::new(move |bytes| {
            told.fetch_add(bytes, Ordering::Relaxed);
            moved(bytes);
        })
    };
    let finish = |etags| finish_upload(line, &begin, &begun.upload_id, etags);
    let fault = match send(direct, &begin, &begun, path, &counted).await {
        Ok(etags) => match finish(etags).await {
            Ok(finished) => return Ok(finished.object),
            Err(error) => Fault::Coordinator(error),
        },
        Err(fault) => fault,
    };
    // What remains of it costs room; the coordinator may be gone too.
    if let Err(error) = finish(Vec::new()).await {
        tracing::warn!(%error, "cannot remove an unfinished upload");
    }
    match fault {
        Fault::Coordinator(error) => through_coordinator(error),
        Fault::File(error) => Err(error),
        Fault::Store(reason) => {
            direct.fail(&reason);
            Ok(None)
        }
    }
}

/// The reason why an upload that was begun is not finished.
enum Fault {
    Coordinator(TransferError),
    Store(String),
    File(TransferError),
}

/// Sends all parts; returns their ETags.
async fn send(
    direct: &DirectAccess,
    begin: &v1::PutBegin,
    begun: &v1::BeginUploadResponse,
    path: &Path,
    moved: &Moved,
) -> Result<Vec<String>, Fault> {
    let file_fault = |source| Fault::File(TransferError::File { path: path.to_owned(), source });
    let part_bytes = begun.part_bytes;
    let (hashed, hashes) = mpsc::channel(PARTS_IN_FLIGHT);
    let owned = path.to_owned();
    let hashing = tokio::task::spawn_blocking(move || hash_parts(&owned, part_bytes, &hashed));
    let starts = (0..begin.size).step_by(usize::try_from(part_bytes).unwrap_or(usize::MAX));
    let parts: Vec<(String, u64)> = begun.urls.iter().cloned().zip(starts).collect();
    let sending = futures::stream::iter(parts)
        .zip(ReceiverStream::new(hashes))
        .map(|((url, start), md5)| async move {
            let length = part_bytes.min(begin.size - start);
            direct.send_part(&url, path, (start, length, &md5), moved).await
        })
        .buffered(PARTS_IN_FLIGHT)
        .try_collect::<Vec<String>>();
    // Hashing ends when nothing is sent any more.
    let (sent, hashed) = tokio::join!(sending, hashing);
    let etags = sent.map_err(|fault| match fault {
        NotSent::File(source) => file_fault(source),
        NotSent::Store(reason) => Fault::Store(reason),
    })?;
    // The coordinator does not see the bytes, so that this is the last look at whether they are the announced
    // ones.
    let digest = hashed.map_err(io::Error::other).and_then(|digest| digest).map_err(file_fault)?;
    match digest.size == begin.size && digest.blake3 == begin.blake3 {
        true => Ok(etags),
        false => Err(Fault::File(TransferError::Changed { path: path.to_owned() })),
    }
}

/// Reads a file once. Passes on the MD5 of each part in base64, for as long as someone listens; returns the
/// digest of what was read.
fn hash_parts(path: &Path, part_bytes: u64, parts: &mpsc::Sender<String>) -> io::Result<Digest> {
    let mut file = std::fs::File::open(path)?;
    let (mut whole, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    loop {
        let (mut part, mut left) = (Md5::new(), part_bytes);
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = file.read(&mut buffer[..most])?;
            if count == 0 {
                break;
            }
            whole.update(&buffer[..count]);
            part.update(&buffer[..count]);
            left -= count as u64;
        }
        let is_over = left == part_bytes || parts.blocking_send(STANDARD.encode(part.finalize())).is_err();
        if is_over {
            return Ok(Digest { size: whole.count(), blake3: whole.finalize().to_hex().to_string() });
        }
    }
}

async fn begin_upload(
    line: &LeaderChannel,
    begin: &v1::PutBegin,
) -> Result<v1::BeginUploadResponse, TransferError> {
    match client(line).begin_upload(request(begin.clone(), UNARY_DEADLINE)).await {
        Ok(answer) => Ok(answer.into_inner()),
        // A coordinator of an older version.
        Err(status) if status.code() == Code::Unimplemented => Ok(v1::BeginUploadResponse::default()),
        Err(status) => Err(TransferError::from_status(&begin.key, status)),
    }
}

/// Makes the object of an upload exist; without ETags, removes the upload.
async fn finish_upload(
    line: &LeaderChannel,
    begin: &v1::PutBegin,
    upload_id: &str,
    etags: Vec<String>,
) -> Result<v1::FinishUploadResponse, TransferError> {
    let message =
        v1::FinishUploadRequest { begin: Some(begin.clone()), upload_id: upload_id.to_owned(), etags };
    let once = move || {
        let message = message.clone();
        async move {
            let answer = client(line).finish_upload(request(message, FINISH_DEADLINE)).await;
            answer
                .map(tonic::Response::into_inner)
                .map_err(|status| TransferError::from_status(&begin.key, status))
        }
    };
    once.retry(backoff().with_max_times(FINISH_RETRIES)).when(TransferError::is_passing).notify(note).await
}

/// Whether an object that the coordinator's answer concerns goes through the coordinator instead: unless that
/// would refuse it too.
fn through_coordinator(error: TransferError) -> Result<Option<v1::Object>, TransferError> {
    let is_final = match &error {
        TransferError::Stale { .. } => true,
        TransferError::Refused { status, .. } => {
            matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument)
        }
        _ => false,
    };
    if is_final {
        return Err(error);
    }
    tracing::warn!(%error, "this object goes through the coordinator");
    Ok(None)
}
