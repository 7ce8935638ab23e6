//! Access to objects by URL: others read and write them in the backend itself, without its credentials.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use foil_proto::v1;
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};

use super::health::Ask;
use super::object::{self, Digest, SIDECAR};
use super::{Put, Store, StoreError};

/// Minimum size of a part, and maximum number of parts: each has a URL of up to two kilobytes in one message.
const MIN_PART_BYTES: u64 = 64 << 20;
const MAX_PARTS: u64 = 256;
const PARALLEL_SIGNATURES: usize = 16;

/// What a backend offers by URL.
pub struct Urls {
    signer: Arc<dyn Signer>,
    /// Uploads by parts, each of which has a URL. Azure signs no such URLs.
    uploads: Option<Arc<dyn MultipartStore>>,
}

impl fmt::Debug for Urls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Urls").field("uploads", &self.uploads.is_some()).finish_non_exhaustive()
    }
}

impl Urls {
    pub fn new(signer: Arc<dyn Signer>, uploads: Option<Arc<dyn MultipartStore>>) -> Self {
        Self { signer, uploads }
    }
}

/// An upload of an object whose parts others send by URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlUpload {
    pub id: String,
    /// Size of each part but the last.
    pub part_bytes: u64,
    /// One for each part, in order.
    pub urls: Vec<String>,
}

impl Store {
    /// A store whose objects others can access by URL.
    #[must_use]
    pub fn with_urls(mut self, urls: Urls) -> Self {
        self.urls = Some(Arc::new(urls));
        self
    }

    /// A URL by which anyone can read an object for some time; `None` if the store has no such URLs.
    pub async fn read_url(&self, key: &str, valid: Duration) -> Result<Option<String>, StoreError> {
        let Some(Urls { signer, .. }) = self.urls.as_deref() else { return Ok(None) };
        let url = signer.signed_url(Method::GET, &self.path(key)?, valid).await;
        url.map(|url| Some(url.into())).map_err(|error| self.failure("sign", key, &error))
    }

    /// Begins an upload of `size` bytes, at least 1, with URLs that are valid for some time; `None` if the
    /// store takes no uploads by URL.
    pub async fn begin_url_upload(
        &self,
        key: &str,
        size: u64,
        valid: Duration,
    ) -> Result<Option<UrlUpload>, StoreError> {
        let Some(Urls { signer, uploads: Some(uploads) }) = self.urls.as_deref() else { return Ok(None) };
        object::check_key(key)?;
        let create = |path: Path| async move { uploads.create_multipart(&path).await };
        let id = self.with_retries("put", Ask::write(key, 0), create).await?;
        let part_bytes = size.div_ceil(MAX_PARTS).max(MIN_PART_BYTES);
        let path = self.path(key)?;
        let sign = |number: u64| {
            let query = [("partNumber", number.to_string()), ("uploadId", id.clone())];
            let options = SignedUrlOptions::new().with_query(query);
            let path = &path;
            async move { signer.signed_url_opts(Method::PUT, path, valid, &options).await.map(String::from) }
        };
        // A provider may sign by a request.
        let signed =
            futures::stream::iter(1..=size.div_ceil(part_bytes)).map(sign).buffered(PARALLEL_SIGNATURES);
        let urls = match signed.try_collect::<Vec<String>>().await {
            Ok(urls) => urls,
            Err(error) => {
                self.abort_url_upload(key, &id).await;
                return Err(self.failure("sign", key, &error));
            }
        };
        Ok(Some(UrlUpload { id, part_bytes, urls }))
    }

    /// Makes the object of a complete upload exist, as [`super::object::ObjectWriter::finish`] does; it is
    /// durable when this returns. Its size is verified, its hash is not. `None` if it is not wanted any
    /// more once all bytes are there.
    pub async fn finish_url_upload(
        &self,
        key: &str,
        announced: &Digest,
        id: &str,
        etags: Vec<String>,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<Option<v1::Object>, StoreError> {
        object::check_key(key)?;
        let Some(Urls { uploads: Some(uploads), .. }) = self.urls.as_deref() else { return Ok(None) };
        let _only_one = self.lock(key).await;
        match self.digest(key).await {
            Ok(existing) => {
                self.abort_url_upload(key, id).await;
                return object::agreed(key, existing, announced.clone()).map(Some);
            }
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let parts = etags.into_iter().map(|content_id| PartId { content_id }).collect();
        let completed = uploads.complete_multipart(&self.path(key)?, &id.to_owned(), parts).await;
        match self.sent_part(key, announced.size, completed) {
            // If the reply to an earlier try was lost, there is no upload any more, but the object.
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let size = self.size(key).await?;
        if size != announced.size {
            self.delete(key).await?;
            let (expected, found) = (announced.describe(), format!("{size} bytes"));
            return Err(StoreError::Mismatch { key: key.to_owned(), expected, found });
        }
        if !is_wanted() {
            return Ok(None);
        }
        match self.create(&format!("{key}{SIDECAR}"), announced.sidecar()).await? {
            Put::Created => Ok(Some(announced.clone().object(key))),
            Put::Exists => object::agreed(key, self.digest(key).await?, announced.clone()).map(Some),
        }
    }

    /// Removes an unfinished upload; a failure is logged.
    pub async fn abort_url_upload(&self, key: &str, id: &str) {
        let Some(Urls { uploads: Some(uploads), .. }) = self.urls.as_deref() else { return };
        let Ok(path) = self.path(key) else { return };
        if let Err(error) = uploads.abort_multipart(&path, &id.to_owned()).await {
            let error = self.failure("delete", key, &error);
            tracing::warn!(key, %error, "cannot remove an unfinished upload");
        }
    }
}
