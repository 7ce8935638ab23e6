use std::time::Duration;

/// Durations that govern the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// For this long after a job began to wait, nothing goes ahead of it and nothing is preempted for it,
    /// because workers may be about to join.
    pub settling: Duration,
    /// Once a job has waited this long, nothing behind it goes ahead of it.
    pub backfill: Duration,
    /// A waiting job gains a point of priority each time this has passed.
    pub aging: Duration,
    /// How long a stalled attempt keeps its devices while others could use them.
    pub holding: Duration,
    /// How long an attempt runs before it may be preempted.
    pub preempt_exempt: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            settling: Duration::from_secs(3),
            backfill: Duration::from_secs(5 * 60),
            aging: Duration::from_secs(60),
            holding: Duration::from_secs(60),
            preempt_exempt: Duration::from_secs(2 * 60),
        }
    }
}

impl Policy {
    /// The priority of a job after it has waited for some time.
    pub fn aged(&self, priority: i32, waited: Duration) -> i64 {
        let points = waited.as_millis() / self.aging.as_millis().max(1);
        i64::from(priority).saturating_add(i64::try_from(points).unwrap_or(i64::MAX))
    }
}
