//! Files that are reread when they change.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use foil_common::private::{self, Exposed};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Interval at which a file is compared with its last content.
pub(super) const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Size limit of a file.
const MAX_BYTES: u64 = 4 << 20;

/// An authentication file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Exposed(#[from] Exposed),
    #[error("{path} cannot be used: {reason}", path = path.display())]
    Invalid { path: PathBuf, reason: String },
}

/// Access permissions that a file must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    Private,
    Public,
}

/// A file or document that is reread when it changes.
#[derive(Debug)]
pub(super) struct Reading<T> {
    pub(super) path: PathBuf,
    pub(super) secrecy: Secrecy,
    pub(super) parse: fn(&str) -> Result<T, String>,
    /// Time between two checks of the file.
    pub(super) interval: Duration,
}

impl<T> Reading<T> {
    fn text(path: &Path, secrecy: Secrecy) -> Result<String, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        if secrecy == Secrecy::Private {
            private::check_private(path, &file.metadata().map_err(failed)?)?;
        }
        let mut text = String::new();
        file.by_ref().take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            let reason = format!("it is larger than {MAX_BYTES} bytes");
            return Err(ConfigError::Invalid { path: path.to_owned(), reason });
        }
        Ok(text)
    }

    fn parsed(&self, text: &str) -> Result<T, ConfigError> {
        (self.parse)(text).map_err(|reason| ConfigError::Invalid { path: self.path.clone(), reason })
    }
}

/// The current content of a file. Cheap to clone; clones see the same changes.
#[derive(Debug)]
pub(super) struct Watched<T> {
    current: Arc<RwLock<Arc<T>>>,
    /// Notified of each change.
    changes: Changes,
}

/// Notifies of changes to the credentials that callers are checked against.
pub(super) type Changes = watch::Sender<()>;

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self { current: Arc::clone(&self.current), changes: self.changes.clone() }
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the file and watches it until `stop`. Invalid content is logged, and the last valid content
    /// stays in use. Must be called within a tokio runtime.
    pub(super) fn start(
        reading: Reading<T>,
        changes: Changes,
        stop: CancellationToken,
    ) -> Result<Self, ConfigError> {
        let text = Reading::<T>::text(&reading.path, reading.secrecy)?;
        let current = Arc::new(RwLock::new(Arc::new(reading.parsed(&text)?)));
        let watched = Self { current, changes };
        tokio::spawn(stop.run_until_cancelled_owned(watched.clone().watch(reading, text)));
        Ok(watched)
    }

    pub(super) fn current(&self) -> Arc<T> {
        // The value is replaced as a whole, so a panic elsewhere cannot leave it inconsistent.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn watch(self, reading: Reading<T>, mut last: String) {
        let mut last_error = String::new();
        loop {
            tokio::time::sleep(reading.interval).await;
            let (path, secrecy) = (reading.path.clone(), reading.secrecy);
            let read = tokio::task::spawn_blocking(move || Reading::<T>::text(&path, secrecy)).await;
            let Ok(read) = read else { return };
            let reloaded = match read {
                Ok(text) if text == last => {
                    last_error.clear();
                    continue;
                }
                Ok(text) => reading.parsed(&text).map(|value| (text, value)),
                Err(error) => Err(error),
            };
            let path = reading.path.display();
            match reloaded {
                Ok((text, value)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                    self.changes.send_replace(());
                    (last, last_error) = (text, String::new());
                    tracing::info!(%path, "reloaded");
                }
                Err(error) if error.to_string() == last_error => {}
                Err(error) => {
                    last_error = error.to_string();
                    tracing::error!(%error, "cannot reload; keeping the previous contents, so that removed entries are still valid");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn number(path: &Path) -> Reading<u32> {
        let parse = |text: &str| text.trim().parse().map_err(|_| "it is no number".to_owned());
        Reading {
            path: path.to_owned(),
            secrecy: Secrecy::Private,
            parse,
            interval: Duration::from_millis(5),
        }
    }

    fn write(path: &Path, text: &str, mode: u32) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, path).unwrap();
    }

    #[tokio::test]
    async fn a_change_counts_and_a_broken_or_exposed_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, "1", 0o600);
        let stop = CancellationToken::new();
        let changes = Changes::default();
        let mut change = changes.subscribe();
        let watched = Watched::start(number(&path), changes, stop.clone()).unwrap();
        // Each rejected content is followed by an accepted one: once that is seen, the rejected one has been
        // processed.
        for (unused, mode, used) in [("x", 0o600, 2), ("9", 0o604, 3), ("", 0o600, 4)] {
            write(&path, unused, mode);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(*watched.current(), used - 1, "{unused} {mode:o}");
            write(&path, &used.to_string(), 0o640);
            change.changed().await.unwrap();
            assert_eq!(*watched.current(), used);
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn a_file_that_others_can_read_is_refused_with_the_command_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, "1", 0o644);
        let start = || Watched::start(number(&path), Changes::default(), CancellationToken::new());
        let error = start().unwrap_err().to_string();
        assert!(
            error.contains("mode 644") && error.contains(&format!("chmod 600 {}", path.display())),
            "{error}"
        );
        write(&path, "one", 0o600);
        assert!(start().unwrap_err().to_string().contains("file cannot be used: it is no number"));
        fs::remove_file(&path).unwrap();
        assert!(start().unwrap_err().to_string().contains("cannot read"));
    }
}
