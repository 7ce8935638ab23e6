//! Keys of ranks' logs in the store, where agents write them and coordinators read them.
//!
//! The log of a rank process consists of JSON lines, stored as parts: objects that each hold its bytes
//! `[start, end)`, always whole lines. Overlapping parts have the same bytes: an agent first writes a small
//! part every few seconds, and then a larger one that covers them, after which they may be deleted. A missing
//! part leaves a gap of known size.

use std::fmt;

/// Size from which a part is not rewritten as a piece of a larger one.
pub const PART_BYTES: usize = 64 << 10;

/// Longer lines are cut.
pub const LINE_BYTES: usize = 16 << 10;

/// Maximum size of a part.
pub const MAX_PART_BYTES: u64 = (PART_BYTES + LINE_BYTES) as u64;

/// Suffix of the name of a log's last part.
const LAST: &str = ".end";

/// One part of the log of a rank process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub process: Process,
    /// Offset of its first byte in the process's log.
    pub start: u64,
    /// Offset after its last byte.
    pub end: u64,
    /// Whether the process has ended and nothing follows.
    pub is_last: bool,
}

/// A rank process of a job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub attempt: u32,
    pub rank: u32,
    pub session: String,
}

/// Prefix of the keys of a job's logs, without a slash at its end.
pub fn prefix(job: &str) -> String {
    format!("jobs/{job}/logs")
}

/// Prefix of the keys of the logs of one attempt, without a slash at its end.
pub fn attempt_prefix(job: &str, attempt: u32) -> String {
    format!("{}/{attempt:06}", prefix(job))
}

impl Process {
    /// Prefix of the keys of its parts, without a slash at its end.
    pub fn prefix(&self, job: &str) -> String {
        format!("{}/{:06}/{:06}/{}", prefix(job), self.attempt, self.rank, self.session)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of attempt {}", self.rank, self.attempt)
    }
}

impl Part {
    pub fn key(&self, job: &str) -> String {
        let last = if self.is_last { LAST } else { "" };
        format!("{}/{:016x}-{:016x}{last}", self.process.prefix(job), self.start, self.end)
    }

    /// The part of a job's log that has this key; `None` if it is not the key of a part.
    pub fn parse(job: &str, key: &str) -> Option<Self> {
        let rest = key.strip_prefix(&prefix(job))?.strip_prefix('/')?;
        let [attempt, rank, session, name] = *rest.split('/').collect::<Vec<_>>() else { return None };
        let (range, is_last) = name.strip_suffix(LAST).map_or((name, false), |range| (range, true));
        let (start, end) = range.split_once('-')?;
        let offset = |hex: &str| u64::from_str_radix(hex, 16).ok();
        let process =
            Process { attempt: attempt.parse().ok()?, rank: rank.parse().ok()?, session: session.to_owned() };
        let part = Self { process, start: offset(start)?, end: offset(end)?, is_last };
        // Each part has exactly one spelling of its key.
        (part.start <= part.end && part.key(job) == key).then_some(part)
    }

    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_and_its_key_are_one_to_one() {
        let process = Process { attempt: 2, rank: 7, session: "j1-a2-r7-t1-1".into() };
        for (start, end, is_last) in [(0, 10, false), (0, 0, true), (65_536, 1 << 33, true)] {
            let part = Part { process: process.clone(), start, end, is_last };
            let key = part.key("j1");
            crate::storage::key::validate(&key).unwrap();
            assert!(key.starts_with(&format!("{}/", attempt_prefix("j1", 2))));
            assert_eq!(Part::parse("j1", &key), Some(part));
            assert_eq!(Part::parse("j", &key), None);
        }
        let key = "jobs/j1/logs/000002/000007/s/0000000000000000-000000000000000a";
        assert!(Part::parse("j1", key).is_some());
        for wrong in [
            key.replace("000002/", "2/"),
            key.replace("a2", "A2"),
            key.replace("-000000000000000a", "-000000000000000A"),
            key.replace("0000-", "000b-"),
            format!("{key}.b3"),
            format!("{key}/x"),
            key.replace("/s/", "/"),
            key.replace("/logs/", "/phases/"),
        ] {
            assert!(wrong == key || Part::parse("j1", &wrong).is_none(), "{wrong}");
        }
    }
}
