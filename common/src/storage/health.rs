//! Whether the store answers: what its requests show, without asking it anything more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;

/// Failing for so long, without a success between, is trouble; less is a hiccup.
const HICCUP: Duration = Duration::from_secs(2);

/// A request without an answer for so long is trouble too.
const SLOW: Duration = Duration::from_secs(5);

/// A failure so long ago tells nothing of now, where nobody has asked since.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// The requests of one store; clones share everything.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<Mutex<Requests>>);

#[derive(Debug, Default)]
struct Requests {
    /// Since the last success.
    failing: Option<Failing>,
    /// When each request on its way was sent.
    sent: BTreeMap<u64, Instant>,
    count: u64,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    latest: Instant,
    error: String,
}

/// A request on its way; dropping it takes it for given up, which tells nothing.
pub(super) struct Sent<'a> {
    health: &'a Health,
    number: u64,
}

impl Health {
    pub(super) fn send(&self, now: Instant) -> Sent<'_> {
        let mut requests = self.requests();
        requests.count += 1;
        let number = requests.count;
        requests.sent.insert(number, now);
        Sent { health: self, number }
    }

    /// What is wrong; none while the store answers.
    pub(super) fn trouble(&self, now: Instant) -> Option<String> {
        let requests = self.requests();
        if let Some(failing) = &requests.failing
            && now.duration_since(failing.since) >= HICCUP
            && now.duration_since(failing.latest) < FORGOTTEN
        {
            return Some(failing.error.clone());
        }
        let oldest = requests.sent.values().map(|sent| now.duration_since(*sent)).max()?;
        (oldest >= SLOW).then(|| format!("a request has been without an answer for {} s", oldest.as_secs()))
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        // Its parts are whole at any moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sent<'_> {
    /// The store's answer; a refusal for good is an answer too.
    pub(super) fn answered<T>(self, result: &Result<T, StoreError>, now: Instant) {
        let mut requests = self.health.requests();
        match result {
            Err(error) if error.is_transient() => {
                let since = requests.failing.as_ref().map_or(now, |failing| failing.since);
                requests.failing = Some(Failing { since, latest: now, error: error.to_string() });
            }
            Ok(_) | Err(_) => requests.failing = None,
        }
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

    fn refused() -> Result<(), StoreError> {
        let (location, key, reason) = ("s3://b".to_owned(), "k".to_owned(), "503".to_owned());
        Err(StoreError::Unavailable { location, operation: "put", key, reason })
    }

    #[test]
    fn failures_without_a_success_between_are_trouble() {
        let health = Health::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        health.send(at(0)).answered(&refused(), at(0));
        health.send(at(1)).answered(&Ok(()), at(1));
        health.send(at(1)).answered(&refused(), at(1));
        assert_eq!(health.trouble(at(2)), None, "there was a success within the last two seconds");
        health.send(at(3)).answered(&refused(), at(3));
        assert!(health.trouble(at(3)).is_some_and(|trouble| trouble.contains("503")));
        assert_eq!(health.trouble(at(63)), None, "nobody has asked for a minute");
        health.send(at(64)).answered(&refused(), at(64));
        assert!(health.trouble(at(64)).is_some());
        health.send(at(65)).answered(&Ok(()), at(65));
        assert_eq!(health.trouble(at(65)), None);
    }

    #[test]
    fn silence_is_trouble_until_the_request_ends() {
        let health = Health::default();
        let start = Instant::now();
        let sent = health.send(start);
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
        health.send(start).answered(&refused(), start);
        let missing = StoreError::NotFound { location: "s3://b".into(), key: "k".into() };
        health.send(start).answered::<()>(&Err(missing), start);
        assert_eq!(health.trouble(start + Duration::from_secs(3)), None);
    }
}
