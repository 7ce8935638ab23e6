//! Reward-model scores of many sequences.

use tch::{Device, no_grad};

use crate::model::{ModelError, Precision, RewardModel, TokenBatch};
use crate::train::RowShape;
use crate::train::plan::cut;

/// Scores each sequence (a whole dialogue); the scores come in the order of `sequences`.
///
/// Sequences are batched by length with at most `budget` tokens to a batch, padding counted. The same sequences and
/// budget give the same bits.
///
/// # Errors
/// A sequence without tokens.
pub fn scores(
    model: &RewardModel,
    sequences: &[impl AsRef<[u32]>],
    precision: Precision,
    budget: usize,
) -> Result<Vec<f64>, ModelError> {
    let mut scores = vec![0.0; sequences.len()];
    for batch in batches(sequences.iter().map(|ids| ids.as_ref().len()), budget) {
        let rows: Vec<&[u32]> = batch.iter().map(|&row| sequences[row].as_ref()).collect();
        let rows = TokenBatch::from_rows(&rows, model.device())?;
        let values = no_grad(|| model.scores(&rows, precision)).to_device(Device::Cpu);
        for (place, row) in batch.into_iter().enumerate() {
            scores[row] = values.double_value(&[place as i64]);
        }
    }
    Ok(scores)
}

/// Rows by length into batches of at most `budget` padded tokens.
pub(super) fn batches(lengths: impl Iterator<Item = usize>, budget: usize) -> Vec<Vec<usize>> {
    let shapes: Vec<RowShape> =
        lengths.map(|length| RowShape { length, sequences: 1, tokens: length, weight: 1.0 }).collect();
    cut(&(0..shapes.len()).collect::<Vec<_>>(), &shapes, budget)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Device;

    use super::{batches, scores};
    use crate::model::{Precision, RewardModel};

    #[test]
    fn scores_keep_their_order_whatever_the_budget() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/model/llama-reward");
        let model = RewardModel::load(&dir, Device::Cpu).unwrap();
        let sequences: [&[u32]; 4] = [&[1, 5, 9], &[1, 40, 3, 22, 8, 17], &[7], &[1, 5, 9, 12]];
        let alone = scores(&model, &sequences, Precision::Fp32, 1).unwrap();
        let together = scores(&model, &sequences, Precision::Fp32, 1000).unwrap();
        for (alone, together) in alone.iter().zip(&together) {
            assert!((alone - together).abs() < 1e-5 * alone.abs().max(1.0));
        }
        let direct = scores(&model, &sequences[2..3], Precision::Fp32, 10).unwrap();
        assert!((direct[0] - alone[2]).abs() < 1e-6);
        assert_eq!(batches([3, 6, 1, 4].into_iter(), 8), [vec![1], vec![3, 0], vec![2]]);
    }
}
