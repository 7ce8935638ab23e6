//! Rates of tenants' requests: a token bucket for each tenant that has a limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Quota;

/// Time that fills an empty bucket: the burst allowed after a pause is the tenant's rate times this duration.
const BURST: Duration = Duration::from_secs(5);

/// A tenant's request that comes too early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant {tenant} may make {rate} requests a second, and makes more; ask less often, or ask an administrator for a larger \
     quota (requests_per_second)"
)]
pub struct RateExceeded {
    pub tenant: String,
    pub rate: u32,
    /// Time until the next request is admitted.
    pub wait: Duration,
}

/// The buckets of a leader, by tenant. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct RequestRates(Arc<Mutex<HashMap<String, Bucket>>>);

#[derive(Debug)]
struct Bucket {
    /// Number of tokens added per second.
    rate: u32,
    tokens: f64,
    /// Time of the last update.
    at: Duration,
}

impl RequestRates {
    /// Applies a tenant's quota.
    pub fn set(&self, tenant: &str, quota: &Quota, now: Duration) {
        let mut buckets = self.buckets();
        match (quota.requests_per_second, buckets.get_mut(tenant)) {
            (None, _) => drop(buckets.remove(tenant)),
            (Some(rate), Some(bucket)) => bucket.rate = rate,
            (Some(rate), None) => drop(buckets.insert(tenant.to_owned(), Bucket::full(rate, now))),
        }
    }

    /// Admits a request of a tenant.
    ///
    /// # Errors
    /// The tenant has exceeded its rate.
    pub fn take(&self, tenant: &str, now: Duration) -> Result<(), RateExceeded> {
        let mut buckets = self.buckets();
        let Some(bucket) = buckets.get_mut(tenant) else { return Ok(()) };
        let rate = bucket.rate;
        bucket.take(now).map_err(|wait| RateExceeded { tenant: tenant.to_owned(), rate, wait })
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        // Each change is complete in itself, so a panic elsewhere leaves no inconsistent state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn full(rate: u32, now: Duration) -> Self {
        Self { rate, tokens: Self::room(rate), at: now }
    }

    /// Capacity of a bucket: at least one request, or else none would ever be admitted.
    fn room(rate: u32) -> f64 {
        (f64::from(rate) * BURST.as_secs_f64()).max(1.0)
    }

    /// Takes a token, or returns the time until one is available.
    fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let rate = f64::from(self.rate);
        let added = now.saturating_sub(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + added).min(Self::room(self.rate));
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(rate: Option<u32>) -> RequestRates {
        let rates = RequestRates::default();
        rates.set("research", &limit(rate), Duration::ZERO);
        rates
    }

    fn limit(requests_per_second: Option<u32>) -> Quota {
        Quota { requests_per_second, ..Quota::default() }
    }

    #[test]
    fn a_tenant_has_its_rate_and_a_burst_and_others_have_theirs() {
        let rates = rates(Some(4));
        let admitted = |at: Duration| (0..100).filter(|_| rates.take("research", at).is_ok()).count();
        assert_eq!(admitted(Duration::ZERO), 20, "the burst");
        assert_eq!(admitted(Duration::from_secs(1)), 4);
        let refused = rates.take("research", Duration::from_secs(1)).unwrap_err();
        assert_eq!((refused.rate, refused.wait), (4, Duration::from_millis(250)));
        assert!(refused.to_string().starts_with("tenant research may make 4 requests a second"), "{refused}");
        assert_eq!(rates.take("research", Duration::from_secs(1) + refused.wait), Ok(()));
        assert_eq!(admitted(Duration::from_secs(3600)), 20, "a pause saves no more than a burst");
        assert_eq!(admitted(Duration::from_secs(1800)), 0, "an outdated clock reading adds nothing");
        assert!((0..100).all(|_| rates.take("vision", Duration::ZERO).is_ok()), "it has no rate");
    }

    #[test]
    fn a_new_rate_counts_at_once_and_fills_no_bucket() {
        let rates = rates(Some(1));
        let admitted = |at| (0..100).filter(|_| rates.take("research", at).is_ok()).count();
        assert_eq!(admitted(Duration::ZERO), 5);
        rates.set("research", &limit(Some(10)), Duration::ZERO);
        assert_eq!(admitted(Duration::ZERO), 0);
        assert_eq!(admitted(Duration::from_secs(1)), 10);
        rates.set("research", &limit(None), Duration::from_secs(1));
        assert_eq!(admitted(Duration::from_secs(1)), 100);
    }
}
