//! Failure detection by a standby. Pure: observations and the standby's own clock go in, a verdict comes out.

use std::time::Duration;

use foil_common::storage::log::Heartbeat;

/// One check by a standby, which reads first the log, then the leader's heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Term of the last elected leader; 0 if there never was one.
    pub term: u64,
    /// First free number in the log.
    pub next: u64,
    /// Latest heartbeat and the term that it belongs to.
    pub heartbeat: Option<(u64, Heartbeat)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    /// The leader is lost, for this reason.
    Campaign(&'static str),
}

/// Measures how long the leader has shown no activity.
#[derive(Debug)]
pub struct LeaderMonitor {
    timeout: Duration,
    last: Option<(Observation, Duration)>,
}

impl LeaderMonitor {
    /// `timeout` is the maximum time without activity.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, last: None }
    }

    /// Handles one observation; `now` is the time at which it was complete.
    pub fn observe(&mut self, observation: Observation, now: Duration) -> Verdict {
        if observation.next == 0 {
            return Verdict::Campaign("this store never had a leader");
        }
        if matches!(&observation.heartbeat, Some((term, heartbeat)) if *term == observation.term && heartbeat.released)
        {
            return Verdict::Campaign("the leader has shut down");
        }
        match &self.last {
            Some((last, since)) if *last == observation => {
                if now.saturating_sub(*since) >= self.timeout {
                    return Verdict::Campaign("the leader's heartbeats have stopped");
                }
            }
            _ => self.last = Some((observation, now)),
        }
        Verdict::Wait
    }

    /// Starts over after the store could not be read, because nothing is known about the time in between.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(next: u64, counter: u64) -> Observation {
        let heartbeat = Heartbeat { address: "http://a:1".into(), counter, released: false };
        Observation { term: 3, next, heartbeat: Some((3, heartbeat)) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_leader_is_gone_when_nothing_changed_for_the_whole_timeout() {
        let mut monitor = LeaderMonitor::new(at(5));
        let gone = Verdict::Campaign("the leader's heartbeats have stopped");
        assert_eq!(monitor.observe(observation(9, 1), at(0)), Verdict::Wait);
        assert_eq!(monitor.observe(observation(9, 1), at(4)), Verdict::Wait);
        assert_eq!(monitor.observe(observation(9, 2), at(5)), Verdict::Wait, "a heartbeat");
        assert_eq!(monitor.observe(observation(10, 2), at(9)), Verdict::Wait, "an append");
        assert_eq!(monitor.observe(observation(10, 2), at(13)), Verdict::Wait);
        monitor.reset();
        assert_eq!(
            monitor.observe(observation(10, 2), at(15)),
            Verdict::Wait,
            "unobserved time does not count"
        );
        assert_eq!(monitor.observe(observation(10, 2), at(19)), Verdict::Wait);
        assert_eq!(monitor.observe(observation(10, 2), at(20)), gone);
    }

    #[test]
    fn without_a_leader_a_standby_campaigns_at_once() {
        let mut monitor = LeaderMonitor::new(at(5));
        let empty = Observation { term: 0, next: 0, heartbeat: None };
        assert!(matches!(monitor.observe(empty, at(0)), Verdict::Campaign(_)));
        let mut released = observation(9, 1);
        released.heartbeat.as_mut().unwrap().1.released = true;
        assert!(matches!(monitor.observe(released.clone(), at(1)), Verdict::Campaign(_)));
        released.term = 4;
        assert_eq!(
            monitor.observe(released, at(2)),
            Verdict::Wait,
            "a later leader has already been elected"
        );
    }
}
