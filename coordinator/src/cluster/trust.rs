//! How far an agent is trusted: one that starts no ranks, or whose ranks report what is not so, is set aside for a while.
//! Pure: time is passed in. It is kept in memory alone: a new leader learns it again, at the price of two starts that never
//! connect, which are charged to no job that another agent can play.

use std::time::Duration;

use crate::clock::Now;

/// What an agent, and not the job, is to blame for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A rank process it was told to start never connected.
    NeverConnected,
    /// One of its ranks reported what is not so.
    Misreported,
}

/// Strikes after which an agent is set aside.
const STRIKES: u32 = 2;
/// Doublings of the time for which it is.
const DOUBLINGS: u32 = 5;

/// One agent's record.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust {
    /// Since a rank of its last connected.
    strikes: u32,
    last: Option<Fault>,
    until: Option<Duration>,
    /// How often it was set aside, one time after another.
    times: u32,
}

impl Trust {
    /// Gives for how long the agent is set aside, where that begins now.
    pub(super) fn strike(&mut self, fault: Fault, probation: Duration, now: Now) -> Option<Duration> {
        self.last = Some(fault);
        self.strikes += match fault {
            Fault::NeverConnected => 1,
            Fault::Misreported => STRIKES,
        };
        // One that is aside already may still be told of, for what it was given before.
        if self.strikes < STRIKES || self.until.is_some() {
            return None;
        }
        let period = probation * 2_u32.pow(self.times.min(DOUBLINGS));
        self.times += 1;
        self.until = Some(now.mono + period);
        Some(period)
    }

    /// A rank of the agent's connected: it does start them. That it told what is not so stands.
    pub(super) fn vouch(&mut self) {
        if self.last == Some(Fault::NeverConnected) {
            *self = Self::default();
        }
    }

    /// One whose time is over is tried again; the next strike sets it aside for longer.
    pub(super) fn lift(&mut self, now: Now) {
        if self.until.is_some_and(|until| now.mono >= until) {
            self.until = None;
            self.strikes = STRIKES - 1;
        }
    }

    pub(super) fn is_set_aside(&self) -> bool {
        self.until.is_some()
    }

    /// Less is better.
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
    fn two_starts_that_never_connect_set_an_agent_aside_each_time_for_longer() {
        let mut trust = Trust::default();
        assert_eq!(trust.strike(Fault::NeverConnected, PROBATION, at(0)), None);
        assert!(!trust.is_set_aside());
        assert_eq!(trust.strike(Fault::NeverConnected, PROBATION, at(1)), Some(PROBATION));
        assert_eq!(trust.strike(Fault::NeverConnected, PROBATION, at(2)), None, "told once");
        trust.lift(at(30));
        assert!(trust.is_set_aside());
        trust.lift(at(31));
        assert!(!trust.is_set_aside());
        assert_eq!(trust.strike(Fault::NeverConnected, PROBATION, at(40)), Some(2 * PROBATION));
        trust.vouch();
        assert!(!trust.is_set_aside() && trust.strikes() == 0, "it starts ranks after all");
        assert_eq!(trust.strike(Fault::NeverConnected, PROBATION, at(50)), None);
    }

    #[test]
    fn one_false_report_is_enough_and_a_connection_does_not_excuse_it() {
        let mut trust = Trust::default();
        assert_eq!(trust.strike(Fault::Misreported, PROBATION, at(0)), Some(PROBATION));
        trust.vouch();
        assert!(trust.is_set_aside());
        trust.lift(at(30));
        assert_eq!(trust.strike(Fault::Misreported, PROBATION, at(30)), Some(2 * PROBATION));
    }
}
