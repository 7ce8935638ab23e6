//! Uploads of ranks to the store itself: the parts go to the URLs that the coordinator gives, which then
//! makes the object exist.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::Retryable;
use foil_proto::v1;
use futures::{StreamExt, TryStreamExt};
use tonic::Code;

use super::direct::{DirectAccess, NotSent};
use super::{
    LeaderChannel, Moved, TransferError, UNARY_DEADLINE, backoff, client, digest_of_file, note, request,
};

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
    let key = begin.key.as_str();
    let once = || async {
        match client(line).begin_upload(request(begin.clone(), UNARY_DEADLINE)).await {
            Ok(answer) => Ok(answer.into_inner()),
            // A coordinator of an older version.
            Err(status) if status.code() == Code::Unimplemented => Ok(v1::BeginUploadResponse::default()),
            Err(status) => Err(TransferError::from_status(key, status)),
        }
    };
    let v1::BeginUploadResponse { object, upload_id, part_bytes, urls } = match once().await {
        Ok(begun) => begun,
        Err(error) => return through_coordinator(error, direct),
    };
    if object.is_some() {
        return Ok(object);
    }
    if upload_id.is_empty() || part_bytes == 0 || urls.len() as u64 != begin.size.div_ceil(part_bytes) {
        return Ok(None);
    }
    let counted: Moved = {
        let (moved, told) = (Arc::clone(moved), Arc::clone(told));
        Arc::new(move |bytes| {
            told.fetch_add(bytes, Ordering::Relaxed);
            moved(bytes);
        })
    };
    let parts = urls.iter().zip((0..).step_by(usize::try_from(part_bytes).unwrap_or(usize::MAX)));
    let sending = futures::stream::iter(parts)
        .map(|(url, start)| {
            let length = part_bytes.min(begin.size - start);
            direct.send_part(url, path, (start, length), &counted)
        })
        .buffered(PARTS_IN_FLIGHT)
        .try_collect::<Vec<String>>();
    // The coordinator does not see the bytes, so that this is the last look at whether they are the announced
    // ones.
    let (sent, digest) = tokio::join!(sending, digest_of_file(path));
    let is_intact = digest.is_ok_and(|digest| digest.size == begin.size && digest.blake3 == begin.blake3);
    let finish = |etags: Vec<String>| {
        let message =
            v1::FinishUploadRequest { begin: Some(begin.clone()), upload_id: upload_id.clone(), etags };
        let once = move || {
            let message = message.clone();
            async move {
                let answer = client(line).finish_upload(request(message, FINISH_DEADLINE)).await;
                answer
                    .map(tonic::Response::into_inner)
                    .map_err(|status| TransferError::from_status(key, status))
            }
        };
        once.retry(backoff().with_max_times(FINISH_RETRIES)).when(TransferError::is_passing).notify(note)
    };
    match sent {
        Ok(etags) if is_intact => match finish(etags).await {
            Ok(finished) => Ok(finished.object),
            Err(error) => through_coordinator(error, direct),
        },
        Ok(_) => {
            let _ = finish(Vec::new()).await;
            Err(TransferError::Changed { path: path.to_owned() })
        }
        Err(fault) => {
            // What remains of it costs room; the coordinator may be gone too.
            if let Err(error) = finish(Vec::new()).await {
                tracing::warn!(%error, "cannot remove an unfinished upload");
            }
            match fault {
                NotSent::File(source) => Err(TransferError::File { path: path.to_owned(), source }),
                NotSent::Store(reason) => {
                    direct.fail(&reason);
                    Ok(None)
                }
            }
        }
    }
}

/// Whether an object that failed goes through the coordinator instead: unless that would refuse it too.
fn through_coordinator(
    error: TransferError,
    direct: &DirectAccess,
) -> Result<Option<v1::Object>, TransferError> {
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
    direct.fail(&error.to_string());
    Ok(None)
}
