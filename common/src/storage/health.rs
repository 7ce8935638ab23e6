//! Health of the store, derived from its regular requests, without probes.
//!
//! A failure is cleared by a success that disproves it. A full disk may still accept a small record of the
//! log, and permission for one key proves nothing about another, so failures are kept by kind, and each kind
//! defines which successes clear it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;

/// Failures for this long without a success are reported; shorter ones are not.
const HICCUP: Duration = Duration::from_secs(2);

/// A request without an answer for this long is reported too.
const SLOW: Duration = Duration::from_secs(5);

/// Failures older than this are forgotten, if there was no request since.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// The requests to one store; clones share their state.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<Mutex<Requests>>);

#[derive(Debug, Default)]
struct Requests {
    /// The latest failure of each kind that no success has cleared.
    failing: BTreeMap<Kind, Failing>,
    /// Start of each request in flight.
    sent: BTreeMap<u64, Instant>,
    count: u64,
}

/// Kinds of failure, the most severe first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    NoSpace,
    /// With the first part of the key, since permissions are often granted by prefix.
    Denied {
        writes: bool,
        root: String,
    },
    Unavailable {
        writes: bool,
    },
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    latest: Instant,
    /// Size of the smallest write that failed.
    bytes: u64,
    error: String,
}

/// A request to the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) key: &'a str,
    /// Bytes to write; `None` for a read or a deletion.
    pub(super) bytes: Option<u64>,
}

impl<'a> Ask<'a> {
    pub(super) fn read(key: &'a str) -> Self {
        Self { key, bytes: None }
    }

    pub(super) fn write(key: &'a str, bytes: u64) -> Self {
        Self { key, bytes: Some(bytes) }
    }

    fn root(self) -> &'a str {
        self.key.split('/').next().unwrap_or_default()
    }

    /// `None` for an error that says nothing about the store's health.
    fn kind(self, error: &StoreError) -> Option<Kind> {
        let writes = self.bytes.is_some();
        match error {
            StoreError::NoSpace { .. } => Some(Kind::NoSpace),
            StoreError::Denied { .. } => Some(Kind::Denied { writes, root: self.root().to_owned() }),
            StoreError::Unavailable { .. } => Some(Kind::Unavailable { writes }),
            _ => None,
        }
    }

    /// Whether the success of this request clears a failure.
    fn clears(self, kind: &Kind, failing: &Failing) -> bool {
        let as_large = self.bytes.is_some_and(|bytes| bytes >= failing.bytes);
        match kind {
            Kind::NoSpace | Kind::Unavailable { writes: true } => as_large,
            Kind::Unavailable { writes: false } => true,
            Kind::Denied { writes, root } => *writes == self.bytes.is_some() && root == self.root(),
        }
    }
}

/// A request in flight; dropping it means that the caller gave it up, which says nothing about the store.
pub(super) struct Sent<'a> {
    health: &'a Health,
    number: u64,
    ask: Ask<'a>,
}

impl Health {
    pub(super) fn send<'a>(&'a self, ask: Ask<'a>, now: Instant) -> Sent<'a> {
        let mut requests = self.requests();
        requests.count += 1;
        let number = requests.count;
        requests.sent.insert(number, now);
        Sent { health: self, number, ask }
    }

    /// Records the result of a request that was not tracked.
    pub(super) fn note<T>(&self, ask: Ask<'_>, result: &Result<T, StoreError>, now: Instant) {
        self.requests().note(ask, result, now);
    }

    /// A description of the fault; `None` if the store works.
    pub(super) fn trouble(&self, now: Instant) -> Option<String> {
        let requests = self.requests();
        let lasts = |(kind, failing): &(&Kind, &Failing)| {
            let hiccup = if matches!(kind, Kind::Unavailable { .. }) { HICCUP } else { Duration::ZERO };
            now.duration_since(failing.since) >= hiccup && now.duration_since(failing.latest) < FORGOTTEN
        };
        if let Some((_, failing)) = requests.failing.iter().find(lasts) {
            return Some(failing.error.clone());
        }
        let oldest = requests.sent.values().map(|sent| now.duration_since(*sent)).max()?;
        (oldest >= SLOW).then(|| format!("a request has been without an answer for {} s", oldest.as_secs()))
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        // The state is consistent at any moment, even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    fn note<T>(&mut self, ask: Ask<'_>, result: &Result<T, StoreError>, now: Instant) {
        match result.as_ref().err().map(|error| (ask.kind(error), error)) {
            Some((Some(kind), error)) => {
                let bytes = ask.bytes.unwrap_or_default();
                let failing = self.failing.entry(kind).or_insert_with(|| Failing {
                    since: now,
                    latest: now,
                    bytes,
                    error: String::new(),
                });
                failing.latest = now;
                failing.bytes = failing.bytes.min(bytes);
                failing.error = error.to_string();
            }
            // A permanent refusal is an answer too: the store was reached.
            Some((None, _)) => self.failing.retain(|kind, failing| {
                !matches!(kind, Kind::Unavailable { .. }) || !ask.clears(kind, failing)
            }),
            None => self.failing.retain(|kind, failing| !ask.clears(kind, failing)),
        }
    }
}

impl Sent<'_> {
    pub(super) fn answered<T>(self, result: &Result<T, StoreError>, now: Instant) {
        self.health.note(self.ask, result, now);
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.health.requests().sent.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Ask<'_> = Ask { key: "meta/log/1", bytes: Some(300) };
    const MODEL: Ask<'_> = Ask { key: "jobs/j/model", bytes: Some(1_300_000) };
    const READ: Ask<'_> = Ask { key: "jobs/j/model", bytes: None };

    fn location() -> String {
        "s3://b".to_owned()
    }

    fn refused() -> Result<(), StoreError> {
        let (key, reason) = ("k".to_owned(), "503".to_owned());
        Err(StoreError::Unavailable { location: location(), operation: "put", key, reason })
    }

    fn full() -> Result<(), StoreError> {
        Err(StoreError::NoSpace { location: location(), key: "k".to_owned() })
    }

    fn denied() -> Result<(), StoreError> {
        let (key, reason) = ("k".to_owned(), "403".to_owned());
        Err(StoreError::Denied { location: location(), operation: "put", key, reason })
    }

    #[test]
    fn failures_without_a_success_in_between_are_reported() {
        let health = Health::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        health.send(RECORD, at(0)).answered(&refused(), at(0));
        health.send(RECORD, at(1)).answered(&Ok(()), at(1));
        health.send(RECORD, at(1)).answered(&refused(), at(1));
        assert_eq!(health.trouble(at(2)), None, "there was a success within the last two seconds");
        health.send(RECORD, at(3)).answered(&refused(), at(3));
        assert!(health.trouble(at(3)).is_some_and(|trouble| trouble.contains("503")));
        assert_eq!(health.trouble(at(63)), None, "there was no request for a minute");
        health.send(RECORD, at(64)).answered(&refused(), at(64));
        assert!(health.trouble(at(64)).is_some());
        health.send(RECORD, at(65)).answered(&Ok(()), at(65));
        assert_eq!(health.trouble(at(65)), None);
    }

    #[test]
    fn a_store_too_full_for_a_model_is_not_cleared_by_a_record_of_the_log() {
        let (health, now) = (Health::default(), Instant::now());
        health.note(MODEL, &full(), now);
        for healthy in [RECORD, READ] {
            health.note(healthy, &Ok(()), now);
            assert!(health.trouble(now).is_some_and(|trouble| trouble.contains("full")));
        }
        health.note(MODEL, &Ok(()), now);
        assert_eq!(health.trouble(now), None);
        health.note(MODEL, &full(), now);
        health.note(RECORD, &full(), now);
        health.note(RECORD, &Ok(()), now);
        assert_eq!(health.trouble(now), None, "the smallest that failed fits again");
    }

    #[test]
    fn a_refused_write_is_cleared_only_by_a_write_under_the_same_prefix() {
        let (health, now) = (Health::default(), Instant::now());
        health.note(MODEL, &denied(), now);
        for healthy in [RECORD, READ] {
            health.note(healthy, &Ok(()), now);
            assert!(health.trouble(now).is_some_and(|trouble| trouble.contains("refused put")));
        }
        health.note(Ask::write("jobs/j/other", 1), &Ok(()), now);
        assert_eq!(health.trouble(now), None);
    }

    #[test]
    fn failed_large_writes_are_not_cleared_by_small_ones_or_by_reads() {
        let (health, start) = (Health::default(), Instant::now());
        health.note(MODEL, &refused(), start);
        health.note(RECORD, &Ok(()), start);
        health.note(READ, &Ok(()), start);
        assert!(health.trouble(start + HICCUP).is_some());
    }

    #[test]
    fn a_request_without_an_answer_is_reported_until_it_ends() {
        let health = Health::default();
        let start = Instant::now();
        let sent = health.send(READ, start);
        assert_eq!(health.trouble(start + Duration::from_secs(4)), None);
        let trouble = health.trouble(start + Duration::from_secs(6));
        assert!(trouble.is_some_and(|trouble| trouble.contains("without an answer for 6 s")));
        drop(sent);
        assert_eq!(health.trouble(start + Duration::from_secs(6)), None);
    }

    #[test]
    fn a_key_that_is_missing_is_an_answer() {
        let health = Health::default();
        let start = Instant::now();
        health.note(READ, &refused(), start);
        let missing = StoreError::NotFound { location: location(), key: "k".into() };
        health.note::<()>(READ, &Err(missing), start);
        assert_eq!(health.trouble(start + Duration::from_secs(3)), None);
    }
}
