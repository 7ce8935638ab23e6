//! Uploads of ranks to the store itself: the parts go to the URLs that the coordinator gives, which then
//! makes the object exist.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foil_proto::v1;
use futures::{StreamExt, TryStreamExt};
use tonic::Code;

use super::direct::{DirectAccess, NotSent};
use super::{LeaderChannel, Moved, TransferError, UNARY_DEADLINE, client, persist, request};

/// Size below which no coordinator lets ranks write to the store themselves.
const MIN_BYTES: u64 = 64 << 10;
/// Deadline of completing an upload, for which a store may take minutes.
const FINISH_DEADLINE: Duration = Duration::from_secs(600);
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
    let v1::BeginUploadResponse { object, upload_id, part_bytes, urls } = persist(once).await?;
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
    let sent = futures::stream::iter(parts)
        .map(|(url, start)| {
            let length = part_bytes.min(begin.size - start);
            direct.send_part(url, path, (start, length), &counted)
        })
        .buffered(PARTS_IN_FLIGHT)
        .try_collect::<Vec<String>>()
        .await;
    let finish = |etags: Vec<String>| {
        let message =
            v1::FinishUploadRequest { begin: Some(begin.clone()), upload_id: upload_id.clone(), etags };
        persist(move || {
            let message = message.clone();
            async move {
                let answer = client(line).finish_upload(request(message, FINISH_DEADLINE)).await;
                answer
                    .map(tonic::Response::into_inner)
                    .map_err(|status| TransferError::from_status(key, status))
            }
        })
    };
    match sent {
        Ok(etags) => Ok(finish(etags).await?.object),
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
