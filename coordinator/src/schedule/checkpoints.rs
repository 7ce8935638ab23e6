//! Checkpoints of a gang phase, from the shares that its ranks report.

use std::collections::BTreeMap;

use foil_proto::v1;

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
