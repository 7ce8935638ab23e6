//! This process's limit of open files and sockets.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Upper bound of the descriptors reserved for the store, the log and everything else that is not a
/// connection.
const MAX_RESERVED: u64 = 512;

/// Raises the soft limit to the hard one, because service managers set it to 1024 by default. Returns the
/// limit in effect.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
            soft
        }
    }
}

/// Number of connections, at most `max`, that leaves enough descriptors for everything else.
pub fn connections(limit: u64, max: usize) -> usize {
    let reserved = (limit / 8 * 3).min(MAX_RESERVED);
    usize::try_from(limit - reserved).unwrap_or(max).clamp(1, max)
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
