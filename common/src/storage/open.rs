//! Opens a store by URL or directory.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::error::reason;
use super::{Store, StoreError, Urls};
use crate::{private, redact};

const KINDS: &str = "give a directory, or a URL of the form s3://bucket/prefix, gs://bucket/prefix, \
                     az://container/prefix, file:///directory or memory:///";

impl Store {
    /// Opens a store: a directory (created if it is missing), `file://`, `memory://` (lost at exit), `s3://`,
    /// `gs://` or `az://`. Cloud credentials come from the environment, under each provider's usual names.
    ///
    /// A local store syncs every file and its directory before a write is acknowledged.
    pub fn open(url_or_directory: &str) -> Result<Self, StoreError> {
        if !url_or_directory.contains("://") {
            return open_directory(FsPath::new(url_or_directory));
        }
        let fail = |reason: String, advice| StoreError::Open {
            location: redact::secrets(url_or_directory).into_owned(),
            reason: redact::secrets(&reason).into_owned(),
            advice,
        };
        let url = Url::parse(url_or_directory).map_err(|error| fail(error.to_string(), KINDS))?;
        let (scheme, prefix) =
            ObjectStoreScheme::parse(&url).map_err(|error| fail(error.to_string(), KINDS))?;
        let credentials = |error: object_store::Error| {
            fail(reason(&error), "check the URL and the provider's credentials in the environment")
        };
        let mut is_ordered = true;
        let (inner, urls): (Arc<dyn ObjectStore>, Option<Urls>) = match scheme {
            ObjectStoreScheme::Local => {
                let path =
                    url.to_file_path().map_err(|()| fail("it names no local directory".into(), KINDS))?;
                return open_directory(&path);
            }
            ObjectStoreScheme::Memory => (Arc::new(InMemory::new()), None),
            ObjectStoreScheme::AmazonS3 => {
                let builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_retry(inner_retries());
                let value = |key| builder.get_config_value(&key);
                let allowed = value(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
                check_endpoint(value(AmazonS3ConfigKey::Endpoint), allowed)
                    .map_err(|reason| fail(reason, "set AWS_ALLOW_HTTP=true on a network that you trust"))?;
                // A directory bucket.
                is_ordered = value(AmazonS3ConfigKey::S3Express).as_deref() != Some("true");
                let backend = Arc::new(builder.build().map_err(credentials)?);
                let urls = Urls::new(Arc::clone(&backend) as _, Some(Arc::clone(&backend) as _));
                (backend, Some(urls))
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let builder =
                    GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).with_retry(inner_retries());
                let backend = Arc::new(builder.build().map_err(credentials)?);
                let urls = Urls::new(Arc::clone(&backend) as _, Some(Arc::clone(&backend) as _));
                (backend, Some(urls))
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let builder =
                    MicrosoftAzureBuilder::from_env().with_url(url.as_str()).with_retry(inner_retries());
                let value = |key| builder.get_config_value(&key);
                let allowed = value(AzureConfigKey::Client(ClientConfigKey::AllowHttp));
                check_endpoint(value(AzureConfigKey::Endpoint), allowed).map_err(|reason| {
                    fail(reason, "set AZURE_ALLOW_HTTP=true on a network that you trust")
                })?;
                let backend = Arc::new(builder.build().map_err(credentials)?);
                let urls = Urls::new(Arc::clone(&backend) as _, None);
                (backend, Some(urls))
            }
            _ => return Err(fail(format!("{:?} is not a kind of store Foil knows", url.scheme()), KINDS)),
        };
        let mut store = Self::new(inner, prefix, redact::secrets(url_or_directory).into_owned());
        if let Some(urls) = urls {
            store = store.with_urls(urls);
        }
        Ok(if is_ordered { store } else { store.unordered() })
    }
}

/// Refuses an endpoint without TLS, unless it is allowed: the provider's client would refuse it only at the
/// first request, and without a reason.
fn check_endpoint(endpoint: Option<String>, allowed: Option<String>) -> Result<(), String> {
    let is_plain = |url: &String| url.trim().to_lowercase().starts_with("http://");
    let is_allowed = allowed.is_some_and(|allowed| matches!(allowed.to_lowercase().as_str(), "true" | "1"));
    match endpoint.filter(is_plain) {
        Some(endpoint) if !is_allowed => {
            Err(format!("its endpoint {} is not encrypted", redact::secrets(&endpoint)))
        }
        _ => Ok(()),
    }
}

/// Retries of the provider's client, which handles throttling (Retry-After); longer failures are retried by
/// [`Store`].
fn inner_retries() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() }
}

fn open_directory(directory: &FsPath) -> Result<Store, StoreError> {
    let fail = |reason: String| StoreError::Open {
        location: directory.display().to_string(),
        reason,
        advice: "give a directory that this user may write to",
    };
    if directory.as_os_str().is_empty() {
        return Err(fail("the name is empty".into()));
    }
    let absolute = std::path::absolute(directory).map_err(|error| fail(error.to_string()))?;
    if absolute.metadata().is_ok_and(|found| !found.is_dir()) {
        return Err(fail("it is a file, not a directory".into()));
    }
    make_directory(&absolute).map_err(|error| fail(error.to_string()))?;
    let inner = LocalFileSystem::new_with_prefix(&absolute).map_err(|error| fail(error.to_string()))?;
    let location = absolute.display().to_string();
    Ok(Store::new(Arc::new(inner.with_fsync(true)), Path::default(), location).unordered())
}

/// Creates a directory and its missing parents, and syncs the directories whose entries changed.
fn make_directory(directory: &FsPath) -> io::Result<()> {
    let missing: Vec<PathBuf> =
        directory.ancestors().take_while(|path| !path.exists()).map(FsPath::to_path_buf).collect();
    private::make_directory(directory)?;
    for made in &missing {
        if let Some(parent) = made.parent() {
            fs::File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_created_with_its_parents() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        let store = Store::open(path.to_str().unwrap()).unwrap();
        store.create("x/y", "hello").await.unwrap();
        assert_eq!(fs::read(path.join("x/y")).unwrap(), b"hello");
    }

    #[test]
    fn errors_say_what_to_give_instead() {
        let unknown = Store::open("ftp://host/x").unwrap_err().to_string();
        assert!(unknown.contains("s3://bucket/prefix"), "{unknown}");
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        let not_a_directory = Store::open(file.to_str().unwrap()).unwrap_err().to_string();
        assert!(not_a_directory.contains("may write to"), "{not_a_directory}");
        assert!(not_a_directory.contains("it is a file"), "{not_a_directory}");
    }

    #[test]
    fn an_endpoint_without_tls_is_allowed_by_name() {
        let check = |endpoint: &str, allowed: Option<&str>| {
            check_endpoint(Some(endpoint.to_owned()), allowed.map(str::to_owned))
        };
        assert!(check("http://minio:9000", None).unwrap_err().contains("http://minio:9000"));
        check("http://minio:9000", Some("false")).unwrap_err();
        check("http://minio:9000", Some("true")).unwrap();
        check("https://minio:9000", None).unwrap();
        check_endpoint(None, None).unwrap();
    }

    #[test]
    fn secrets_reach_neither_the_location_nor_an_error() {
        let store = Store::open("memory:///x?sig=S4STOKEN").unwrap();
        assert_eq!(store.location(), "memory:///x?…");
        for wrong in
            ["ftp://key:S4STOKEN@host/x?sig=S4STOKEN", "s3://key:S4STOKEN@/?sig=S4STOKEN", "://?S4STOKEN"]
        {
            let Err(error) = Store::open(wrong) else { continue };
            assert!(!format!("{error} {error:?}").contains("S4STOKEN"), "{error}");
        }
    }
}
