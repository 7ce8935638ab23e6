//! Tracks how long an agent may have been without a leader. Pure: times are passed in.
//!
//! A leader answers a heartbeat only while no other can have replaced it. So the agent had a leader when it
//! *sent* the last heartbeat that was answered; when the answer arrived does not matter.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Number of heartbeats without an answer after which a coordinator counts as silent.
const MAX_MISSED: u32 = 3;
/// Minimum time without an answer before a coordinator counts as silent.
const MIN_SILENCE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct LeaderLease {
    /// The last time at which there certainly was a leader.
    last_known: Instant,
    /// Start of the current stream.
    connected: Instant,
    number: u64,
    /// Unanswered heartbeats with the times at which they were sent.
    pending: VecDeque<(u64, Instant)>,
}

impl LeaderLease {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_known: now, connected: now, number: 0, pending: VecDeque::new() }
    }

    /// Records that a stream is being opened and the registration is being sent on it.
    pub(super) fn connecting(&mut self, now: Instant) {
        self.connected = now;
        self.pending.clear();
    }

    /// Records that the registration was answered, so it was sent to a leader.
    pub(super) fn registered(&mut self) {
        self.last_known = self.last_known.max(self.connected);
    }

    /// The number of the heartbeat that is about to be sent.
    pub(super) fn next_heartbeat(&mut self, now: Instant) -> u64 {
        self.number += 1;
        self.pending.push_back((self.number, now));
        self.number
    }

    /// Records that heartbeats up to `number` were answered.
    pub(super) fn acknowledged(&mut self, number: u64) {
        while let Some((sent, at)) = self.pending.front().copied()
            && sent <= number
        {
            self.last_known = self.last_known.max(at);
            self.pending.pop_front();
        }
    }

    /// The last time at which there certainly was a leader.
    pub(super) fn last_known(&self) -> Instant {
        self.last_known
    }

    /// Whether the current coordinator has stopped answering.
    pub(super) fn is_silent(&self, now: Instant, heartbeat: Duration) -> bool {
        let limit = (heartbeat * MAX_MISSED).max(MIN_SILENCE);
        self.pending.front().is_some_and(|(_, at)| now - *at >= limit)
    }

    /// Starts a new fence period, after the ranks of the old one have been killed.
    pub(super) fn reset(&mut self, now: Instant) {
        self.last_known = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(2);

    #[test]
    fn an_answer_proves_a_leader_at_the_time_the_heartbeat_was_sent() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leader = LeaderLease::new(at(0));
        leader.connecting(at(1));
        assert_eq!(leader.last_known(), at(0));
        leader.registered();
        assert_eq!(leader.last_known(), at(1));
        let first = leader.next_heartbeat(at(2));
        leader.next_heartbeat(at(4));
        leader.acknowledged(first);
        assert_eq!(leader.last_known(), at(2), "however late the answer comes");
        leader.connecting(at(50));
        assert_eq!(leader.last_known(), at(2), "an open stream does not prove a leader");
    }

    #[test]
    fn a_coordinator_that_falls_silent_is_noticed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leader = LeaderLease::new(at(0));
        leader.connecting(at(0));
        let first = leader.next_heartbeat(at(2));
        assert!(!leader.is_silent(at(7), HEARTBEAT));
        assert!(leader.is_silent(at(8), HEARTBEAT));
        leader.acknowledged(first);
        assert!(!leader.is_silent(at(8), HEARTBEAT));
        leader.next_heartbeat(at(62));
        assert!(leader.is_silent(at(68), HEARTBEAT));
        leader.connecting(at(68));
        assert!(!leader.is_silent(at(80), HEARTBEAT), "no heartbeat was sent on this stream yet");
    }
}
