//! Keys behind a URL, fetched when they are needed.

#![expect(clippy::disallowed_methods, reason = "fetched keys expire")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use foil_common::tls::PemFile;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::watched::ConfigError;
use super::keys::KeySet;

/// Minimum time between two fetches, so that tokens with invented key ids cannot cause a flood of fetches.
const MIN_INTERVAL: Duration = Duration::from_secs(30);
/// Age at which keys are fetched again, so that a key withdrawn by the issuer stops being accepted.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// Timeout of a fetch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Size limit of a set.
const MAX_BYTES: usize = 256 << 10;

/// The keys of an issuer, as last fetched.
#[derive(Debug)]
pub(super) struct RemoteKeys {
    url: String,
    /// CA certificates for the URL in place of the system's.
    ca: Option<PathBuf>,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    keys: Arc<KeySet>,
    /// When the last fetch ended, successful or not.
    tried: Option<Instant>,
    /// When the keys were fetched.
    fetched: Option<Instant>,
}

impl RemoteKeys {
    /// # Errors
    /// The CA certificates cannot be used.
    pub(super) fn new(url: &str, ca: Option<&Path>) -> Result<Self, ConfigError> {
        let keys = Self { url: url.to_owned(), ca: ca.map(Path::to_owned), cache: Mutex::default() };
        let path = keys.ca.clone().unwrap_or_else(|| url.into());
        keys.client().map_err(|reason| ConfigError::Invalid { path, reason })?;
        Ok(keys)
    }

    /// A client for one fetch, so that CA certificates may be renewed between fetches.
    fn client(&self) -> Result<Client, String> {
        // A redirect could lead to hosts that only this machine can reach.
        let mut builder = Client::builder().redirect(Policy::none()).timeout(TIMEOUT);
        if let Some(ca) = &self.ca {
            let file = PemFile::read(ca).map_err(|error| error.to_string())?;
            file.roots().map_err(|error| error.to_string())?;
            let certificates = Certificate::from_pem_bundle(file.bytes());
            builder = builder.tls_certs_only(certificates.map_err(|error| error.to_string())?);
        }
        builder.build().map_err(|error| format!("cannot fetch keys: {error}"))
    }

    /// The keys, fetched first if they are old.
    pub(super) async fn current(&self) -> Arc<KeySet> {
        let mut cache = self.cache.lock().await;
        if cache.fetched.is_none_or(|fetched| fetched.elapsed() >= MAX_AGE) {
            self.fetch(&mut cache).await;
        }
        Arc::clone(&cache.keys)
    }

    /// The keys to use after a token named one that `seen` lacks.
    pub(super) async fn newer(&self, seen: &Arc<KeySet>) -> Arc<KeySet> {
        let mut cache = self.cache.lock().await;
        // Another call may have fetched them in the meantime.
        if Arc::ptr_eq(&cache.keys, seen) {
            self.fetch(&mut cache).await;
        }
        Arc::clone(&cache.keys)
    }

    async fn fetch(&self, cache: &mut Cache) {
        if cache.tried.is_some_and(|tried| tried.elapsed() < MIN_INTERVAL) {
            return;
        }
        match self.download().await {
            Ok(keys) => {
                cache.keys = Arc::new(keys);
                cache.fetched = Some(Instant::now());
            }
            Err(problem) => {
                tracing::error!(
                    url = self.url,
                    problem,
                    "cannot fetch the issuer's keys; keeping those fetched before"
                );
            }
        }
        cache.tried = Some(Instant::now());
    }

    async fn download(&self) -> Result<KeySet, String> {
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let mut response = self.client()?.get(&self.url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("the answer is {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(format!("the answer is larger than {MAX_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        KeySet::parse(std::str::from_utf8(&body).map_err(|_| "the answer is no text".to_owned())?)
    }
}

#[cfg(test)]
impl RemoteKeys {
    /// Allows the next unknown key to trigger a fetch.
    pub(super) async fn rewind(&self) {
        self.cache.lock().await.tried = None;
    }
}
