//! The kind of an object, derived from its key.

use crate::audit;
pub(super) use crate::inputs::INPUTS;

/// Prefix of jobs' objects.
pub(super) const JOBS: &str = "jobs";
/// Prefix of the coordinator's own objects.
pub(super) const META: &str = "meta";
/// Prefixes of everything besides the log that belongs in a copy of a store.
pub const PREFIXES: [&str; 3] = [INPUTS, JOBS, audit::PREFIX];

/// Kinds of objects, in the order of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A file that a user uploaded.
    Input,
    /// A data set that a job's inputs were encoded to.
    Dataset,
    Artifact,
    Checkpoint,
    Log,
    /// The log of events, its snapshots, and heartbeats.
    Journal,
    Other,
}

impl Kind {
    pub(super) fn of(key: &str) -> Self {
        let mut parts = key.split('/');
        match (parts.next(), parts.nth(1)) {
            (Some(INPUTS), _) => Self::Input,
            (Some(META), _) => Self::Journal,
            (Some(JOBS), Some("data")) => Self::Dataset,
            (Some(JOBS), Some("logs")) => Self::Log,
            // jobs/J/phases/P/aN/checkpoints/…
            (Some(JOBS), Some("phases")) if parts.nth(2) == Some("checkpoints") => Self::Checkpoint,
            // TensorBoard's event files and the other trackers' records.
            (Some(JOBS), Some("phases" | "trackers")) => Self::Artifact,
            _ => Self::Other,
        }
    }
}

/// Prefix of a job's objects; ends in '/'.
pub fn job_prefix(id: &str) -> String {
    format!("{JOBS}/{id}/")
}

/// The job whose object it is.
pub(super) fn job_of(key: &str) -> Option<&str> {
    key.strip_prefix(JOBS)?.strip_prefix('/')?.split('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_its_kind_and_its_job() {
        for (key, kind, job) in [
            ("inputs/ab", Kind::Input, None),
            ("jobs/j1/data/sft.jsonl", Kind::Dataset, Some("j1")),
            ("jobs/j1/phases/r00.sft/a1/model.safetensors", Kind::Artifact, Some("j1")),
            ("jobs/j1/phases/r01.policy.generate/00001/1-7", Kind::Artifact, Some("j1")),
            ("jobs/j1/phases/r00.sft/a1/checkpoints/000000000004/rank-0", Kind::Checkpoint, Some("j1")),
            ("jobs/j1/logs/000001/0000/s/0", Kind::Log, Some("j1")),
            ("meta/log/00000000000000000001", Kind::Journal, None),
            ("jobs/j1/trackers/tensorboard/list/0000000000", Kind::Artifact, Some("j1")),
            ("jobs/j1/else", Kind::Other, Some("j1")),
            ("else", Kind::Other, None),
        ] {
            assert_eq!((Kind::of(key), job_of(key)), (kind, job), "{key}");
        }
    }
}
