//! Checkpoints of a gang phase, assembled from the shards that its ranks report.

use std::collections::BTreeMap;

use foil_proto::v1;

/// Durable shards of incomplete checkpoints, by step and rank.
#[derive(Debug, Default)]
pub(super) struct ShardSet(BTreeMap<u64, BTreeMap<usize, v1::Object>>);

impl ShardSet {
    /// Adds a rank's shard of the checkpoint after `step`. Returns all shards, in the order of ranks, if this
    /// one completes them; shards of earlier steps are then dropped.
    pub(super) fn add(
        &mut self,
        step: u64,
        rank: usize,
        object: v1::Object,
        world: usize,
    ) -> Option<Vec<v1::Object>> {
        let shards = self.0.entry(step).or_default();
        shards.insert(rank, object);
        if shards.len() < world {
            return None;
        }
        let complete = self.0.remove(&step);
        self.0.retain(|&other, _| other > step);
        complete.map(|shards| shards.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use foil_proto::v1;

    use super::ShardSet;

    fn object(key: &str) -> v1::Object {
        v1::Object { key: key.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_checkpoint_is_complete_when_every_rank_has_reported_its_shard() {
        let mut shards = ShardSet::default();
        assert!(shards.add(5, 2, object("5/2"), 3).is_none());
        // A rank may be one checkpoint ahead of the others.
        assert!(shards.add(9, 2, object("9/2"), 3).is_none());
        assert!(shards.add(5, 0, object("5/0"), 3).is_none());
        assert!(shards.add(5, 0, object("5/0"), 3).is_none(), "reported twice");
        let complete = shards.add(5, 1, object("5/1"), 3).unwrap();
        assert_eq!(
            complete.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(),
            ["5/0", "5/1", "5/2"]
        );
        assert!(shards.add(9, 0, object("9/0"), 3).is_none());
        assert!(shards.add(9, 1, object("9/1"), 3).is_some());
    }

    #[test]
    fn shards_older_than_a_complete_checkpoint_are_dropped() {
        let mut shards = ShardSet::default();
        assert!(shards.add(5, 0, object("5/0"), 2).is_none());
        assert!(shards.add(9, 0, object("9/0"), 2).is_none());
        assert!(shards.add(9, 1, object("9/1"), 2).is_some());
        assert!(shards.add(5, 1, object("5/1"), 2).is_none());
    }
}
