//! How many files and sockets this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Most descriptors that are kept back for the store, the log and all else that is not a connection.
const KEPT_BACK: u64 = 512;

/// Raises the soft limit to the hard one: service managers give 1024 to those that do not ask. Gives the limit there is.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files cannot be raised");
            soft
        }
    }
}

/// Connections that leave enough descriptors for the rest.
pub fn connections(limit: u64, most: usize) -> usize {
    let kept_back = (limit / 8 * 3).min(KEPT_BACK);
    usize::try_from(limit - kept_back).unwrap_or(most).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_store() {
        assert_eq!(connections(256, 4096), 160);
        assert_eq!(connections(1024, 4096), 640);
        assert_eq!(connections(1 << 20, 4096), 4096);
        assert_eq!(connections(u64::MAX, 4096), 4096);
        assert_eq!(connections(0, 4096), 1);
    }
}
