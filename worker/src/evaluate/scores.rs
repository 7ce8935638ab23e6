//! Batched scores of a reward model.

use tch::{Device, no_grad};

use crate::model::{ModelError, PackedBatch, Precision, RewardModel, packed_rows};
use crate::train::RowShape;
use crate::train::plan::split_micro_batches;

/// Scores the sequences (whole dialogues) of each group, in order. The shared prefix of a group is computed
/// once.
///
/// Groups are batched in order with at most `budget` rows per batch. The same groups and budget give the same
/// bits.
///
/// # Errors
/// A sequence without tokens.
pub fn scores<S: AsRef<[u32]>>(
    model: &RewardModel,
    groups: &[Vec<S>],
    precision: Precision,
    budget: usize,
) -> Result<Vec<Vec<f64>>, ModelError> {
    let mut scores = Vec::with_capacity(groups.len());
    for batch in batches(groups.iter().map(|group| packed_rows(group)), budget) {
        let groups = &groups[batch];
        let packed = PackedBatch::from_groups(groups, model.device())?;
        let values = no_grad(|| model.scores(&packed, precision))?.to_device(Device::Cpu);
        let mut values = Vec::<f32>::try_from(values)?.into_iter().map(f64::from);
        scores.extend(groups.iter().map(|group| values.by_ref().take(group.len()).collect::<Vec<f64>>()));
    }
    Ok(scores)
}

/// Splits rows into consecutive batches that cost at most `budget` each.
pub(super) fn batches(costs: impl Iterator<Item = usize>, budget: usize) -> Vec<std::ops::Range<usize>> {
    let shapes: Vec<RowShape> =
        costs.map(|cost| RowShape { cost, tokens: cost, items: 1, weight: 1.0 }).collect();
    let rows: Vec<usize> = (0..shapes.len()).collect();
    let batches = split_micro_batches(&rows, &shapes, budget).into_iter();
    batches.filter_map(|batch| Some(*batch.first()?..*batch.last()? + 1)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Device;

    use super::{batches, scores};
    use crate::model::{Precision, RewardModel};

    #[test]
    fn scores_keep_their_order_with_any_budget_and_groups() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/model/llama-reward");
        let model = RewardModel::load(&dir, Device::Cpu).unwrap();
        let prompt: Vec<u32> = (1..20).collect();
        let completion = |tokens: &[u32]| [prompt.as_slice(), tokens].concat();
        let groups =
            [vec![vec![1, 5, 9]], vec![completion(&[7]), prompt.clone(), completion(&[8, 9])], vec![vec![7]]];
        let separate: Vec<Vec<Vec<u32>>> =
            groups.concat().into_iter().map(|sequence| vec![sequence]).collect();
        let single = scores(&model, &separate, Precision::Fp32, 1).unwrap().concat();
        for budget in [1, 25, 1000] {
            let batched = scores(&model, &groups, Precision::Fp32, budget).unwrap();
            assert_eq!(batched.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3, 1]);
            for (single, batched) in single.iter().zip(batched.concat()) {
                assert!((single - batched).abs() < 1e-5 * single.abs().max(1.0));
            }
        }
        assert_eq!(batches([3, 6, 1, 4].into_iter(), 8), [0..1, 1..3, 3..4]);
    }
}
