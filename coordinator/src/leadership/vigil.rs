//! When a standby takes the leader for gone. Pure: what it sees and its own clock go in.

use std::time::Duration;

use foil_common::storage::log::Beat;

/// What a standby saw at one look: first the log, then the leader's beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Of the last leader elected; 0 where there never was one.
    pub term: u64,
    /// The first number of the log that is free.
    pub next: u64,
    pub beat: Option<(u64, Beat)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    Stand(&'static str),
}

/// Looks on while nothing changes.
#[derive(Debug)]
pub struct Vigil {
    patience: Duration,
    last: Option<(Sight, Duration)>,
}

impl Vigil {
    /// `patience` is how long a leader may be without a sign of life.
    pub fn new(patience: Duration) -> Self {
        Self { patience, last: None }
    }

    /// `now` is when the look was over.
    pub fn looked(&mut self, sight: Sight, now: Duration) -> Verdict {
        if sight.next == 0 {
            return Verdict::Stand("nobody has led this store yet");
        }
        if matches!(&sight.beat, Some((term, beat)) if *term == sight.term && beat.released) {
            return Verdict::Stand("the leader has stopped in order");
        }
        match &self.last {
            Some((last, since)) if *last == sight => {
                if now.saturating_sub(*since) >= self.patience {
                    return Verdict::Stand("the leader has given no sign of life");
                }
            }
            _ => self.last = Some((sight, now)),
        }
        Verdict::Wait
    }

    /// The store could not be read: what was seen before says nothing of the time until now.
    pub fn blind(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(next: u64, counter: u64) -> Sight {
        let beat = Beat { address: "http://a:1".into(), counter, released: false };
        Sight { term: 3, next, beat: Some((3, beat)) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_leader_is_gone_when_nothing_changed_for_the_whole_patience() {
        let mut vigil = Vigil::new(at(5));
        let gone = Verdict::Stand("the leader has given no sign of life");
        assert_eq!(vigil.looked(sight(9, 1), at(0)), Verdict::Wait);
        assert_eq!(vigil.looked(sight(9, 1), at(4)), Verdict::Wait);
        assert_eq!(vigil.looked(sight(9, 2), at(5)), Verdict::Wait, "it beats");
        assert_eq!(vigil.looked(sight(10, 2), at(9)), Verdict::Wait, "it appends");
        assert_eq!(vigil.looked(sight(10, 2), at(13)), Verdict::Wait);
        vigil.blind();
        assert_eq!(vigil.looked(sight(10, 2), at(15)), Verdict::Wait, "unseen time does not count");
        assert_eq!(vigil.looked(sight(10, 2), at(19)), Verdict::Wait);
        assert_eq!(vigil.looked(sight(10, 2), at(20)), gone);
    }

    #[test]
    fn nobody_is_waited_for_where_there_is_nobody() {
        let mut vigil = Vigil::new(at(5));
        let empty = Sight { term: 0, next: 0, beat: None };
        assert!(matches!(vigil.looked(empty, at(0)), Verdict::Stand(_)));
        let mut released = sight(9, 1);
        released.beat.as_mut().unwrap().1.released = true;
        assert!(matches!(vigil.looked(released.clone(), at(1)), Verdict::Stand(_)));
        released.term = 4;
        assert_eq!(vigil.looked(released, at(2)), Verdict::Wait, "a later leader is there already");
    }
}
