//! The lock of a run's directory, and where the process that holds it serves the run.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// File locked by the process that uses the directory. A process that serves the run writes its [`Holder`] to
/// it.
pub(crate) const LOCK: &str = ".lock";

/// A program that serves a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Run,
    Ui,
}

impl Program {
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Run => "foil run",
            Self::Ui => "foil ui",
        }
    }
}

/// The process that holds a directory's lock and serves the run in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) program: Program,
    /// URL of its coordinator, on this machine.
    pub(crate) url: String,
    /// Id of the run's job.
    pub(crate) job: String,
}

impl Holder {
    /// The holder of a directory's lock, if it has announced itself. Valid only while the lock is held: a
    /// process that died may have left its line.
    pub(crate) fn of(directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(directory.join(LOCK)).ok()?;
        let line = text.strip_suffix('\n')?;
        [Program::Run, Program::Ui].into_iter().find_map(|program| {
            let page = line.strip_prefix(program.command())?.strip_prefix(' ')?;
            let (url, job) = page.split_once("/jobs/").filter(|(url, _)| url.starts_with("http://"))?;
            Some(Self { program, url: url.to_owned(), job: job.to_owned() })
        })
    }

    /// URL of the job's page.
    pub(crate) fn page(&self) -> String {
        format!("{}/jobs/{}", self.url, self.job)
    }

    /// Announces this process in the locked file, for other processes that are given the directory.
    pub(crate) fn announce(&self, mut lock: &File) -> io::Result<()> {
        lock.set_permissions(Permissions::from_mode(0o600))?;
        lock.set_len(0)?;
        // In one piece: others read it while it is written.
        lock.write_all(format!("{} {}\n", self.program.command(), self.page()).as_bytes())
    }
}

/// Locks a directory, and removes from the file what an earlier process wrote. None if another one holds the
/// lock.
pub(crate) fn lock(directory: &Path) -> io::Result<Option<File>> {
    // Not truncated before it is locked: the other process may have written its URL.
    let lock = File::options().create(true).append(true).mode(0o600).open(directory.join(LOCK))?;
    match lock.try_lock() {
        Ok(()) => {
            lock.set_len(0)?;
            Ok(Some(lock))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_whole_names_no_page() {
        let dir = tempfile::tempdir().unwrap();
        for line in
            ["", "foil run http://127.0.0.1:7/jobs/j", "http://127.0.0.1:7/jobs/j\n", "foil ui /jobs/j\n"]
        {
            fs::write(dir.path().join(LOCK), line).unwrap();
            assert_eq!(Holder::of(dir.path()), None, "{line:?}");
        }
    }
}
