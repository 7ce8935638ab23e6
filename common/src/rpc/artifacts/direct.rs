//! Reading objects from the store itself, by the URLs that the coordinator gives.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::RANGE;
use reqwest::redirect::Policy;
use tokio::time::Instant;

/// Timeout of a connection to the store. A network that does not lead to it drops packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time without a byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after a failure during which objects are read through the coordinator.
const PAUSE: Duration = Duration::from_secs(600);

/// Reads objects by URL. After a failure, it pauses: the store may be out of this process's reach.
#[derive(Debug)]
pub struct DirectReads {
    /// None if no client could be made, for example without root certificates.
    http: Option<reqwest::Client>,
    failed_at: Mutex<Option<Instant>>,
}

impl Default for DirectReads {
    fn default() -> Self {
        let http = reqwest::Client::builder()
            // The URL is signed for one object; its store does not redirect.
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(IDLE_TIMEOUT)
            .build();
        let http =
            http.map_err(|error| tracing::warn!(%error, "objects are read through the coordinator only"));
        Self { http: http.ok(), failed_at: Mutex::default() }
    }
}

impl DirectReads {
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
            "cannot read from the store itself; reading through the coordinator for a while"
        );
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The bytes of an object from `offset` on. Errors do not hold the URL, which is a secret.
    pub(super) async fn read(&self, url: &str, offset: u64) -> Result<DirectBytes, String> {
        let http = self.http.as_ref().ok_or("there is no client")?;
        let request = http.get(url).header(RANGE, format!("bytes={offset}-"));
        let response = request.send().await.map_err(told)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if offset == 0 => {}
            status => return Err(format!("the store answered {status}")),
        }
        Ok(DirectBytes(response))
    }
}

/// Bytes of an object that arrive from the store.
pub(super) struct DirectBytes(reqwest::Response);

impl DirectBytes {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        self.0.chunk().await.map_err(told)
    }
}

/// An error with its causes, without the URL.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
