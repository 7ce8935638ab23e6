//! Credentials of clients, agents and ranks.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderMap, HeaderValue};

use super::TlsFiles;
use crate::private::{self, Exposed};

/// Metadata that names the calling rank process, and proves its identity.
pub const RANK_SESSION: &str = "foil-rank-session";
pub const RANK_SECRET: &str = "foil-rank-secret";

/// Size limit of a token.
const MAX_TOKEN_BYTES: u64 = 8 << 10;

/// The files with which this process proves its identity and verifies the coordinator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub tls: TlsFiles,
    /// Holds a bearer token, reloaded when the file changes. It is sent only over TLS or to this machine.
    pub token_file: Option<PathBuf>,
}

impl Credentials {
    /// The command line options that give another process these files.
    pub fn arguments(&self) -> Vec<(&'static str, PathBuf)> {
        let token = self.token_file.iter().map(|path| ("--token-file", path.clone()));
        self.tls.arguments().into_iter().chain(token).collect()
    }
}

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("cannot read the token in {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Exposed(#[from] Exposed),
    #[error("{path} must hold one token on one line, at most {MAX_TOKEN_BYTES} bytes of printable ASCII", path = path.display())]
    Malformed { path: PathBuf },
}

/// Version of a file, according to its metadata.
type Version = (u64, u64, i64, i64);

/// A bearer token in a file.
#[derive(Debug)]
pub(super) struct Bearer {
    path: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    version: Version,
    /// Marked as sensitive, so that it is not printed.
    header: HeaderValue,
    /// Whether the last attempt to read a changed file failed, which is logged once.
    is_stale: bool,
}

impl Bearer {
    pub(super) fn read(path: PathBuf) -> Result<Self, TokenFileError> {
        let (version, header) = read(&path)?;
        Ok(Self { path, current: Mutex::new(Current { version, header, is_stale: false }) })
    }

    /// Adds the token to a request, read again if the file has changed. A file that cannot be used is logged,
    /// and the last good token stays in use.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        let mut current = self.current();
        let found = fs::metadata(&self.path).map(|metadata| version(&metadata)).ok();
        if found != Some(current.version) {
            match read(&self.path) {
                Ok((version, header)) => *current = Current { version, header, is_stale: false },
                Err(error) if !std::mem::replace(&mut current.is_stale, true) => {
                    tracing::warn!(%error, "keeping the token that was read before");
                }
                Err(_) => {}
            }
        }
        headers.insert(AUTHORIZATION, current.header.clone());
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // The value is replaced as a whole, so a panic elsewhere cannot leave it inconsistent.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(metadata: &fs::Metadata) -> Version {
    (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

fn read(path: &Path) -> Result<(Version, HeaderValue), TokenFileError> {
    let failed = |source| TokenFileError::Read { path: path.to_owned(), source };
    let malformed = || TokenFileError::Malformed { path: path.to_owned() };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    private::check_private(path, &metadata)?;
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    let token = text.trim();
    let is_token = !token.is_empty()
        && text.len() as u64 <= MAX_TOKEN_BYTES
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_token {
        return Err(malformed());
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| malformed())?;
    header.set_sensitive(true);
    Ok((version(&metadata), header))
}

/// Proof that a call is made by a rank process.
#[derive(Clone)]
pub(super) struct RankProof {
    session: HeaderValue,
    secret: HeaderValue,
}

impl RankProof {
    /// `None` if the session or the secret cannot be sent, which never happens with those that a coordinator
    /// issues.
    pub(super) fn new(session: &str, secret: &str) -> Option<Self> {
        let (session, mut secret) =
            (HeaderValue::from_str(session).ok()?, HeaderValue::from_str(secret).ok()?);
        secret.set_sensitive(true);
        Some(Self { session, secret })
    }

    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        headers.insert(RANK_SESSION, self.session.clone());
        headers.insert(RANK_SECRET, self.secret.clone());
    }
}

impl fmt::Debug for RankProof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RankProof({:?})", self.session)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn sent(bearer: &Bearer) -> String {
        let mut headers = HeaderMap::new();
        bearer.add_to(&mut headers);
        headers[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_token_is_read_again_when_its_file_changes_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, "foil_one\n", 0o600);
        let bearer = Bearer::read(path.clone()).unwrap();
        assert_eq!(sent(&bearer), "Bearer foil_one");
        assert!(!format!("{bearer:?}").contains("foil_one"), "{bearer:?}");
        write(&path, "foil_two", 0o640);
        assert_eq!(sent(&bearer), "Bearer foil_two");
        for (text, mode) in [("foil_three", 0o604), ("two words", 0o600), ("", 0o600)] {
            write(&path, text, mode);
            assert_eq!(sent(&bearer), "Bearer foil_two");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(sent(&bearer), "Bearer foil_two");
        write(&path, "foil_three", 0o600);
        assert_eq!(sent(&bearer), "Bearer foil_three");
    }

    #[test]
    fn a_file_that_is_open_to_others_or_holds_no_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let refused = |text: &str, mode| {
            write(&path, text, mode);
            Bearer::read(path.clone()).unwrap_err().to_string()
        };
        let exposed = refused("foil_one", 0o644);
        assert!(exposed.contains(&format!("chmod 600 {}", path.display())), "{exposed}");
        for text in ["", "two words", "ä", &"x".repeat(9000)] {
            let told = refused(text, 0o600);
            assert!(told.contains("one token on one line") && !told.contains("words"), "{told}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Bearer::read(path.clone()).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn a_rank_proves_itself_in_metadata() {
        let rank = RankProof::new("s1", "s3cret").unwrap();
        assert!(!format!("{rank:?}").contains("s3cret"));
        let mut headers = HeaderMap::new();
        rank.add_to(&mut headers);
        assert_eq!(
            (headers[RANK_SESSION].as_bytes(), headers[RANK_SECRET].as_bytes()),
            (&b"s1"[..], &b"s3cret"[..])
        );
        assert!(RankProof::new("a\nb", "").is_none());
    }
}
