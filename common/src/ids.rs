//! Identifiers of jobs and of rank processes.

use std::fmt;

use thiserror::Error;
use ulid::Ulid;

use crate::spec::JobName;

/// The id of a job: a ULID, then the job's name. Ids sort by submission and are safe in keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

/// The id of one rank process, never reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("found {0:?}, expected an id: lower-case letters, digits and '-'")]
pub struct IdError(String);

impl JobId {
    pub fn new(ulid: Ulid, name: &JobName) -> Self {
        Self(format!("{}-{name}", ulid.to_string().to_lowercase()))
    }

    /// A new id, from the clock and the system's randomness.
    pub fn generate(name: &JobName) -> Self {
        Self::new(Ulid::new(), name)
    }

    pub fn parse(text: &str) -> Result<Self, IdError> {
        check(text).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SessionId {
    pub fn new(ulid: Ulid) -> Self {
        Self(ulid.to_string().to_lowercase())
    }

    /// A new id, from the clock and the system's randomness.
    pub fn generate() -> Self {
        Self::new(Ulid::new())
    }

    pub fn parse(text: &str) -> Result<Self, IdError> {
        check(text).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Ids become parts of keys and paths, so they must not escape a directory.
fn check(text: &str) -> Result<String, IdError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.is_empty() || text.len() > 128 || !text.bytes().all(allowed) {
        return Err(IdError(text.to_owned()));
    }
    Ok(text.to_owned())
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_sort_by_submission_and_read_back() {
        let name = JobName::parse("letters").unwrap();
        let early = JobId::new(Ulid::from_parts(1, 9), &name);
        let late = JobId::new(Ulid::from_parts(2, 1), &JobName::parse("a").unwrap());
        assert!(early < late && early.as_str().ends_with("-letters"));
        assert_eq!(JobId::parse(early.as_str()), Ok(early));
    }

    #[test]
    fn an_id_cannot_escape_a_directory() {
        for text in ["", "../x", "a/b", "A", "a.b"] {
            assert!(JobId::parse(text).is_err() && SessionId::parse(text).is_err(), "{text}");
        }
    }
}
