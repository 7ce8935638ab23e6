//! Checks of the store: create once, read and delete, and how long each takes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foil_common::storage::{Put, Store, StoreError};
use ulid::Ulid;

use super::finding::Finding;
use super::host;

const CHECK: &str = "store";
/// Time limit of all requests together.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A slower write holds up every submission and every commit.
const SLOW: Duration = Duration::from_secs(1);

pub(super) async fn check(location: &str) -> Vec<Finding> {
    let directory = local_directory(location);
    if let Some(directory) = directory.as_deref().filter(|directory| !directory.exists()) {
        let message = format!("{} does not exist yet; `foil serve` makes it", directory.display());
        return vec![Finding::skip(CHECK, message)];
    }
    let store = match Store::open(location) {
        Ok(store) => store,
        Err(error) => return vec![Finding::error(CHECK, error)],
    };
    let tried = tokio::time::timeout(TIMEOUT, try_requests(&store)).await;
    let mut findings = vec![match tried {
        Ok(tried) => judge(store.location(), tried),
        Err(_) => Finding::fail(
            CHECK,
            format!("{} did not answer within {} s", store.location(), TIMEOUT.as_secs()),
            "check the network, and the endpoint that the environment names",
        ),
    }];
    findings.extend(directory.as_deref().and_then(privacy));
    findings.extend(directory.as_deref().map(host::disk));
    findings
}

fn local_directory(location: &str) -> Option<PathBuf> {
    match location.split_once("://") {
        None => Some(location.into()),
        Some(("file", path)) => Some(path.into()),
        Some(_) => None,
    }
}

/// The longest time of a request of each kind.
#[derive(Debug, Clone, Copy)]
struct Times {
    write: Duration,
    read: Duration,
    delete: Duration,
}

async fn try_requests(store: &Store) -> Result<Times, StoreError> {
    let key = format!("meta/probe/{}", Ulid::new());
    let bytes = Bytes::from_static(b"foil doctor");
    let began = Instant::now();
    store.create(&key, bytes.clone()).await?;
    let write = began.elapsed();
    let exclusive = store.create(&key, Bytes::from_static(b"another")).await;
    let began = Instant::now();
    let found = store.get(&key).await;
    let read = began.elapsed();
    let began = Instant::now();
    store.delete(&key).await?;
    let delete = began.elapsed();
    match (exclusive?, found?) {
        (Put::Exists, found) if found == bytes => Ok(Times { write, read, delete }),
        _ => Err(StoreError::NotExclusive { location: store.location().to_owned() }),
    }
}

fn judge(location: &str, tried: Result<Times, StoreError>) -> Finding {
    let times = match tried {
        Ok(times) => times,
        Err(error) => return Finding::error(CHECK, error),
    };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let message = format!(
        "{location}: write {:.1} ms, read {:.1} ms, delete {:.1} ms; no key can be created twice",
        milliseconds(times.write),
        milliseconds(times.read),
        milliseconds(times.delete)
    );
    match times.write > SLOW {
        true => Finding::warn(
            CHECK,
            message,
            "each submission and each commit waits for a write: use a store closer to the coordinator, or a faster disk",
        ),
        false => Finding::ok(CHECK, message),
    }
}

/// Checks that only the owner can read the prompts, completions and weights in the directory.
fn privacy(directory: &Path) -> Option<Finding> {
    let mode = directory.metadata().ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        let message = format!("{} can be accessed by other users (mode {mode:o})", directory.display());
        Finding::warn(CHECK, message, format!("chmod 700 {}", directory.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::finding::Level;
    use super::*;

    #[tokio::test]
    async fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let findings = check(dir.path().to_str().unwrap()).await;
        assert!(
            findings.iter().all(|finding| finding.level == Level::Ok || finding.check == "disk"),
            "{findings:?}"
        );
        assert!(findings[0].message.contains("no key can be created twice"), "{findings:?}");
        let left = fs::read_dir(dir.path().join("meta/probe")).map(Iterator::count).unwrap_or_default();
        assert_eq!(left, 0);

        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let findings = check(dir.path().to_str().unwrap()).await;
        let open =
            findings.iter().find(|finding| finding.level == Level::Warn && finding.check == CHECK).unwrap();
        assert!(
            open.message.contains("mode 755") && open.advice.as_ref().unwrap().contains("chmod 700"),
            "{open:?}"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_a_store_fails() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for (location, told) in [(file.to_str().unwrap(), "it is a file"), ("ftp://host/x", "ftp")] {
            let findings = check(location).await;
            assert!(findings[0].level == Level::Fail && findings[0].message.contains(told), "{findings:?}");
        }
        let absent = check(dir.path().join("new").to_str().unwrap()).await;
        assert!(absent[0].level == Level::Skip && !dir.path().join("new").exists(), "{absent:?}");
    }

    #[test]
    fn a_slow_store_is_warned_of_and_one_that_overwrites_fails() {
        let times = |write| Times { write, read: Duration::ZERO, delete: Duration::ZERO };
        assert_eq!(judge("s", Ok(times(SLOW))).level, Level::Ok);
        assert_eq!(judge("s", Ok(times(SLOW * 2))).level, Level::Warn);
        let twice = judge("s", Err(StoreError::NotExclusive { location: "s".into() }));
        assert!(twice.level == Level::Fail && twice.message.contains("created twice"), "{twice:?}");
    }
}
