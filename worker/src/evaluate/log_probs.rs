//! Log-probabilities of completions under a language model.

use tch::{Device, Kind, Tensor, no_grad};

use super::scores::batches;
use crate::model::{LanguageModel, ModelError, Precision};
use crate::objective::likelihood::{Prediction, ResponsePositions, log_probs};
use crate::train::{CompletionGroup, Sequences};

/// For each completion of each group, log p of each token in nats. A group's prompt is computed once.
///
/// Groups are batched in order with at most `budget` rows per batch. The same groups and budget give the same
/// bits.
///
/// # Errors
/// An empty prompt with an empty completion; errors of libtorch.
pub fn completion_log_probs(
    model: &LanguageModel,
    groups: &[CompletionGroup],
    precision: Precision,
    budget: usize,
) -> Result<Vec<Vec<Vec<f32>>>, ModelError> {
    let mut found = Vec::with_capacity(groups.len());
    for batch in batches(groups.iter().map(CompletionGroup::cost), budget) {
        found.extend(no_grad(|| batch_log_probs(model, &groups[batch], precision))?);
    }
    Ok(found)
}

fn batch_log_probs(
    model: &LanguageModel,
    groups: &[CompletionGroup],
    precision: Precision,
) -> Result<Vec<Vec<Vec<f32>>>, ModelError> {
    let groups = Sequences::new(groups.iter());
    let (batch, answers) = ResponsePositions::pack(&groups.sequences, &groups.dialogues(), model.device())?;
    let hidden = model.forward(&batch, answers.rows(), precision)?; // [tokens, hidden]
    let per_token = log_probs(&Prediction {
        hidden: &hidden,
        targets: answers.targets(),
        head: model.lm_head(),
        compute: precision.kind(),
    })?;
    let per_token = per_token.to_kind(Kind::Float).to_device(Device::Cpu);
    let to_vec = |answer: Tensor| Ok(Vec::<f32>::try_from(answer)?);
    let mut answers = answers.split(&per_token).into_iter().map(to_vec);
    groups.sequences.iter().map(|group| answers.by_ref().take(group.len()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::{Device, Kind, Tensor};

    use super::completion_log_probs;
    use crate::model::{LanguageModel, PackedBatch, Precision};
    use crate::train::CompletionGroup;

    /// log p of `answer` after `prompt`, in a separate forward pass.
    fn forward_single(model: &LanguageModel, prompt: &[u32], answer: &[u32]) -> Vec<f64> {
        let ids = [prompt, answer].concat();
        let batch = PackedBatch::from_sequences(&[&ids], Device::Cpu).unwrap();
        let all = Tensor::arange(ids.len() as i64, (Kind::Int64, Device::Cpu));
        let logits = model.logits(&model.forward(&batch, &all, Precision::Fp32).unwrap());
        let log_p = logits.log_softmax(-1, Kind::Double);
        let log_prob = |(token, id): (usize, &u32)| {
            log_p.double_value(&[(prompt.len() + token) as i64 - 1, i64::from(*id)])
        };
        answer.iter().enumerate().map(log_prob).collect()
    }

    #[test]
    fn batched_log_probabilities_equal_those_of_single_sequences() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/model/llama-tied");
        let model = LanguageModel::load(&dir, Device::Cpu).unwrap();
        let long: Vec<u32> = (1..20).collect();
        let group = |id, prompt: &[u32], answers: &[&[u32]]| CompletionGroup {
            id,
            prompt: prompt.to_vec(),
            completions: answers.iter().map(|answer| answer.to_vec()).collect(),
        };
        let groups = [
            group(1, &[1, 5], &[&[9, 4]]),
            group(2, &long, &[&[40, 3, 22, 8, 17], &[6], &[40, 3, 9]]),
            group(3, &[1], &[&[6, 7], &[]]),
        ];
        for budget in [1, 30, 1000] {
            let found = completion_log_probs(&model, &groups, Precision::Fp32, budget).unwrap();
            for (group, found) in groups.iter().zip(&found) {
                assert_eq!(found.len(), group.completions.len());
                for (answer, found) in group.completions.iter().zip(found) {
                    let expected = forward_single(&model, &group.prompt, answer);
                    assert_eq!(found.len(), expected.len());
                    let near = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() < 1e-5;
                    assert!(found.iter().zip(&expected).all(near), "{found:?} not {expected:?}");
                }
            }
        }
    }
}
