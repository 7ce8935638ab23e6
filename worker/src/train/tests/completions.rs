//! Trains policies on groups of completions: the packed, chunked gradient equals that of separate forward
//! passes.

use foil_common::spec::{
    Dpo, Grpo, GrpoLossType, ImportanceSampling, Ipo, KlPenalty, Method, Pairing, Reduction, ReferencePolicy,
    Rejection, Rloo, Rrhf, ScaleRewards, Simpo,
};
use tch::{Device, Kind, Tensor};

use super::super::{CompletionGroup, Objective, PolicyGroups};
use super::fixtures;
use crate::model::{LanguageModel, PackedBatch, Precision};
use crate::objective::policy::{FixedLogProbs, Group, GroupLoss, ScoredCompletion, objective_of};

const REWARDS: [f64; 3] = [0.5, -1.0, 2.0];

/// Every method.
fn methods() -> [Method; 8] {
    let reference = ReferencePolicy::Initial;
    let (pairing, kl) = (Pairing::All, Some(KlPenalty { beta: 0.3, reference }));
    let dpo = Dpo { beta: 0.4, label_smoothing: 0.1, pairing, log_ratio: Reduction::Sum, reference };
    [
        Method::Rejection(Rejection),
        Method::Rrhf(Rrhf { ranking_weight: 3.0, nll: Reduction::Mean }),
        Method::Dpo(dpo),
        Method::Ipo(Ipo { beta: 0.4, pairing, log_ratio: Reduction::Mean, reference }),
        Method::Grpo(Grpo { kl, ..Grpo::default() }),
        Method::Grpo(Grpo {
            kl,
            loss_type: GrpoLossType::DrGrpo,
            importance_sampling_level: ImportanceSampling::Sequence,
            scale_rewards: ScaleRewards::None,
            ..Grpo::default()
        }),
        Method::Rloo(Rloo { epsilon: 0.2, kl }),
        Method::Simpo(Simpo { beta: 2.0, gamma: 0.3, pairing }),
    ]
}

fn groups() -> Vec<CompletionGroup> {
    let long: Vec<u32> = (2..22).collect();
    let group = |id, prompt: &[u32], completions: [&[u32]; 3]| CompletionGroup {
        id,
        prompt: prompt.to_vec(),
        completions: completions.map(<[u32]>::to_vec).into(),
    };
    vec![
        group(1, &[1, 5], [&[9, 4, 7], &[8], &[6, 6, 31, 2]]),
        group(2, &long, [&[40, 3, 22], &[40, 3, 9, 5], &[12, 2]]),
        group(3, &long[3..17], [&[7, 2], &[7, 7, 2], &[30, 21, 2]]),
    ]
}

/// log p of a completion's tokens in a separate forward pass, with autograd's own gradient.
fn log_probs_of(model: &LanguageModel, prompt: &[u32], completion: &[u32]) -> Tensor {
    let ids = [prompt, completion].concat();
    let batch = PackedBatch::from_sequences(&[&ids], Device::Cpu).unwrap();
    let read =
        Tensor::arange_start(prompt.len() as i64 - 1, ids.len() as i64 - 1, (Kind::Int64, Device::Cpu));
    let logits = model.logits(&model.forward(&batch, &read, Precision::Fp32).unwrap());
    let targets: Vec<i64> = completion.iter().map(|&id| i64::from(id)).collect();
    let targets = Tensor::from_slice(&targets).unsqueeze(1);
    logits.log_softmax(-1, Kind::Float).gather(1, &targets, false).squeeze_dim(1)
}

/// Log-probabilities near the policy's, so that ratios are on both sides of the clip range.
fn fixed(model: &LanguageModel, group: &CompletionGroup) -> Vec<FixedLogProbs> {
    let numbers =
        |completion| Vec::<f32>::try_from(log_probs_of(model, &group.prompt, completion).detach()).unwrap();
    let shifted = |numbers: &[f32], by: f32| -> Vec<f32> {
        numbers.iter().enumerate().map(|(token, number)| number + by * (token as f32 - 0.7)).collect()
    };
    let completions = group.completions.iter().map(|completion| numbers(completion));
    let fixed = completions
        .map(|own| FixedLogProbs { reference: shifted(&own, -0.4), old_policy: shifted(&own, 0.3) });
    fixed.collect()
}

/// The completions of each group that the method reads, and their loss.
fn losses(
    model: &LanguageModel,
    method: &Method,
    groups: &[CompletionGroup],
) -> (Vec<CompletionGroup>, Vec<GroupLoss>) {
    let objective = objective_of(method);
    let read = |group: &CompletionGroup| {
        let rewarded = group.completions.iter().zip(REWARDS);
        let scored =
            rewarded.map(|(ids, reward)| ScoredCompletion { text: "completion", tokens: ids.len(), reward });
        let scored: Vec<ScoredCompletion<'_>> = scored.collect();
        let selected = objective.select(&scored);
        let fixed = fixed(model, group);
        let fixed: Vec<FixedLogProbs> = selected.iter().map(|&index| fixed[index].clone()).collect();
        let completions = selected.iter().map(|&index| group.completions[index].clone()).collect();
        let inputs = Group {
            completions: &scored,
            selected: &selected,
            fixed: &fixed,
            max_new_tokens: 5,
            device: Device::Cpu,
        };
        (CompletionGroup { completions, ..group.clone() }, objective.group_loss(&inputs))
    };
    groups.iter().map(read).unzip()
}

fn gradient(loss: &Tensor, model: &LanguageModel) -> Tensor {
    let gradients = Tensor::run_backward(&[loss], model.parameters().tensors(), false, false);
    Tensor::cat(&gradients.iter().map(|gradient| gradient.reshape([-1])).collect::<Vec<_>>(), 0)
}

#[test]
fn a_groups_gradient_equals_that_of_separate_completions() {
    let model = LanguageModel::load(&fixtures().join("model/llama-tied"), Device::Cpu).unwrap();
    let groups = groups();
    model.parameters().set_requires_grad(true);
    for method in methods() {
        let (groups, expected) = losses(&model, &method, &groups);
        let terms: Vec<Tensor> = groups
            .iter()
            .zip(&expected)
            .map(|(group, loss)| {
                let log_probs: Vec<Tensor> =
                    group.completions.iter().map(|ids| log_probs_of(&model, &group.prompt, ids)).collect();
                loss.loss(&log_probs).loss
            })
            .collect();
        let expected_loss = Tensor::stack(&terms, 0).sum(Kind::Float);
        let expected_gradient = gradient(&expected_loss, &model);

        let metrics = objective_of(&method).metrics();
        let precision = Precision::Fp32;
        let objective =
            PolicyGroups { model: &model, groups: &groups, losses: &expected, metrics, precision };
        for split in [&[&[0, 1, 2][..]][..], &[&[0, 2], &[1]], &[&[0], &[1], &[2]]] {
            let parts: Vec<Tensor> = split.iter().map(|rows| objective.loss(rows).unwrap().loss).collect();
            let loss = Tensor::stack(&parts, 0).sum(Kind::Float);
            let distance = (gradient(&loss, &model) - &expected_gradient).norm().double_value(&[])
                / expected_gradient.norm().double_value(&[]);
            assert!(distance < 1e-5, "{method:?}: relative distance of the gradients: {distance}");
            let (loss, expected) = (loss.double_value(&[]), expected_loss.double_value(&[]));
            assert!(
                (loss - expected).abs() < 1e-5 * expected.abs().max(1.0),
                "{method:?}: {loss} not {expected}"
            );
        }
    }
}
