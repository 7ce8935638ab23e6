//! Checkpoints of a gang phase, from the shares that its ranks report.

use std::collections::BTreeMap;

use foil_proto::v1;

use super::task::gang_prefix;
use super::{Busy, Decision, Level, Refusal, Run, Slot, Stage, truthful};
use crate::clock::Now;
use crate::job::{Change, JobState};

/// A rank's word for a checkpoint that it cannot read.
pub(super) const UNREADABLE: &str = "checkpoint";

/// Shares that are durable, of checkpoints that are not whole yet.
#[derive(Debug, Default)]
pub(super) struct Shares(BTreeMap<u64, BTreeMap<usize, v1::Object>>);

impl Shares {
    /// Takes a rank's share of the checkpoint after `step`. Gives all shares, in the order of ranks, when this one makes
    /// them whole; those of earlier steps are then superfluous.
    pub(super) fn add(
        &mut self,
        step: u64,
        rank: usize,
        object: v1::Object,
        world: usize,
    ) -> Option<Vec<v1::Object>> {
        let shares = self.0.entry(step).or_default();
        shares.insert(rank, object);
        if shares.len() < world {
            return None;
        }
        let whole = self.0.remove(&step);
        self.0.retain(|&other, _| other > step);
        whole.map(|shares| shares.into_values().collect())
    }
}

impl Run {
    /// A rank's share is durable; the last one makes the checkpoint.
    pub(super) fn checkpoint_share(
        &mut self,
        state: &JobState,
        rank: usize,
        share: v1::CheckpointShare,
        flaw: Option<&str>,
        now: Now,
        out: &mut Decision,
    ) -> Result<(), Refusal> {
        let Some(phase) = self.expect_phase(state, &share.phase, share.attempt)? else { return Ok(()) };
        let prefix = gang_prefix(&self.job, &phase.id, self.attempt);
        let object = share.object.unwrap_or_default();
        if !object.key.starts_with(&prefix) {
            return Err(Refusal::Untrue(format!("{} is not a key of {prefix}", object.key)));
        }
        let (world, attempt) = (self.slots.len(), self.attempt);
        let (Some(Slot::Up { busy: Busy::Gang(member), .. }), Stage::Gang(gang)) =
            (self.slots.get_mut(rank), &mut self.stage)
        else {
            return Ok(());
        };
        member.pulse.beat(now);
        // To a new leader, ranks tell again what they told the one before.
        let known =
            state.checkpoints.last().is_some_and(|last| last.attempt == attempt && share.step <= last.step);
        if known {
            return Ok(());
        }
        truthful(flaw)?;
        if let Some(objects) = gang.shares.add(share.step, rank, object, world) {
            let made = v1::Checkpoint { phase: phase.id.clone(), step: share.step, attempt, objects };
            out.because(format!("all ranks' shares of the checkpoint after step {} are durable", share.step));
            out.changes.push(Change::CheckpointCommitted(made));
        }
        Ok(())
    }

    /// The last checkpoint cannot be read: loudly, the one before it counts from here on.
    pub(super) fn lose_checkpoint(&self, state: &JobState, failure: &v1::TaskFailure, out: &mut Decision) {
        let Some(lost) = state.checkpoints.last().filter(|_| self.closing.is_none()) else { return };
        let (step, attempt) = (lost.step, lost.attempt);
        let before = state.checkpoints.iter().rev().nth(1);
        let next = before.map_or_else(
            || "training starts this phase again".to_owned(),
            |before| format!("training goes on after step {}", before.step),
        );
        out.notice(Level::Error, format!("{}: it is put aside, and {next}", failure.message));
        let why = failure.message.clone();
        out.changes.push(Change::CheckpointLost { step, attempt, why });
    }
}

#[cfg(test)]
mod tests {
    use foil_proto::v1;

    use super::Shares;

    fn object(key: &str) -> v1::Object {
        v1::Object { key: key.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_checkpoint_is_whole_when_every_rank_has_told_of_its_share() {
        let mut shares = Shares::default();
        assert!(shares.add(5, 2, object("5/2"), 3).is_none());
        // A rank may be faster than others by a checkpoint.
        assert!(shares.add(9, 2, object("9/2"), 3).is_none());
        assert!(shares.add(5, 0, object("5/0"), 3).is_none());
        assert!(shares.add(5, 0, object("5/0"), 3).is_none(), "told twice");
        let whole = shares.add(5, 1, object("5/1"), 3).unwrap();
        assert_eq!(whole.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["5/0", "5/1", "5/2"]);
        assert!(shares.add(9, 0, object("9/0"), 3).is_none());
        assert!(shares.add(9, 1, object("9/1"), 3).is_some());
    }

    #[test]
    fn shares_of_a_step_before_a_whole_checkpoint_are_forgotten() {
        let mut shares = Shares::default();
        assert!(shares.add(5, 0, object("5/0"), 2).is_none());
        assert!(shares.add(9, 0, object("9/0"), 2).is_none());
        assert!(shares.add(9, 1, object("9/1"), 2).is_some());
        assert!(shares.add(5, 1, object("5/1"), 2).is_none());
    }
}
