//! Latencies and their quantiles.

use std::fmt;
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// The smallest latency that at least `share` of all do not exceed; `None` if there are no latencies.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

/// Median and 99th percentile in milliseconds.
impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.quantile(0.5), self.quantile(0.99)) {
            (Some(half), Some(most)) => {
                write!(f, "{:.1} {:.1}", half.as_secs_f64() * 1e3, most.as_secs_f64() * 1e3)
            }
            _ => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_latencies_that_were_seen() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.to_string(), "-");
        (1..=200).rev().for_each(|number| latencies.push(Duration::from_millis(number)));
        assert_eq!(latencies.to_string(), "100.0 198.0");
        assert_eq!(latencies.quantile(1.0), Some(Duration::from_millis(200)));
    }
}
