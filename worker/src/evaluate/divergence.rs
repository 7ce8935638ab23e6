//! Divergence of a policy from its reference: the exact KL divergence at every position of its completions.

use foil_torch::ops::target_log_probs;
use tch::{Device, Kind, Tensor, no_grad};

use super::scores::batches;
use crate::model::{LanguageModel, ModelError, Precision};
use crate::objective::likelihood::{ResponsePositions, chunk_rows, chunks};

/// Σ_v π(v) · log(π(v) / π_ref(v)) in nats. The logits of both are `[…, vocab]`, the result is `[…]`; fp64
/// throughout.
pub fn token_kl(policy: &Tensor, reference: &Tensor) -> Tensor {
    let policy = policy.log_softmax(-1, Kind::Double);
    let reference = reference.log_softmax(-1, Kind::Double);
    let terms = policy.exp() * (&policy - reference);
    // A token of probability 0 (logit −∞) contributes nothing.
    let terms = terms.where_self(&policy.isfinite(), &Tensor::zeros([], (Kind::Double, terms.device())));
    terms.sum_dim_intlist(-1, false, Kind::Double)
}

/// A completion under a policy and its reference, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// The exact KL(π ‖ π_ref) of the next token, summed over the completion's positions. Divide by the
    /// number of tokens for nats per token.
    pub kl: f64,
    /// log π of each token of the completion.
    pub log_probs: Vec<f32>,
}

/// The divergence of each row: a dialogue's tokens and the index of its completion's first token.
///
/// Rows are batched in order with at most `budget` tokens per batch, and logits are computed in chunks. The
/// same rows and budget give the same bits.
///
/// # Errors
/// A row without tokens.
pub fn completion_kl(
    policy: &LanguageModel,
    reference: &LanguageModel,
    rows: &[(&[u32], usize)],
    precision: Precision,
    budget: usize,
) -> Result<Vec<Divergence>, ModelError> {
    let mut divergences = Vec::with_capacity(rows.len());
    for batch in batches(rows.iter().map(|(ids, _)| ids.len()), budget) {
        divergences.extend(no_grad(|| batch_kl(policy, reference, &rows[batch], precision))?);
    }
    Ok(divergences)
}

fn batch_kl(
    policy: &LanguageModel,
    reference: &LanguageModel,
    dialogues: &[(&[u32], usize)],
    precision: Precision,
) -> Result<Vec<Divergence>, ModelError> {
    let sequences: Vec<[&[u32]; 1]> = dialogues.iter().map(|(ids, _)| [*ids]).collect();
    let (batch, answers) = ResponsePositions::pack(&sequences, dialogues, policy.device())?;
    let policy_hidden = policy.forward(&batch, answers.rows(), precision)?; // [tokens, hidden]
    let reference_hidden = reference.forward(&batch, answers.rows(), precision)?;
    let mut per_token = vec![Tensor::zeros([0], (Kind::Double, policy.device()))];
    let mut log_probs = vec![Tensor::zeros([0], (Kind::Float, policy.device()))];
    // The fp64 logits of both models, their exponentials and products take four times the memory of fp32
    // logits alone, so a chunk has a quarter of the rows.
    let rows = (chunk_rows(policy.lm_head()) / 4).max(1);
    for (start, length) in chunks(answers.tokens(), rows) {
        let logits = policy.logits(&policy_hidden.narrow(0, start, length));
        per_token.push(token_kl(&logits, &reference.logits(&reference_hidden.narrow(0, start, length))));
        log_probs.push(target_log_probs(&logits, &answers.targets().narrow(0, start, length))?.0);
    }
    let split = |pieces: &[Tensor]| answers.split(&Tensor::cat(pieces, 0).to_device(Device::Cpu));
    let pairs = split(&per_token).into_iter().zip(split(&log_probs));
    let divergences = pairs.map(|(kl, log_probs)| {
        let log_probs = Vec::<f32>::try_from(log_probs)?;
        Ok(Divergence { kl: kl.sum(Kind::Double).double_value(&[]), log_probs })
    });
    divergences.collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{completion_kl, token_kl};
    use crate::model::{LanguageModel, PackedBatch, Precision};

    #[test]
    fn the_divergence_is_summed_over_the_positions_of_a_completion() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/model/llama-tied");
        let policy = LanguageModel::load(&dir, Device::Cpu).unwrap();
        let reference = LanguageModel::random(&dir, 9, Device::Cpu).unwrap();
        let rows: [(&[u32], usize); 3] = [(&[1, 5, 9, 4], 2), (&[1, 40, 3, 22, 8, 17], 1), (&[1, 6], 2)];
        let found = completion_kl(&policy, &reference, &rows, Precision::Fp32, 8).unwrap();
        for ((ids, start), found) in rows.into_iter().zip(&found) {
            let batch = PackedBatch::from_sequences(&[ids], Device::Cpu).unwrap();
            let all = Tensor::arange(ids.len() as i64, (Kind::Int64, Device::Cpu));
            let logits =
                |model: &LanguageModel| model.logits(&model.forward(&batch, &all, Precision::Fp32).unwrap());
            let kl = token_kl(&logits(&policy), &logits(&reference));
            let count = (ids.len() - start) as i64;
            let expected = kl.narrow(0, start as i64 - 1, count).sum(Kind::Double).double_value(&[]);
            assert!((found.kl - expected).abs() < 1e-5, "{} not {expected}", found.kl);
            let log_p = logits(&policy).log_softmax(-1, Kind::Double);
            let at = |token: usize| log_p.double_value(&[token as i64 - 1, ids[token].into()]);
            let expected: Vec<f64> = (start..ids.len()).map(at).collect();
            assert_eq!(found.log_probs.len(), expected.len());
            let near = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() < 1e-5;
            assert!(found.log_probs.iter().zip(&expected).all(near), "{found:?} not {expected:?}");
        }
        assert!(found[0].kl > 0.0 && found[2].kl == 0.0);
        let same = completion_kl(&policy, &policy, &rows, Precision::Bf16, 100).unwrap();
        assert!(same.iter().all(|divergence| divergence.kl == 0.0));
    }

    #[test]
    fn the_divergence_of_equal_distributions_is_zero() {
        let logits = Tensor::randn([3, 2, 7], (Kind::Float, Device::Cpu));
        let kl = token_kl(&logits, &(&logits + 2.5));
        assert_eq!(kl.size(), [3, 2]);
        assert!(kl.abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn the_divergence_is_the_sum_over_the_vocabulary() {
        let p = [0.5_f64, 0.25, 0.25];
        let q = [0.2_f64, 0.2, 0.6];
        let kl = token_kl(&Tensor::from_slice(&p).log(), &Tensor::from_slice(&q).log());
        let expected: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((kl.double_value(&[]) - expected).abs() < 1e-12);
    }

    #[test]
    fn a_token_of_probability_zero_contributes_nothing() {
        let masked = Tensor::from_slice(&[0.0_f32, f32::NEG_INFINITY]);
        let even = Tensor::from_slice(&[0.0_f32, 0.0]);
        assert!((token_kl(&masked, &even).double_value(&[]) - std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(token_kl(&even, &masked).double_value(&[]), f64::INFINITY);
    }
}
