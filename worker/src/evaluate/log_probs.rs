//! How likely a language model makes given answers.

use tch::{Device, Kind, Tensor, no_grad};

use super::scores::batches;
use crate::model::{LanguageModel, ModelError, Precision, TokenBatch};
use crate::objective::likelihood::{AnswerPositions, log_probs};

/// For each row, a dialogue's tokens and the index of its answer's first token, log p of each of the answer's tokens in
/// nats.
///
/// Rows are batched by length with at most `budget` tokens to a batch, padding counted. The same rows and budget give
/// the same bits.
///
/// # Errors
/// A row without tokens.
pub fn answer_log_probs(
    model: &LanguageModel,
    rows: &[(&[u32], usize)],
    precision: Precision,
    budget: usize,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let mut found = vec![Vec::new(); rows.len()];
    for batch in batches(rows.iter().map(|(ids, _)| ids.len()), budget) {
        let dialogues: Vec<(&[u32], usize)> = batch.iter().map(|&row| rows[row]).collect();
        let per_row = no_grad(|| batch_log_probs(model, &dialogues, precision))?;
        for (row, log_probs) in batch.into_iter().zip(per_row) {
            found[row] = log_probs;
        }
    }
    Ok(found)
}

fn batch_log_probs(
    model: &LanguageModel,
    dialogues: &[(&[u32], usize)],
    precision: Precision,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let sequences: Vec<&[u32]> = dialogues.iter().map(|(ids, _)| *ids).collect();
    let batch = TokenBatch::from_rows(&sequences, model.device())?;
    let answers = AnswerPositions::new(dialogues, batch.seq(), model.device());
    let hidden = answers.select(&model.forward(&batch, precision)); // [tokens, hidden]
    let per_token = log_probs(&hidden, answers.targets(), model.head(), precision.kind());
    let per_token = per_token.to_kind(Kind::Float).to_device(Device::Cpu);
    let row = |row: &Tensor| Vec::<f32>::try_from(row).map_err(|error| ModelError::Batch(error.to_string()));
    answers.split(&per_token).iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::{Device, Kind};

    use super::answer_log_probs;
    use crate::model::{LanguageModel, Precision, TokenBatch};

    #[test]
    fn every_answer_token_has_the_whole_models_log_probability() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/model/llama-tied");
        let model = LanguageModel::load(&dir, Device::Cpu).unwrap();
        let rows: [(&[u32], usize); 4] =
            [(&[1, 5, 9, 4], 2), (&[1, 40, 3, 22, 8, 17], 1), (&[1, 6], 2), (&[1, 6, 7], 1)];
        for budget in [1, 8, 1000] {
            let found = answer_log_probs(&model, &rows, Precision::Fp32, budget).unwrap();
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [2, 5, 0, 2]);
            for ((ids, start), found) in rows.into_iter().zip(&found) {
                let batch = TokenBatch::from_rows(&[ids], Device::Cpu).unwrap();
                let logits = model.logits(&model.forward(&batch, Precision::Fp32)).get(0);
                let log_p = logits.log_softmax(-1, Kind::Double);
                for (place, found) in found.iter().enumerate() {
                    let token = start + place;
                    let expected = log_p.double_value(&[token as i64 - 1, i64::from(ids[token])]);
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} not {expected}");
                }
            }
        }
    }
}
