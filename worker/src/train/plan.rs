//! Splits a global batch into the micro-batches of each rank.

/// A row's sizes, used to plan steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowShape {
    /// Number of tokens of its forward pass; the sequences' common prefix counts once.
    pub cost: usize,
    /// Number of tokens of all its sequences.
    pub tokens: usize,
    /// Number of items toward the batch size: the pairs of a comparison, or the completions of a group.
    pub items: usize,
    /// Its share of the loss's denominator: the sum of its pairs' weights, or its response tokens.
    pub weight: f64,
}

/// One step of the gang; equal on all ranks except for `micro_batches`.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    /// The rows of the global batch, in order.
    pub rows: Vec<usize>,
    /// This rank's micro-batches, longest rows first. Empty if the batch has no rows for this rank.
    pub micro_batches: Vec<Vec<usize>>,
    /// Number of micro-batches of all ranks together.
    pub gang_micro_batches: usize,
    /// Number of micro-batches of the rank that has the most.
    pub most_micro_batches: usize,
    /// Σ weight over the global batch: the loss's denominator.
    pub weight: f64,
    /// Number of tokens of the global batch's sequences.
    pub tokens: usize,
    /// Number of pairs or responses in the global batch.
    pub items: usize,
}

/// A rank, and the number of ranks in its gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankInfo {
    pub rank: usize,
    /// At least 1.
    pub world: usize,
}

impl StepPlan {
    /// Plans one global batch for one rank. `shapes` contains all rows of the phase. `budget` bounds the
    /// tokens that a micro-batch reads; a row that exceeds it gets a micro-batch of its own.
    ///
    /// Every rank plans for all ranks, so they need not communicate.
    pub fn new(rows: &[usize], shapes: &[RowShape], info: RankInfo, budget: usize) -> Self {
        let mut micro_batches = Vec::new();
        let (mut gang_micro_batches, mut most_micro_batches) = (0, 0);
        for (rank, rows) in distribute(rows, shapes, info.world).iter().enumerate() {
            let own = split_micro_batches(rows, shapes, budget);
            gang_micro_batches += own.len();
            most_micro_batches = most_micro_batches.max(own.len());
            if rank == info.rank {
                micro_batches = own;
            }
        }
        Self {
            micro_batches,
            gang_micro_batches,
            most_micro_batches,
            weight: rows.iter().map(|&row| shapes[row].weight).sum(),
            tokens: rows.iter().map(|&row| shapes[row].tokens).sum(),
            items: rows.iter().map(|&row| shapes[row].items).sum(),
            rows: rows.to_vec(),
        }
    }
}

/// Distributes rows over `world` ranks with nearly equal numbers of tokens. The longest row goes first, each
/// to the rank with the fewest tokens so far, and ties go to the lowest rank. Rows of equal length keep their
/// order.
pub fn distribute(rows: &[usize], shapes: &[RowShape], world: usize) -> Vec<Vec<usize>> {
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|&row| std::cmp::Reverse(shapes[row].cost));
    let mut ranks = vec![Vec::new(); world.max(1)];
    let mut tokens = vec![0; world.max(1)];
    for row in sorted {
        let rank = (0..tokens.len()).min_by_key(|&rank| (tokens[rank], rank)).unwrap_or_default();
        tokens[rank] += shapes[row].cost;
        ranks[rank].push(row);
    }
    ranks
}

/// Splits one rank's rows into micro-batches of at most `budget` tokens each, in order.
pub fn split_micro_batches(rows: &[usize], shapes: &[RowShape], budget: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for &row in rows {
        match batches.last_mut() {
            Some(batch) if tokens + shapes[row].cost <= budget => batch.push(row),
            _ => {
                batches.push(vec![row]);
                tokens = 0;
            }
        }
        tokens += shapes[row].cost;
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{RankInfo, RowShape, StepPlan};

    fn shape(cost: usize, items: usize) -> RowShape {
        RowShape { cost, tokens: cost * items, items, weight: 0.25 * cost as f64 }
    }

    fn shapes() -> impl Strategy<Value = Vec<RowShape>> {
        prop::collection::vec((1usize..300, 1usize..3).prop_map(|(cost, items)| shape(cost, items)), 1..80)
    }

    proptest! {
        #[test]
        fn ranks_share_the_batch_within_budget(shapes in shapes(), world in 1usize..6, budget in 1usize..2000) {
            let rows: Vec<usize> = (0..shapes.len()).collect();
            let plan = |rank, world| StepPlan::new(&rows, &shapes, RankInfo { rank, world }, budget);
            let single = plan(0, 1);
            let mut distributed: Vec<usize> = Vec::new();
            let mut micro_batches = 0;
            for rank in 0..world {
                let plan = plan(rank, world);
                prop_assert_eq!(&plan.rows, &single.rows);
                prop_assert_eq!(plan.weight, single.weight);
                micro_batches += plan.micro_batches.len();
                for batch in &plan.micro_batches {
                    let cost: usize = batch.iter().map(|&row| shapes[row].cost).sum();
                    prop_assert!(cost <= budget || batch.len() == 1);
                    distributed.extend(batch);
                }
            }
            prop_assert_eq!(micro_batches, plan(0, world).gang_micro_batches);
            distributed.sort_unstable();
            prop_assert_eq!(distributed, rows);
        }

        #[test]
        fn no_rank_has_more_than_one_row_too_many(shapes in shapes(), world in 2usize..6) {
            let rows: Vec<usize> = (0..shapes.len()).collect();
            let tokens: Vec<usize> = super::distribute(&rows, &shapes, world)
                .iter()
                .map(|rows| rows.iter().map(|&row| shapes[row].cost).sum())
                .collect();
            let longest = shapes.iter().map(|shape| shape.cost).max().unwrap();
            prop_assert!(tokens.iter().max().unwrap() - tokens.iter().min().unwrap() <= longest);
        }
    }

    #[test]
    fn a_rank_without_rows_has_an_empty_plan() {
        let plan = StepPlan::new(&[0], &[shape(5, 2)], RankInfo { rank: 1, world: 2 }, 100);
        assert!(plan.micro_batches.is_empty());
        assert_eq!(plan.gang_micro_batches, 1);
    }
}
