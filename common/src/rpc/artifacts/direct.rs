//! Access to the store itself, by the URLs that the coordinator gives.

use std::io::{self, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::BackoffBuilder;
use bytes::Bytes;
use futures::StreamExt;
use reqwest::header::{CONTENT_LENGTH, ETAG, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Body, StatusCode};
use tokio::fs::File;
use tokio::io::AsyncSeekExt;
use tokio::time::{Instant, timeout};

use super::{Moved, file_chunks, followed};

/// Timeout of a connection to the store. A network that does not lead to it drops packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time without a byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of retries of a part, and timeout of each try.
const PART_RETRIES: usize = 4;
const PART_TIMEOUT: Duration = Duration::from_secs(900);
/// Time after a failure during which objects go through the coordinator.
const PAUSE: Duration = Duration::from_secs(600);

/// Reads and writes objects by URL. After a failure, it pauses: the store may be out of this process's reach.
#[derive(Debug)]
pub struct DirectAccess {
    /// None if no client could be made, for example without root certificates.
    http: Option<reqwest::Client>,
    failed_at: Mutex<Option<Instant>>,
}

impl Default for DirectAccess {
    fn default() -> Self {
        let http = reqwest::Client::builder()
            // A URL is signed for one object; its store does not redirect.
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .build();
        let http = http.map_err(|error| tracing::warn!(%error, "objects go through the coordinator only"));
        Self { http: http.ok(), failed_at: Mutex::default() }
    }
}

impl DirectAccess {
    /// Whether to ask for URLs.
    pub(super) fn is_on(&self) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.http.is_some() && failed_at.is_none_or(|since| since.elapsed() >= PAUSE)
    }

    /// Pauses after a failure.
    pub(super) fn fail(&self, reason: &str) {
        tracing::warn!(
            reason,
            seconds = PAUSE.as_secs(),
            "cannot reach the store itself; objects go through the coordinator for a while"
        );
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The bytes of an object from `offset` on. Errors do not hold the URL, which is a secret.
    pub(super) async fn read(&self, url: &str, offset: u64) -> Result<DirectBytes, String> {
        let http = self.http.as_ref().ok_or("there is no client")?;
        let request = http.get(url).header(RANGE, format!("bytes={offset}-"));
        let response = timeout(IDLE_TIMEOUT, request.send()).await;
        let response =
            response.map_err(|_| "the store does not answer".to_owned())?.map_err(told_without_url)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if offset == 0 => {}
            status => return Err(format!("the store answered {status}")),
        }
        Ok(DirectBytes(response))
    }
}

/// A part of an object that was not sent.
pub(super) enum NotSent {
    /// The store does not take it.
    Store(String),
    File(io::Error),
}

impl DirectAccess {
    /// Sends bytes `[start, start + length)` of a file to the URL of a part; returns the part's ETag. The
    /// store verifies the part by its MD5 in base64.
    pub(super) async fn send_part(
        &self,
        url: &str,
        path: &Path,
        (start, length, md5): (u64, u64, &str),
        moved: &Moved,
    ) -> Result<String, NotSent> {
        let http = self.http.as_ref().ok_or_else(|| NotSent::Store("there is no client".to_owned()))?;
        let told = Arc::default();
        let mut pauses = super::backoff().with_max_times(PART_RETRIES).build();
        loop {
            let mut file = File::open(path).await.map_err(NotSent::File)?;
            file.seek(SeekFrom::Start(start)).await.map_err(NotSent::File)?;
            let trouble = Arc::default();
            let bytes = followed(file_chunks(file, length, Arc::clone(&trouble)), moved, &told);
            let request = http
                .put(url)
                .header(CONTENT_LENGTH, length)
                .header("content-md5", md5)
                .timeout(PART_TIMEOUT)
                .body(Body::wrap_stream(bytes.map(Ok::<_, io::Error>)));
            let answer = request.send().await;
            if let Some(error) = trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(NotSent::File(error));
            }
            let (reason, may_pass) = match answer {
                Ok(response) if response.status().is_success() => {
                    let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
                    let etag = etag.map(str::to_owned);
                    return etag
                        .ok_or_else(|| NotSent::Store("the store answered without an ETag".to_owned()));
                }
                Ok(response) => {
                    let status = response.status();
                    let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                    (format!("the store answered {status}"), may_pass)
                }
                Err(error) => (told_without_url(error), true),
            };
            match pauses.next().filter(|_| may_pass) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(NotSent::Store(reason)),
            }
        }
    }
}

/// Bytes of an object that arrive from the store.
pub(super) struct DirectBytes(reqwest::Response);

impl DirectBytes {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let next = timeout(IDLE_TIMEOUT, self.0.chunk()).await;
        next.map_err(|_| "the store sends nothing more".to_owned())?.map_err(told_without_url)
    }
}

/// An error with its causes, without the URL.
fn told_without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
