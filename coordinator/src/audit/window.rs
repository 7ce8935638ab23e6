//! A rate limit on the records of unknown callers.

use std::time::{Duration, SystemTime};

/// Number of records admitted per second.
const MAX_PER_SECOND: u32 = 20;

#[derive(Debug, Default)]
pub(super) struct Window {
    began: Option<SystemTime>,
    admitted: u32,
    suppressed: u64,
}

impl Window {
    /// Admits a record and returns the number of records omitted before it; none if it is omitted itself.
    pub(super) fn admit(&mut self, now: SystemTime) -> Option<u64> {
        let is_new = self.began.is_none_or(|began| {
            // A clock that was set back also begins a new second.
            now.duration_since(began).map_or(true, |since| since >= Duration::from_secs(1))
        });
        if is_new {
            (self.began, self.admitted) = (Some(now), 0);
        }
        if self.admitted >= MAX_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let (mut window, now) = (Window::default(), SystemTime::UNIX_EPOCH);
        let admitted = (0..1000).filter(|_| window.admit(now) == Some(0)).count();
        assert_eq!(admitted, MAX_PER_SECOND as usize);
        assert_eq!(window.admit(now + Duration::from_secs(1)), Some(980));
        assert_eq!(window.admit(now + Duration::from_secs(1)), Some(0));
        assert_eq!(window.admit(now), Some(0), "the clock was set back");
    }
}
