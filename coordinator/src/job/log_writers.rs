//! The rank processes that may still write their logs: a process's last lines reach the store after it has
//! exited, when its attempt may be over and the next one running.

use std::collections::{BTreeMap, VecDeque};

use super::event::RankStarted;
use crate::secret;

/// Number of most recent processes per rank, across all attempts, whose logs are accepted.
pub(super) const PER_RANK: usize = 2;

/// The last processes of each rank, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogWriters(BTreeMap<u32, VecDeque<LogWriter>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogWriter {
    pub attempt: u32,
    pub rank: u32,
    pub session: String,
    /// Fingerprint of its secret.
    proof: String,
}

impl LogWriters {
    pub(super) fn add(&mut self, started: &RankStarted) {
        let RankStarted { attempt, rank, session, proof, .. } = started;
        let writers = self.0.entry(*rank).or_default();
        if writers.len() == PER_RANK {
            writers.pop_front();
        }
        let (session, proof) = (session.clone(), proof.clone());
        writers.push_back(LogWriter { attempt: *attempt, rank: *rank, session, proof });
    }

    /// The process of a session, if the secret belongs to it.
    pub fn verify(&self, session: &str, secret: &str) -> Option<&LogWriter> {
        self.iter().find(|writer| writer.session == session && secret::verify(secret, &writer.proof))
    }

    pub fn iter(&self) -> impl Iterator<Item = &LogWriter> {
        self.0.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_processes_of_a_rank_may_write_with_their_own_secrets() {
        let started = |attempt: u32, rank: u32, session: &str| RankStarted {
            attempt,
            rank,
            session: session.into(),
            agent: "a".into(),
            device: "cpu:0".into(),
            proof: secret::fingerprint(&format!("secret of {session}")),
        };
        let mut writers = LogWriters::default();
        for started in [started(1, 0, "s1"), started(1, 1, "s2"), started(1, 0, "s3"), started(2, 0, "s4")] {
            writers.add(&started);
        }
        let of = |session: &str, secret: &str| {
            writers
                .verify(session, &format!("secret of {secret}"))
                .map(|writer| (writer.attempt, writer.rank))
        };
        assert_eq!(
            (of("s4", "s4"), of("s3", "s3"), of("s2", "s2")),
            (Some((2, 0)), Some((1, 0)), Some((1, 1)))
        );
        assert_eq!((of("s1", "s1"), of("s4", "s3"), of("s5", "s5")), (None, None, None));
    }
}
