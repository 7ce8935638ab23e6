//! Data files named by URL. The client reads them with its user's credentials and uploads the content. A
//! coordinator never opens a job's URL: its credentials may give access to data that the job's tenant must
//! not read, and its network to hosts that the tenant cannot reach.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use foil_common::redact;
use foil_common::spec::{self, InputRef};
use foil_common::storage::{RemoteFile, StoreError};
use futures::StreamExt;
use reqwest::redirect::{Attempt, Policy};
use tempfile::TempDir;
use thiserror::Error;
use url::Url;

use super::progress::Progress;

/// Largest file, in bytes.
const FILE_LIMIT: u64 = 64 << 30;
/// Maximum number of files that match a pattern.
const FILES: usize = 10_000;
/// Maximum number of redirections.
const REDIRECTIONS: usize = 5;
/// Time without a byte after which a download has failed.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    #[error("{field}: {url}: {reason}")]
    Url { field: &'static str, url: String, reason: String },
    #[error("{field}: {fault}")]
    Store { field: &'static str, fault: StoreError },
    #[error("cannot store the download: {0}")]
    Local(#[from] std::io::Error),
}

/// Downloads the data files that a job names by URL, and replaces the URLs with the copies. They exist as
/// long as the returned directory.
pub(crate) async fn fetch(job: &mut spec::Job, progress: &Progress) -> Result<Option<TempDir>, RemoteError> {
    let is_url = |input: &InputRef| matches!(input, InputRef::Url(_));
    if !job.data.inputs().into_iter().any(|(_, input)| is_url(input)) {
        return Ok(None);
    }
    let directory = tempfile::Builder::new().prefix("foil-inputs-").tempdir()?;
    let mut known: HashMap<String, Vec<InputRef>> = HashMap::new();
    for (set, sources) in job.data.sources_mut() {
        for source in sources {
            let mut inputs = Vec::with_capacity(source.inputs.len());
            for input in std::mem::take(&mut source.inputs) {
                let InputRef::Url(url) = &input else {
                    inputs.push(input);
                    continue;
                };
                if !known.contains_key(url) {
                    let at = directory.path().join(known.len().to_string());
                    let download = Download { field: set.field(), url, directory: &at };
                    let files = download.run(progress).await?;
                    let files =
                        files.into_iter().map(|file| InputRef::Path(file.to_string_lossy().into_owned()));
                    known.insert(url.clone(), files.collect());
                }
                inputs.extend(known.get(url).into_iter().flatten().cloned());
            }
            source.inputs = inputs;
        }
    }
    Ok(Some(directory))
}

/// A URL to download.
struct Download<'a> {
    field: &'static str,
    url: &'a str,
    directory: &'a Path,
}

impl Download<'_> {
    fn refuse(&self, reason: impl Into<String>) -> RemoteError {
        let (url, reason) = (redact::secrets(self.url).into_owned(), reason.into());
        RemoteError::Url { field: self.field, url, reason: redact::secrets(&reason).into_owned() }
    }

    async fn run(&self, progress: &Progress) -> Result<Vec<PathBuf>, RemoteError> {
        std::fs::create_dir_all(self.directory)?;
        match self.url.starts_with("https://") {
            true => Ok(vec![self.web_page(progress).await?]),
            false => self.objects(progress).await,
        }
    }

    /// The objects that the URL names.
    async fn objects(&self, progress: &Progress) -> Result<Vec<PathBuf>, RemoteError> {
        let failed = |fault| RemoteError::Store { field: self.field, fault };
        let found = RemoteFile::find(self.url).await.map_err(failed)?;
        if found.len() > FILES {
            return Err(self.refuse(format!("more than {FILES} objects fit the pattern")));
        }
        let mut files = Vec::with_capacity(found.len());
        for object in found {
            let name = object.name();
            let path = self.directory.join(name);
            let (size, mut bytes) = object.stream().await.map_err(failed)?;
            if size > FILE_LIMIT {
                return Err(self.refuse(format!("{name} is larger than {} GiB", FILE_LIMIT >> 30)));
            }
            let mut file = std::fs::File::create_new(&path)?;
            let bar = progress.bytes(&format!("reading {name}"), size);
            while let Some(chunk) = bytes.next().await {
                let chunk = chunk.map_err(failed)?;
                file.write_all(&chunk)?;
                bar.inc(chunk.len() as u64);
            }
            bar.finish_and_clear();
            files.push(path);
        }
        Ok(files)
    }

    /// A file on a web server. The only credentials sent are those in the URL itself.
    async fn web_page(&self, progress: &Progress) -> Result<PathBuf, RemoteError> {
        let url = Url::parse(self.url).map_err(|error| self.refuse(format!("it is no URL ({error})")))?;
        let name = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
        let name: String =
            name.chars().filter(|letter| letter.is_alphanumeric() || "._-".contains(*letter)).collect();
        if name.trim_matches('.').is_empty() {
            return Err(self.refuse("its path names no file"));
        }
        let failed = |error: reqwest::Error| self.refuse(causes(&error.without_url()));
        let client = reqwest::Client::builder().redirect(Policy::custom(follow)).read_timeout(IDLE);
        let client = client.connect_timeout(IDLE).build().map_err(failed)?;
        let mut response = client.get(url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(self.refuse(format!("the server answers {}", response.status())));
        }
        let path = self.directory.join(&name);
        let mut file = std::fs::File::create_new(&path)?;
        let expected = response.content_length();
        let bar = progress.bytes(&format!("reading {name}"), expected.unwrap_or(0));
        let mut size = 0;
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            size += chunk.len() as u64;
            if size > FILE_LIMIT {
                return Err(self.refuse(format!("it is larger than {} GiB", FILE_LIMIT >> 30)));
            }
            file.write_all(&chunk)?;
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        match expected {
            Some(expected) if expected != size => {
                Err(self.refuse(format!("the server sent {size} of {expected} bytes; try again")))
            }
            _ => Ok(path),
        }
    }
}

/// Follows redirections only if they are encrypted.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    match redirection(attempt.url(), attempt.previous().len()) {
        Ok(()) => attempt.follow(),
        Err(reason) => attempt.error(reason),
    }
}

fn redirection(to: &Url, before: usize) -> Result<(), &'static str> {
    if to.scheme() != "https" {
        return Err("the server redirects to a URL that is not https");
    }
    if before > REDIRECTIONS { Err("the server redirects too often") } else { Ok(()) }
}

/// An error with its causes, of which only the last one says what is wrong.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encrypted_redirections_are_followed() {
        let to = |url: &str, before| redirection(&Url::parse(url).unwrap(), before);
        assert_eq!(to("https://other.example/x", 5), Ok(()));
        assert!(to("http://example.com/x", 1).unwrap_err().contains("not https"));
        assert!(to("https://example.com/x", 6).unwrap_err().contains("too often"));
    }

    #[tokio::test]
    async fn faults_name_the_field_and_the_url_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let fault = async |url: &str| {
            let download = Download { field: "data.golden", url, directory: &dir.path().join("0") };
            download.run(&Progress::new(true)).await.unwrap_err().to_string()
        };
        for (url, what) in [
            ("s3://bucket", "names no object"),
            ("s3://bucket/", "names no object"),
            ("s3://bucket/a/", "names no object"),
            ("https://host.invalid/", "names no file"),
            ("https://", "it is no URL"),
            ("https://user:S4SECRET@host.invalid/x.jsonl?sig=S4SECRET", "error sending request"),
        ] {
            let message = fault(url).await;
            assert!(message.starts_with("data.golden: ") && message.contains(what), "{message}");
            assert!(!message.contains("S4SECRET"), "{message}");
        }
    }
}
