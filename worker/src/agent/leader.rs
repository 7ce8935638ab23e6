//! Since when an agent may be without a leader. Pure: times are passed in.
//!
//! A leader answers each heartbeat for as long as nobody can have replaced it. So the agent had a leader when it *sent*
//! the last heartbeat that was answered; what was on its way for long says nothing of the time since.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A coordinator that answered none of so many heartbeats is not waited for.
const UNANSWERED: u32 = 3;
/// Nor for less than this.
const SHORTEST_SILENCE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Leader {
    /// A leader was surely there.
    there: Instant,
    /// When the present stream began.
    connected: Instant,
    number: u64,
    /// Heartbeats not answered yet, with when they were sent.
    sent: VecDeque<(u64, Instant)>,
}

impl Leader {
    pub(super) fn new(now: Instant) -> Self {
        Self { there: now, connected: now, number: 0, sent: VecDeque::new() }
    }

    /// A stream begins with the registration, sent now.
    pub(super) fn connecting(&mut self, now: Instant) {
        self.connected = now;
        self.sent.clear();
    }

    /// The registration was answered: it was sent to a leader.
    pub(super) fn welcomed(&mut self) {
        self.there = self.there.max(self.connected);
    }

    /// The number of the heartbeat that is sent now.
    pub(super) fn beat(&mut self, now: Instant) -> u64 {
        self.number += 1;
        self.sent.push_back((self.number, now));
        self.number
    }

    pub(super) fn heard(&mut self, number: u64) {
        while let Some((sent, at)) = self.sent.front().copied()
            && sent <= number
        {
            self.there = self.there.max(at);
            self.sent.pop_front();
        }
    }

    /// The last moment at which there surely was a leader.
    pub(super) fn last_surely_there(&self) -> Instant {
        self.there
    }

    /// The present coordinator does not answer any more.
    pub(super) fn is_silent(&self, now: Instant, heartbeat: Duration) -> bool {
        let limit = (heartbeat * UNANSWERED).max(SHORTEST_SILENCE);
        self.sent.front().is_some_and(|(_, at)| now - *at >= limit)
    }

    /// What could be done without a leader is done: the next fence period begins.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.there = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(2);

    #[test]
    fn an_answer_tells_of_when_the_question_was_sent() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leader = Leader::new(at(0));
        leader.connecting(at(1));
        assert_eq!(leader.last_surely_there(), at(0));
        leader.welcomed();
        assert_eq!(leader.last_surely_there(), at(1));
        let first = leader.beat(at(2));
        leader.beat(at(4));
        leader.heard(first);
        assert_eq!(leader.last_surely_there(), at(2), "however late the answer came");
        leader.connecting(at(50));
        assert_eq!(leader.last_surely_there(), at(2), "an open stream is no leader yet");
    }

    #[test]
    fn a_coordinator_that_falls_silent_is_noticed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leader = Leader::new(at(0));
        leader.connecting(at(0));
        let first = leader.beat(at(2));
        assert!(!leader.is_silent(at(7), BEAT));
        assert!(leader.is_silent(at(8), BEAT));
        leader.heard(first);
        assert!(!leader.is_silent(at(8), BEAT));
        leader.beat(at(62));
        assert!(leader.is_silent(at(68), BEAT));
        leader.connecting(at(68));
        assert!(!leader.is_silent(at(80), BEAT), "nothing was asked on this stream yet");
    }
}
