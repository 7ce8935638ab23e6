//! Hashed objects: immutable files of any size, identified by size and BLAKE3.
//!
//! An object is its key and a small sidecar `{key}.b3` with its size and hash. The bytes are hashed while
//! they stream to an invisible place; only when they are complete and correct do they appear under the key
//! (by one put, or the completion of a multipart upload), and then the sidecar is created. The sidecar makes
//! the object exist: a crash before it leaves bytes that were never acknowledged, which the next writer of
//! the key replaces.
//!
//! Writers of one key in one process are serialized at that last step, and the first one's content stays. Two
//! processes do not write the same key with different content: keys contain a content hash or an attempt.

use bytes::{Bytes, BytesMut};
use foil_proto::v1;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStoreExt, WriteMultipart};
use serde::Deserialize;

use super::{ByteStream, Put, Store, StoreError};

/// Suffix of a sidecar's name, which no object's own key may have.
pub const SIDECAR: &str = ".b3";

/// Objects up to this size are buffered and written in one request; larger ones are uploaded in parts of this
/// size.
const PART_BYTES: usize = 8 << 20;

/// Number of parts in flight while the next one fills.
const PARTS_IN_FLIGHT: usize = 1;

/// An object's size in bytes and its BLAKE3 in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Digest {
    pub size: u64,
    pub blake3: String,
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }

    /// The object with this digest under `key`, with an empty path.
    pub fn object(self, key: &str) -> v1::Object {
        v1::Object { key: key.to_owned(), size: self.size, blake3: self.blake3, path: String::new() }
    }

    pub(super) fn sidecar(&self) -> String {
        format!("{{\"size\":{},\"blake3\":\"{}\"}}\n", self.size, self.blake3)
    }

    pub(super) fn describe(&self) -> String {
        format!("{} bytes of BLAKE3 {}", self.size, self.blake3)
    }
}

impl From<&v1::Object> for Digest {
    fn from(object: &v1::Object) -> Self {
        Self { size: object.size, blake3: object.blake3.clone() }
    }
}

impl Store {
    /// Size and hash of an object; [`StoreError::NotFound`] if it was never finished.
    pub async fn stat_object(&self, key: &str) -> Result<v1::Object, StoreError> {
        Ok(self.digest(key).await?.object(key))
    }

    /// Deletes an unreferenced object; a missing one is fine. Readers stop seeing it as soon as the deletion
    /// starts.
    pub async fn delete_object(&self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        self.delete(&format!("{key}{SIDECAR}")).await?;
        self.delete(key).await
    }

    /// Renews an object's age by writing its sidecar again with the same bytes.
    pub async fn touch_object(&self, key: &str) -> Result<(), StoreError> {
        let digest = self.digest(key).await?;
        self.overwrite(&format!("{key}{SIDECAR}"), digest.sidecar().into()).await
    }

    /// Removes an object whose sidecar or bytes do not have this digest; true if there was one. Only for keys
    /// that determine their content.
    pub async fn remove_unless(&self, key: &str, digest: &Digest) -> Result<bool, StoreError> {
        match self.has(key, digest).await {
            Ok(true) | Err(StoreError::NotFound { .. }) => return Ok(false),
            Ok(false) => {}
            Err(error) => return Err(error),
        }
        let _only_one = self.lock(key).await;
        // Another writer may have repaired it in the meantime.
        match self.has(key, digest).await {
            Ok(true) | Err(StoreError::NotFound { .. }) => Ok(false),
            Ok(false) => self.delete_object(key).await.map(|()| true),
            Err(error) => Err(error),
        }
    }

    /// Whether both the sidecar and the bytes of an object have this digest.
    async fn has(&self, key: &str, digest: &Digest) -> Result<bool, StoreError> {
        match self.digest(key).await {
            Ok(recorded) if recorded == *digest => {}
            Ok(_) | Err(StoreError::Corrupt { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        let (size, mut bytes) = match self.stream(key, 0).await {
            // Only the sidecar exists.
            Err(StoreError::NotFound { .. }) => return Ok(false),
            read => read?,
        };
        if size != digest.size {
            return Ok(false);
        }
        let mut hasher = blake3::Hasher::new();
        while let Some(bytes) = bytes.next().await {
            hasher.update(&bytes?);
        }
        Ok(hasher.finalize().to_hex().as_str() == digest.blake3)
    }

    /// Writes an object. The same content again is fine; other content is [`StoreError::Conflict`].
    pub async fn put_object(&self, key: &str, bytes: Bytes) -> Result<v1::Object, StoreError> {
        let mut writer = self.write_object(key, Digest::of(&bytes)).await?;
        writer.write(bytes).await?;
        writer.finish().await
    }

    /// Starts writing an object of announced size and hash.
    pub async fn write_object(&self, key: &str, announced: Digest) -> Result<ObjectWriter, StoreError> {
        check_key(key)?;
        let sink = if announced.size <= PART_BYTES as u64 {
            Sink::Whole(BytesMut::new())
        } else {
            let upload = self.backend().put_multipart(&self.path(key)?).await;
            let upload = match upload {
                Ok(upload) => upload,
                refused => self.sent_part(key, announced.size, refused)?,
            };
            Sink::Parts(WriteMultipart::new_with_chunk_size(upload, PART_BYTES))
        };
        let hasher = blake3::Hasher::new();
        Ok(ObjectWriter { store: self.clone(), key: key.to_owned(), announced, written: 0, hasher, sink })
    }

    /// Reads an object that fits in memory, and verifies its hash.
    pub async fn read_object(&self, object: &v1::Object) -> Result<Bytes, StoreError> {
        let bytes = self.get(&object.key).await?;
        let (expected, found) = (Digest::from(object), Digest::of(&bytes));
        if expected == found {
            return Ok(bytes);
        }
        metrics::counter!("foil_object_verify_failures_total").increment(1);
        Err(StoreError::Corrupt {
            key: object.key.clone(),
            expected: expected.describe(),
            found: found.describe(),
        })
    }

    /// Verifies the hash of an object of any size.
    pub async fn verify_object(&self, object: &v1::Object) -> Result<(), StoreError> {
        let (size, mut stream) = self.stream(&object.key, 0).await?;
        let mut hasher = blake3::Hasher::new();
        while let Some(bytes) = stream.try_next().await? {
            hasher.update(&bytes);
        }
        let (expected, found) =
            (Digest::from(object), Digest { size, blake3: hasher.finalize().to_hex().to_string() });
        if expected == found {
            return Ok(());
        }
        metrics::counter!("foil_object_verify_failures_total").increment(1);
        let (expected, found) = (expected.describe(), found.describe());
        Err(StoreError::Corrupt { key: object.key.clone(), expected, found })
    }

    /// An object and its bytes from `offset` on. They are not verified; a reader that starts at 0 can do so.
    pub async fn stream_object(
        &self,
        key: &str,
        offset: u64,
    ) -> Result<(v1::Object, ByteStream), StoreError> {
        let object = self.stat_object(key).await?;
        let (size, stream) = self.stream(key, offset).await?;
        if size == object.size {
            return Ok((object, stream));
        }
        let (expected, found) = (format!("{} bytes", object.size), format!("{size} bytes"));
        Err(StoreError::Corrupt { key: key.to_owned(), expected, found })
    }

    pub(super) async fn digest(&self, key: &str) -> Result<Digest, StoreError> {
        check_key(key)?;
        let sidecar = format!("{key}{SIDECAR}");
        let bytes = self.get(&sidecar).await.map_err(|error| match error {
            StoreError::NotFound { location, .. } => StoreError::NotFound { location, key: key.to_owned() },
            other => other,
        })?;
        serde_json::from_slice(&bytes).map_err(|error| StoreError::Corrupt {
            key: sidecar,
            expected: "a size and a hash in JSON".to_owned(),
            found: error.to_string(),
        })
    }
}

pub(super) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.ends_with(SIDECAR) {
        let reason = "an object's key must not end in .b3";
        return Err(StoreError::BadKey { key: key.to_owned(), reason });
    }
    super::key::validate(key)
}

enum Sink {
    Whole(BytesMut),
    Parts(WriteMultipart),
}

/// A write of an object in progress; it is invisible before [`Self::finish`]. Dropping it aborts the write.
pub struct ObjectWriter {
    store: Store,
    key: String,
    announced: Digest,
    written: u64,
    hasher: blake3::Hasher,
    sink: Sink,
}

impl ObjectWriter {
    /// Writes the next bytes. Buffers at most two parts.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        if self.written > self.announced.size {
            return Err(self.mismatch(format!("more than {} bytes", self.announced.size)));
        }
        self.hasher.update(&bytes);
        match &mut self.sink {
            Sink::Whole(buffer) => buffer.extend_from_slice(&bytes),
            Sink::Parts(parts) => {
                let room = parts.wait_for_capacity(PARTS_IN_FLIGHT).await;
                if room.is_err() {
                    self.store.sent_part(&self.key, self.announced.size, room)?;
                }
                parts.put(bytes);
            }
        }
        Ok(())
    }

    /// Verifies size and hash and makes the object exist; it is durable when this returns.
    pub async fn finish(self) -> Result<v1::Object, StoreError> {
        let found = Digest { size: self.written, blake3: self.hasher.finalize().to_hex().to_string() };
        if found != self.announced {
            let error = self.mismatch(found.describe());
            self.abandon().await;
            return Err(error);
        }
        let (store, key) = (self.store.clone(), self.key.clone());
        let _only_one = store.lock(&key).await;
        match store.digest(&key).await {
            Ok(existing) => {
                self.abandon().await;
                return agreed(&key, existing, found);
            }
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.sink {
            Sink::Whole(buffer) => store.overwrite(&key, buffer.freeze()).await?,
            Sink::Parts(parts) => {
                store.sent_part(&key, found.size, parts.finish().await)?;
            }
        }
        match store.create(&format!("{key}{SIDECAR}"), found.sidecar()).await? {
            Put::Created => Ok(found.object(&key)),
            Put::Exists => agreed(&key, store.digest(&key).await?, found),
        }
    }

    /// Removes what was written so far.
    pub async fn abandon(self) {
        if let Sink::Parts(parts) = self.sink
            && let Err(error) = parts.abort().await
        {
            tracing::warn!(key = %self.key, %error, "cannot remove an unfinished upload");
        }
    }

    fn mismatch(&self, found: String) -> StoreError {
        StoreError::Mismatch { key: self.key.clone(), expected: self.announced.describe(), found }
    }
}

pub(super) fn agreed(key: &str, existing: Digest, offered: Digest) -> Result<v1::Object, StoreError> {
    if existing == offered {
        return Ok(existing.object(key));
    }
    Err(StoreError::Conflict { key: key.to_owned(), existing: existing.blake3, offered: offered.blake3 })
}
