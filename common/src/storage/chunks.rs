//! Reads an object's bytes in large pieces.

use std::io::{self, SeekFrom};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::{GetResult, GetResultPayload};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Size of reads from a file.
const CHUNK_BYTES: usize = 1 << 20;

/// Buffer size for an object of this size: most are small, and a large buffer for each would fragment the
/// heap.
fn chunk_bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(CHUNK_BYTES).clamp(1, CHUNK_BYTES)
}

/// The bytes of a result in large chunks. object_store itself reads files in pieces of 8 KiB, each on another
/// thread.
pub(super) fn large_chunks(answer: GetResult) -> BoxStream<'static, object_store::Result<Bytes>> {
    let range = answer.range.clone();
    match answer.payload {
        GetResultPayload::File(file, path) => {
            let fail = move |source: io::Error| object_store::Error::Generic {
                store: "LocalFileSystem",
                source: format!("{}: {source}", path.display()).into(),
            };
            let chunks = async move {
                let mut file = tokio::fs::File::from_std(file);
                file.seek(SeekFrom::Start(range.start)).await?;
                let size = range.end - range.start;
                Ok::<_, io::Error>(ReaderStream::with_capacity(file.take(size), chunk_bytes(size)))
            };
            futures::stream::once(chunks).try_flatten().map_err(fail).boxed()
        }
        GetResultPayload::Stream(bytes) => bytes,
    }
}
