//! Pins: protection of a job or of its artifacts from deletion, by users.

use std::collections::BTreeMap;

use foil_proto::v1;

use super::event::Pin;
use crate::clock::timestamp;

/// The pins of a job, at most one for each artifact and one for the whole job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins(BTreeMap<String, Pinned>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pinned {
    by: String,
    /// Milliseconds since the Unix epoch.
    at: u64,
}

impl Pins {
    pub(super) fn add(&mut self, pin: &Pin, at: u64) {
        self.0.insert(pin.artifact.clone(), Pinned { by: pin.by.clone(), at });
    }

    pub(super) fn remove(&mut self, artifact: &str) {
        self.0.remove(artifact);
    }

    /// True if the artifact is pinned, or the whole job for an empty name.
    pub fn contains(&self, artifact: &str) -> bool {
        self.0.contains_key(artifact)
    }

    /// The pinned artifacts with the users who pinned them, either of which may be empty.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(artifact, pinned)| (artifact.as_str(), pinned.by.as_str()))
    }

    pub(super) fn wire(&self) -> Vec<v1::Pin> {
        let pin = |(artifact, pinned): (&String, &Pinned)| v1::Pin {
            artifact: artifact.clone(),
            by: pinned.by.clone(),
            at: Some(timestamp(pinned.at)),
        };
        self.0.iter().map(pin).collect()
    }
}
