//! The difference between a policy's log-probabilities and those recorded at generation; see
//! [`foil_common::drift`].

use foil_common::stats::Moments;

/// Statistics over tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Drift {
    /// |Δ| in nats, Δ = log p(trainer) − log p(sampler); its maximum too.
    pub distance: Moments,
    /// e^Δ − 1 − Δ.
    pub divergence: Moments,
}

/// Bound of Δ in the divergence: the square of e^Δ must not overflow a sum.
const MAX_DELTA: f64 = 50.0;

impl Drift {
    /// Adds the tokens of a completion: their log-probabilities recorded at generation, and recomputed by the
    /// trainer.
    pub fn push(&mut self, recorded: &[f32], recomputed: &[f32]) {
        for (recorded, recomputed) in recorded.iter().zip(recomputed) {
            let delta = f64::from(*recomputed) - f64::from(*recorded);
            self.distance.push_with_max(delta.abs());
            let bounded = delta.min(MAX_DELTA);
            self.divergence.push(bounded.exp_m1() - bounded);
        }
    }
}

#[cfg(test)]
mod tests {
    use foil_common::drift::bound;
    use foil_common::spec::{self, Sampling};
    use serde_json::json;
    use tch::{Device, Tensor, no_grad};

    use super::Drift;
    use crate::evaluate::{completion_kl, completion_log_probs};
    use crate::generate::{Completion, GenerateRequest, GenerationConfig, NoiseKey, generate};
    use crate::model::{DecoderConfig, LanguageModel, Precision};
    use crate::train::CompletionGroup;

    #[test]
    fn drift_is_distance_and_divergence_over_tokens() {
        let mut drift = Drift::default();
        drift.push(&[-1.0, -2.0], &[-1.5, -1.0]);
        drift.push(&[-3.0], &[-3.0]);
        assert_eq!((drift.distance.mean(), drift.distance.max), (Some(0.5), Some(1.0)));
        let k3 = |delta: f64| delta.exp() - 1.0 - delta;
        assert!((drift.divergence.sum - k3(-0.5) - k3(1.0)).abs() < 1e-12);
        drift.push(&[-9e3], &[0.0]);
        assert!(drift.divergence.sum_of_squares.is_finite());
    }

    fn model() -> LanguageModel {
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 300,
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "initializer_range": 0.15, "eos_token_id": 2,
        });
        LanguageModel::from_config(&DecoderConfig::from_hf(&config).unwrap(), 5, Device::Cpu)
    }

    /// The drift of completions that `sampler` generated, recomputed by `trainer` as in training and as in
    /// evaluation.
    fn drift(sampler: &LanguageModel, trainer: &LanguageModel, precision: Precision) -> [Drift; 2] {
        let sampling = Sampling { max_new_tokens: 40, ..Sampling::default() };
        let noise = NoiseKey { seed: 5, round: 1, purpose: "test".into() };
        let request = |id: u64| GenerateRequest {
            prompt_id: id,
            prompt: (0..3 + id as u32 * 2).map(|token| token * 31 % 300).collect(),
            samples: 3,
        };
        let requests: Vec<GenerateRequest> = (0..12).map(request).collect();
        let text = |_: &[u32]| String::new();
        let config = GenerationConfig {
            sampling: &sampling,
            eos: &[2],
            vocab_size: 290,
            noise: &noise,
            max_num_seqs: 8,
            detokenize: &text,
        };
        let generation =
            generate(&sampler.inference(precision, 8).unwrap(), &requests, &config, &mut |_, _| {});
        let completions = generation.unwrap().completions;

        let group = |(request, completions): (&GenerateRequest, &[Completion])| CompletionGroup {
            id: request.prompt_id,
            prompt: request.prompt.clone(),
            completions: completions.iter().map(|completion| completion.tokens.clone()).collect(),
        };
        let groups: Vec<CompletionGroup> = requests.iter().zip(completions.chunks(3)).map(group).collect();
        let trained = completion_log_probs(trainer, &groups, precision, 200).unwrap().concat();
        let dialogues: Vec<(Vec<u32>, usize)> = groups
            .iter()
            .flat_map(|group| {
                let whole =
                    |answer: &Vec<u32>| ([group.prompt.as_slice(), answer].concat(), group.prompt.len());
                group.completions.iter().map(whole)
            })
            .collect();
        let dialogues: Vec<(&[u32], usize)> =
            dialogues.iter().map(|(ids, start)| (&ids[..], *start)).collect();
        let evaluated = completion_kl(trainer, trainer, &dialogues, precision, 200).unwrap();
        let evaluated = evaluated.into_iter().map(|divergence| divergence.log_probs).collect();
        [trained, evaluated].map(|recomputed: Vec<Vec<f32>>| {
            let mut drift = Drift::default();
            completions
                .iter()
                .zip(&recomputed)
                .for_each(|(completion, recomputed)| drift.push(&completion.log_probs, recomputed));
            drift
        })
    }

    #[test]
    fn an_unchanged_policy_drifts_only_by_rounding() {
        let model = model();
        for drift in drift(&model, &model, Precision::Fp32) {
            assert!(drift.distance.count > 200, "{drift:?}");
            assert!(drift.distance.max.unwrap() < 1e-4, "{drift:?}");
            assert!(drift.divergence.mean().unwrap() < 1e-8, "{drift:?}");
        }
        for drift in drift(&model, &model, Precision::Bf16) {
            let mean = drift.distance.mean().unwrap();
            assert!(mean > 1e-5 && mean < bound(spec::Precision::Bf16), "{drift:?}");
        }
    }

    /// Checks that the bounds hold for a real model too.
    #[test]
    fn a_real_models_drift_is_well_within_the_bounds() {
        let Some(dir) = foil_common::test_models::language_model() else { return };
        let model = LanguageModel::load(&dir, Device::Cpu).unwrap();
        for (precision, bounded) in
            [(Precision::Fp32, spec::Precision::Fp32), (Precision::Bf16, spec::Precision::Bf16)]
        {
            for drift in drift(&model, &model, precision) {
                assert!(2.0 * drift.distance.mean().unwrap() < bound(bounded), "{drift:?}");
            }
        }
    }

    #[test]
    fn weights_that_changed_after_generation_are_detected() {
        let sampler = model();
        let trainer = sampler.copy();
        let norm = trainer.parameters().get("model.layers.1.input_layernorm.weight").unwrap();
        no_grad(|| norm.shallow_clone().copy_(&(norm + 0.05 * Tensor::randn_like(norm))));
        for drift in drift(&sampler, &trainer, Precision::Fp32) {
            assert!(drift.distance.mean().unwrap() > bound(spec::Precision::Fp32), "{drift:?}");
        }
    }
}
