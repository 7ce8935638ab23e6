//! Downloads, which resume where they were interrupted.

use std::path::Path;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff};
use bytes::{Bytes, BytesMut};
use foil_proto::v1;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tonic::Status;
use ulid::Ulid;

use super::direct::DirectAccess;
use super::{LeaderChannel, Moved, TransferError, backoff, client, file_name, note};
use crate::storage::object::Digest;

/// A download without progress for this long counts as broken.
const STALL: Duration = Duration::from_secs(120);

/// Downloads and verifies an object that fits in memory.
pub async fn download_bytes(line: &LeaderChannel, object: &v1::Object) -> Result<Bytes, TransferError> {
    let mut bytes = BytesMut::new();
    download(line, object, None, async |data: Bytes| {
        bytes.extend_from_slice(&data);
        Ok(())
    })
    .await?;
    Ok(bytes.freeze())
}

/// Downloads an object to a file, which appears only when it is complete and verified, and is durable.
/// Creates missing directories.
pub async fn download_to_file(
    line: &LeaderChannel,
    object: &v1::Object,
    path: &Path,
    moved: &Moved,
) -> Result<(), TransferError> {
    download_file(line, object, None, path, moved, Lasting::Synced).await
}

/// Downloads an object to a cache file of this process, which need not survive the machine: there is no
/// fsync. A rank reads a large object from the store itself, if it can.
pub async fn download_to_cache(
    line: &LeaderChannel,
    object: &v1::Object,
    direct: &DirectAccess,
    path: &Path,
    moved: &Moved,
) -> Result<(), TransferError> {
    download_file(line, object, Some(direct), path, moved, Lasting::Cached).await
}

/// Whether a file is synced to disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Synced,
    Cached,
}

async fn download_file(
    line: &LeaderChannel,
    object: &v1::Object,
    direct: Option<&DirectAccess>,
    path: &Path,
    moved: &Moved,
    lasting: Lasting,
) -> Result<(), TransferError> {
    let fail = |source| TransferError::File { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(fail)?;
    }
    let partial = path.with_file_name(format!(".{}.{}.part", file_name(path), Ulid::new()));
    let written = download_into(line, object, direct, &partial, moved, lasting).await;
    let placed = match written {
        Ok(()) => tokio::fs::rename(&partial, path).await.map_err(fail),
        Err(error) => Err(error),
    };
    if placed.is_err()
        && let Err(error) = tokio::fs::remove_file(&partial).await
    {
        tracing::warn!(path = %partial.display(), %error, "cannot remove an unfinished download");
    }
    placed
}

async fn download_into(
    line: &LeaderChannel,
    object: &v1::Object,
    direct: Option<&DirectAccess>,
    partial: &Path,
    moved: &Moved,
    lasting: Lasting,
) -> Result<(), TransferError> {
    let fail = |source| TransferError::File { path: partial.to_owned(), source };
    let mut file = File::create(partial).await.map_err(fail)?;
    download(line, object, direct, async |data: Bytes| {
        file.write_all(&data).await.map_err(fail)?;
        moved(data.len() as u64);
        Ok(())
    })
    .await?;
    file.flush().await.map_err(fail)?;
    match lasting {
        Lasting::Synced => file.sync_all().await.map_err(fail),
        Lasting::Cached => Ok(()),
    }
}

/// Writes an object's bytes to `sink` in order, resuming where a connection was lost.
async fn download(
    line: &LeaderChannel,
    object: &v1::Object,
    direct: Option<&DirectAccess>,
    mut sink: impl AsyncFnMut(Bytes) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let mut hasher = blake3::Hasher::new();
    let (mut pauses, mut since): (ExponentialBackoff, _) = (backoff().build(), Instant::now());
    loop {
        let before = hasher.count();
        let Err(error) = download_rest(line, object, direct, &mut hasher, &mut sink).await else { break };
        let advanced = hasher.count() > before;
        if advanced {
            (pauses, since) = (backoff().build(), Instant::now());
        }
        // Replacing a token in its file ends downloads. The next one uses the new token, or is refused.
        let may_pass = error.may_pass(since.elapsed()) || (advanced && error.is_unauthenticated());
        match pauses.next() {
            Some(wait) if may_pass => {
                let wait = error.pause(wait);
                note(&error, wait);
                tokio::time::sleep(wait).await;
            }
            _ => return Err(error),
        }
    }
    let found = Digest { size: hasher.count(), blake3: hasher.finalize().to_hex().to_string() };
    check(object, &found)
}

async fn download_rest(
    line: &LeaderChannel,
    object: &v1::Object,
    direct: Option<&DirectAccess>,
    hasher: &mut blake3::Hasher,
    sink: &mut impl AsyncFnMut(Bytes) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let key = &object.key;
    let failed = |status| TransferError::from_status(key, status);
    let direct = direct.filter(|direct| direct.is_on());
    let message = v1::GetRequest { key: key.clone(), offset: hasher.count(), by_url: direct.is_some() };
    // The coordinator may wait for a free slot before it answers, but not for long.
    let opened = tokio::time::timeout(STALL, client(line).get(message)).await;
    let opened = opened.unwrap_or_else(|_| Err(Status::unavailable("the download does not begin")));
    let mut stream = opened.map_err(failed)?.into_inner();
    loop {
        let next = tokio::time::timeout(STALL, stream.message()).await;
        let next = next.unwrap_or_else(|_| Err(Status::unavailable("the download stands still")));
        let Some(response) = next.map_err(failed)? else { break };
        if let Some(there) = &response.object {
            check(object, &Digest::from(there))?;
        }
        if let Some(direct) = direct.filter(|_| !response.url.is_empty()) {
            read_direct(direct, &response.url, object, hasher, sink).await?;
            break;
        }
        take(response.data, object, hasher, sink).await?;
    }
    if hasher.count() == object.size {
        return Ok(());
    }
    Err(failed(Status::unavailable("the download ended early")))
}

/// Reads the rest of an object by URL. A failure of the store is one that passes: the rest then comes through
/// the coordinator.
async fn read_direct(
    direct: &DirectAccess,
    url: &str,
    object: &v1::Object,
    hasher: &mut blake3::Hasher,
    sink: &mut impl AsyncFnMut(Bytes) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let failed = |reason: String| {
        direct.fail(&reason);
        TransferError::from_status(&object.key, Status::unavailable(reason))
    };
    let mut bytes = direct.read(url, hasher.count()).await.map_err(failed)?;
    while let Some(data) = bytes.next().await.map_err(failed)? {
        take(data, object, hasher, sink).await?;
    }
    match hasher.count() == object.size {
        true => Ok(()),
        false => Err(failed("the store ended the object early".to_owned())),
    }
}

/// Passes on bytes of an object, which has no more than its size.
async fn take(
    data: Bytes,
    object: &v1::Object,
    hasher: &mut blake3::Hasher,
    sink: &mut impl AsyncFnMut(Bytes) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let size = hasher.count() + data.len() as u64;
    if size > object.size {
        return check(object, &Digest { size, blake3: "unknown".to_owned() });
    }
    sink(data.clone()).await?;
    hasher.update(&data);
    Ok(())
}

fn check(expected: &v1::Object, found: &Digest) -> Result<(), TransferError> {
    if Digest::from(expected) == *found {
        return Ok(());
    }
    let describe = |digest: &Digest| format!("{} bytes of BLAKE3 {}", digest.size, digest.blake3);
    let key = expected.key.clone();
    Err(TransferError::Corrupt { key, expected: describe(&Digest::from(expected)), found: describe(found) })
}
