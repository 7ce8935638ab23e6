//! Trust in an agent: an agent that starts no ranks, or whose ranks make false reports, is excluded for a
//! while. Pure: time is passed in. The record is in memory only: a new leader relearns it from two starts
//! that never connect, which do not count against a job that another agent can run.

use std::time::Duration;

use crate::clock::Now;

/// A failure that is the agent's fault and not the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentFault {
    /// A rank process that the agent was asked to start never connected.
    NeverConnected,
    /// One of the agent's ranks made a false report.
    FalseReport,
}

/// Number of strikes after which an agent is excluded.
const STRIKES: u32 = 2;
/// Maximum number of times that the period doubles.
const DOUBLINGS: u32 = 5;

/// The fault record of one agent.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust {
    /// Strikes since one of its ranks last connected.
    strikes: u32,
    last: Option<AgentFault>,
    until: Option<Duration>,
    /// Number of consecutive exclusions.
    times: u32,
}

impl Trust {
    /// Records a fault. Returns the length of the agent's exclusion if one starts now.
    pub(super) fn strike(&mut self, fault: AgentFault, probation: Duration, now: Now) -> Option<Duration> {
        self.last = Some(fault);
        self.strikes += match fault {
            AgentFault::NeverConnected => 1,
            AgentFault::FalseReport => STRIKES,
        };
        // An agent that is already excluded may still fail at work assigned before.
        if self.strikes < STRIKES || self.until.is_some() {
            return None;
        }
        let period = probation * 2_u32.pow(self.times.min(DOUBLINGS));
        self.times += 1;
        self.until = Some(now.mono + period);
        Some(period)
    }

    /// Records that a rank of the agent has connected. This clears failed starts, but not false reports.
    pub(super) fn record_connection(&mut self) {
        if self.last == Some(AgentFault::NeverConnected) {
            *self = Self::default();
        }
    }

    /// Ends an exclusion whose time is over; the next strike excludes the agent for longer.
    pub(super) fn lift(&mut self, now: Now) {
        if self.until.is_some_and(|until| now.mono >= until) {
            self.until = None;
            self.strikes = STRIKES - 1;
        }
    }

    pub(super) fn is_excluded(&self) -> bool {
        self.until.is_some()
    }

    /// The fault for which the agent is excluded, and until when.
    pub(super) fn exclusion(&self) -> Option<(AgentFault, Duration)> {
        self.last.zip(self.until)
    }

    /// Number of strikes; agents with fewer are preferred.
    pub(super) fn strikes(&self) -> u32 {
        self.strikes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBATION: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), wall: 0 }
    }

    #[test]
    fn two_starts_that_never_connect_exclude_an_agent_each_time_for_longer() {
        let mut trust = Trust::default();
        assert_eq!(trust.strike(AgentFault::NeverConnected, PROBATION, at(0)), None);
        assert!(!trust.is_excluded());
        assert_eq!(trust.strike(AgentFault::NeverConnected, PROBATION, at(1)), Some(PROBATION));
        assert_eq!(trust.strike(AgentFault::NeverConnected, PROBATION, at(2)), None, "reported once");
        trust.lift(at(30));
        assert!(trust.is_excluded());
        trust.lift(at(31));
        assert!(!trust.is_excluded());
        assert_eq!(trust.strike(AgentFault::NeverConnected, PROBATION, at(40)), Some(2 * PROBATION));
        trust.record_connection();
        assert!(!trust.is_excluded() && trust.strikes() == 0, "the agent does start ranks");
        assert_eq!(trust.strike(AgentFault::NeverConnected, PROBATION, at(50)), None);
    }

    #[test]
    fn one_false_report_is_enough_and_a_connection_does_not_excuse_it() {
        let mut trust = Trust::default();
        assert_eq!(trust.strike(AgentFault::FalseReport, PROBATION, at(0)), Some(PROBATION));
        trust.record_connection();
        assert!(trust.is_excluded());
        trust.lift(at(30));
        assert_eq!(trust.strike(AgentFault::FalseReport, PROBATION, at(30)), Some(2 * PROBATION));
    }
}
