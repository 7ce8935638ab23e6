//! From a global batch to the micro-batches of each rank.

/// What planning knows of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowShape {
    /// Tokens that its forward pass reads: what its sequences begin with counts once.
    pub cost: usize,
    /// Tokens of all its sequences.
    pub tokens: usize,
    /// What a batch's size counts: the pairs of a comparison, the answers of a group.
    pub items: usize,
    /// Its part of what the step's loss is divided by: its pairs' weights, its answers' tokens.
    pub weight: f64,
}

/// What the gang does in one step, the same on every rank but for `micro_batches`.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    /// The global batch in its order, all ranks' rows.
    pub rows: Vec<usize>,
    /// This rank's micro-batches, longest rows first; none where there are fewer rows than ranks.
    pub micro_batches: Vec<Vec<usize>>,
    /// Micro-batches of all ranks together.
    pub gang_micro_batches: usize,
    /// Σ weight over the global batch: the loss's denominator.
    pub weight: f64,
    /// Tokens of the global batch's sequences.
    pub tokens: usize,
    /// Pairs or answers of the global batch.
    pub items: usize,
}

/// Whose share of a global batch: that of one rank in a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    /// At least 1.
    pub world: usize,
}

impl StepPlan {
    /// Plans one global batch for one rank. `shapes` holds all rows of the phase; `budget` bounds the
    /// tokens that a micro-batch reads (a row that has more by itself gets a micro-batch of its own).
    ///
    /// Every rank plans for all ranks, so nothing needs to be agreed on.
    pub fn new(rows: &[usize], shapes: &[RowShape], share: Share, budget: usize) -> Self {
        let mut micro_batches = Vec::new();
        let mut gang_micro_batches = 0;
        for (rank, dealt) in deal(rows, shapes, share.world).iter().enumerate() {
            let cut = cut(dealt, shapes, budget);
            gang_micro_batches += cut.len();
            if rank == share.rank {
                micro_batches = cut;
            }
        }
        Self {
            micro_batches,
            gang_micro_batches,
            weight: rows.iter().map(|&row| shapes[row].weight).sum(),
            tokens: rows.iter().map(|&row| shapes[row].tokens).sum(),
            items: rows.iter().map(|&row| shapes[row].items).sum(),
            rows: rows.to_vec(),
        }
    }
}

/// Deals rows to `world` ranks so that their tokens are nearly equal: longest first, each to the rank with the fewest
/// tokens so far, ties to the lowest rank. Each rank's rows come longest first; equal ones keep their order.
pub fn deal(rows: &[usize], shapes: &[RowShape], world: usize) -> Vec<Vec<usize>> {
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|&row| std::cmp::Reverse(shapes[row].cost));
    let mut dealt = vec![Vec::new(); world.max(1)];
    let mut tokens = vec![0; world.max(1)];
    for row in sorted {
        let rank = (0..tokens.len()).min_by_key(|&rank| (tokens[rank], rank)).unwrap_or_default();
        tokens[rank] += shapes[row].cost;
        dealt[rank].push(row);
    }
    dealt
}

/// Cuts one rank's rows into micro-batches of at most `budget` tokens each, in their order.
pub fn cut(rows: &[usize], shapes: &[RowShape], budget: usize) -> Vec<Vec<usize>> {
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

    use super::{RowShape, Share, StepPlan};

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
            let plan = |rank, world| StepPlan::new(&rows, &shapes, Share { rank, world }, budget);
            let alone = plan(0, 1);
            let mut dealt: Vec<usize> = Vec::new();
            let mut micro_batches = 0;
            for rank in 0..world {
                let plan = plan(rank, world);
                prop_assert_eq!(&plan.rows, &alone.rows);
                prop_assert_eq!(plan.weight, alone.weight);
                micro_batches += plan.micro_batches.len();
                for batch in &plan.micro_batches {
                    let cost: usize = batch.iter().map(|&row| shapes[row].cost).sum();
                    prop_assert!(cost <= budget || batch.len() == 1);
                    dealt.extend(batch);
                }
            }
            prop_assert_eq!(micro_batches, plan(0, world).gang_micro_batches);
            dealt.sort_unstable();
            prop_assert_eq!(dealt, rows);
        }

        #[test]
        fn no_rank_has_more_than_one_row_too_many(shapes in shapes(), world in 2usize..6) {
            let rows: Vec<usize> = (0..shapes.len()).collect();
            let tokens: Vec<usize> = super::deal(&rows, &shapes, world)
                .iter()
                .map(|rows| rows.iter().map(|&row| shapes[row].cost).sum())
                .collect();
            let longest = shapes.iter().map(|shape| shape.cost).max().unwrap();
            prop_assert!(tokens.iter().max().unwrap() - tokens.iter().min().unwrap() <= longest);
        }
    }

    #[test]
    fn a_rank_without_rows_has_an_empty_plan() {
        let plan = StepPlan::new(&[0], &[shape(5, 2)], Share { rank: 1, world: 2 }, 100);
        assert!(plan.micro_batches.is_empty());
        assert_eq!(plan.gang_micro_batches, 1);
    }
}
