//! When and how long a job may run, and how it is found among others. Nothing here affects what it computes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use foil_proto::v1;

use super::check::{count, one_of};
use super::{SpecError, duration};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduling {
    pub priority: Priority,
    pub labels: Labels,
    /// Maximum number of retries in a row without progress.
    pub retries: u32,
    /// From the first start to the end.
    pub timeout: Option<Duration>,
    /// From the end to the deletion.
    pub ttl_after_finished: Option<Duration>,
}

/// A job's rank in the queue; more is sooner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(i32);

/// Keys and values with the syntax of Kubernetes labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

/// The specification without the fields that have no effect on the result.
pub fn without_scheduling(spec: &v1::JobSpec) -> v1::JobSpec {
    v1::JobSpec {
        priority: None,
        labels: BTreeMap::new(),
        retries: None,
        timeout: String::new(),
        ttl_after_finished: String::new(),
        trackers: None,
        ..spec.clone()
    }
}

impl Scheduling {
    /// Number of retries by default.
    pub const RETRIES: u32 = 2;

    pub(super) fn parse(wire: &v1::JobSpec) -> Result<Self, SpecError> {
        Ok(Self {
            priority: Priority::new(wire.priority.unwrap_or_default())?,
            labels: Labels::parse("labels", wire.labels.clone())?,
            retries: count("", "retries", wire.retries, Self::RETRIES, 0)?,
            timeout: duration::parse("", "timeout", &wire.timeout)?,
            ttl_after_finished: duration::parse("", "ttl_after_finished", &wire.ttl_after_finished)?,
        })
    }
}

impl Priority {
    pub const MIN: i32 = -1000;
    pub const MAX: i32 = 1000;
    /// The names that a job file may give in place of numbers.
    pub const NAMES: &[&str] = &["low", "normal", "high"];

    /// # Errors
    /// It is out of range.
    pub fn new(value: i32) -> Result<Self, SpecError> {
        match (Self::MIN..=Self::MAX).contains(&value) {
            true => Ok(Self(value)),
            false => Err(SpecError::field("priority", value, &Self::expected())),
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "low" => Some(Self(-100)),
            "normal" => Some(Self(0)),
            "high" => Some(Self(100)),
            _ => None,
        }
    }

    pub(super) fn expected() -> String {
        let names = one_of(Self::NAMES);
        format!("{names}, or a whole number from {} to {}", Self::MIN, Self::MAX)
    }

    pub fn value(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Labels {
    /// Maximum number of labels of a job.
    pub const MAX: usize = 64;
    /// Maximum bytes of a value, and of a key's name.
    pub const VALUE_BYTES: usize = 63;
    /// Maximum bytes of the DNS name before a key's name.
    const PREFIX_BYTES: usize = 253;

    /// Parses labels; `at` is the path of their field.
    ///
    /// # Errors
    /// A key or a value breaks the syntax, or there are too many.
    pub fn parse(at: &str, labels: BTreeMap<String, String>) -> Result<Self, SpecError> {
        if labels.len() > Self::MAX {
            return Err(SpecError::field(at, labels.len(), &format!("at most {} labels", Self::MAX)));
        }
        for (key, value) in &labels {
            let shown: String = key.chars().take(Self::VALUE_BYTES).collect();
            if !is_key(key) {
                let expected = "at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends; \
                                with a DNS name and '/' before them if need be, as in example.com/team";
                return Err(SpecError::field(at, format!("the key {shown:?}"), expected));
            }
            if !value.is_empty() && !is_name(value) {
                let found: String = value.chars().take(Self::VALUE_BYTES).collect();
                let expected = "at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends";
                return Err(SpecError::field(&format!("{at}.{shown}"), format!("{found:?}"), expected));
            }
        }
        Ok(Self(labels))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// True if all of `wanted` are among these.
    pub fn include(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_name(prefix) && is_name(name),
        None => is_name(key),
    }
}

/// At most 63 characters, with a letter or digit at both ends.
fn is_name(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= Labels::VALUE_BYTES
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_dns_name(text: &str) -> bool {
    let is_part = |part: &str| {
        is_name(part)
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.len() <= Labels::PREFIX_BYTES && text.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Job, file};

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, SpecError> {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Labels::parse("labels", pairs.collect())
    }

    #[test]
    fn labels_have_the_syntax_of_kubernetes() {
        let long = "a".repeat(63);
        for (key, value) in
            [("team", "nlp"), ("example.com/team", ""), ("A_b.c-1", "v1.2_x"), (long.as_str(), long.as_str())]
        {
            labels(&[(key, value)]).unwrap_or_else(|error| panic!("{error}"));
        }
        let longer = "a".repeat(64);
        let keys = ["", "-a", "a-", "a b", "é", "/a", "a/", "a/b/c", "Example.com/a", "a..b/c", &longer];
        for key in keys {
            let error = labels(&[(key, "v")]).expect_err(key).to_string();
            assert!(error.starts_with("labels: found the key") && error.len() < 400, "{error}");
        }
        for value in ["-a", "a b", "a/b", "é", &longer] {
            let error = labels(&[("team", value)]).expect_err(value).to_string();
            assert!(error.starts_with("labels.team: found"), "{error}");
        }
        let many: BTreeMap<_, _> = (0..65).map(|key| (format!("k{key}"), String::new())).collect();
        assert!(Labels::parse("labels", many).unwrap_err().to_string().contains("at most 64"));
    }

    #[test]
    fn labels_select_by_all_of_their_pairs() {
        let job = labels(&[("team", "nlp"), ("stage", "")]).unwrap();
        for (wanted, found) in [
            (&[][..], true),
            (&[("team", "nlp")], true),
            (&[("stage", "")], true),
            (&[("team", "nlp"), ("stage", "")], true),
            (&[("team", "")], false),
            (&[("team", "nlp"), ("owner", "")], false),
        ] {
            assert_eq!(job.include(&labels(wanted).unwrap()), found, "{wanted:?}");
        }
    }

    const LEAST: &str = "
name: least
policy: { model: /model }
data: { preferences: /pairs.jsonl, golden: /golden.jsonl, prompts: /prompts.jsonl }
";

    fn load(text: &str, settings: &[&str]) -> Result<Job, SpecError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.yaml");
        std::fs::write(&path, text).unwrap();
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Job::try_from(file::load(&path, &settings)?)
    }

    fn job(text: &str, settings: &[&str]) -> Job {
        load(text, settings).unwrap()
    }

    fn message(text: &str, settings: &[&str]) -> String {
        load(text, settings).unwrap_err().to_string()
    }

    #[test]
    fn scheduling_is_read_from_names_numbers_and_settings() {
        let given = format!(
            "{LEAST}priority: high\nretries: 0\ntimeout: 2h30m\nttl_after_finished: 7d\n\
             labels: {{ team: nlp, example.com/stage: a }}\n"
        );
        let first = job(&given, &[]).scheduling;
        assert_eq!((first.priority.value(), first.retries), (100, 0));
        assert_eq!(first.timeout, Some(Duration::from_secs(9000)));
        assert_eq!(first.ttl_after_finished, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(first.labels.iter().collect::<Vec<_>>(), [("example.com/stage", "a"), ("team", "nlp")]);
        let over =
            job(&given, &["priority=-7", "labels.example.com/stage=1.5", "labels.team=null", "timeout=null"]);
        assert_eq!((over.scheduling.priority.value(), over.scheduling.timeout), (-7, None));
        assert_eq!(over.scheduling.labels.iter().collect::<Vec<_>>(), [("example.com/stage", "1.5")]);
        let default = job(LEAST, &[]).scheduling;
        assert_eq!((default.priority.value(), default.retries, default.timeout), (0, 2, None));
        assert_eq!(default.ttl_after_finished, None);
        for (setting, expected) in [
            (
                "priority=hurry",
                "priority: found \"hurry\", expected low, normal or high, or a whole number from -1000",
            ),
            ("priority=1001", "priority: found 1001"),
            ("priority=1.5", "priority: found 1.5"),
            ("retries=101", "retries: found 101"),
            ("timeout=90", "timeout: found \"90\", expected a time from"),
            ("ttl_after_finished=0s", "ttl_after_finished: found \"0s\", expected a time from"),
            ("labels.team=a b", "labels.team: found \"a b\""),
            ("labels=nlp", "labels: found \"nlp\", expected a block of keys"),
        ] {
            let found = message(LEAST, &[setting]);
            assert!(found.contains(expected), "{setting}: {found}");
        }
        assert!(
            message(&format!("{LEAST}labels: {{ stage: 1 }}\n"), &[])
                .contains("labels.stage: found 1, expected a text")
        );
    }

    #[test]
    fn scheduling_is_no_part_of_what_a_job_computes() {
        let plain = v1::JobSpec::from(&job(LEAST, &[]));
        let settings = [
            "priority=high",
            "labels.a=b",
            "retries=9",
            "timeout=1d",
            "ttl_after_finished=1h",
            "trackers.report_to=mlflow",
        ];
        let urgent = v1::JobSpec::from(&job(LEAST, &settings));
        assert_ne!(plain, urgent);
        assert_eq!(without_scheduling(&plain), without_scheduling(&urgent));
        let other = v1::JobSpec::from(&job(LEAST, &["seed=1"]));
        assert_ne!(without_scheduling(&plain), without_scheduling(&other));
    }
}
