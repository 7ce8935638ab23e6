//! Policies trained on groups of answers: the packed, chunked gradient is that of each answer read by itself.

use foil_common::spec::{KlPrice, Method, Pairing, PolicyGradient, Preferences, Reduction, ReferencePolicy};
use tch::{Device, Kind, Tensor};

use super::super::{AnswerGroup, GroupLoss, Objective, Part, PolicyAnswers};
use super::fixtures;
use crate::model::{LanguageModel, PackedBatch, Precision};
use crate::objective::group::{Compared, Group, Judged};

const REWARDS: [f64; 3] = [0.5, -1.0, 2.0];

struct Losses(Vec<Group>);

impl GroupLoss for Losses {
    fn loss(&self, row: usize, log_probs: &[Tensor]) -> Part {
        Part { loss: self.0[row].loss(log_probs).loss, sums: None }
    }

    fn weight(&self, row: usize) -> f64 {
        self.0[row].weight()
    }
}

/// Every method that reads all three answers, or makes pairs of them all.
fn methods() -> [Method; 5] {
    let reference = ReferencePolicy::Initial;
    let preferences = Preferences { beta: 0.4, pairing: Pairing::All, log_ratio: Reduction::Sum, reference };
    let gradient = PolicyGradient { clip_ratio: 0.2, kl: Some(KlPrice { weight: 0.3, reference }) };
    [
        Method::Rrhf { ranking_weight: 3.0, nll: Reduction::Mean },
        Method::Dpo { preferences, label_smoothing: 0.1 },
        Method::Ipo { preferences: Preferences { log_ratio: Reduction::Mean, ..preferences } },
        Method::Grpo(gradient),
        Method::Rloo(gradient),
    ]
}

fn groups() -> Vec<AnswerGroup> {
    let long: Vec<u32> = (2..22).collect();
    let group = |id, prompt: &[u32], answers: [&[u32]; 3]| AnswerGroup {
        id,
        prompt: prompt.to_vec(),
        answers: answers.map(<[u32]>::to_vec).into(),
    };
    vec![
        group(1, &[1, 5], [&[9, 4, 7], &[8], &[6, 6, 31, 2]]),
        group(2, &long, [&[40, 3, 22], &[40, 3, 9, 5], &[12, 2]]),
        group(3, &long[3..17], [&[7, 2], &[7, 7, 2], &[30, 21, 2]]),
    ]
}

/// log p of an answer's tokens in a forward pass of its own, with autograd's own gradient.
fn alone(model: &LanguageModel, prompt: &[u32], answer: &[u32]) -> Tensor {
    let ids = [prompt, answer].concat();
    let batch = PackedBatch::of_sequences(&[&ids], Device::Cpu).unwrap();
    let read =
        Tensor::arange_start(prompt.len() as i64 - 1, ids.len() as i64 - 1, (Kind::Int64, Device::Cpu));
    let logits = model.logits(&model.forward(&batch, &read, Precision::Fp32).unwrap());
    let targets: Vec<i64> = answer.iter().map(|&id| i64::from(id)).collect();
    let targets = Tensor::from_slice(&targets).unsqueeze(1);
    logits.log_softmax(-1, Kind::Float).gather(1, &targets, false).squeeze_dim(1)
}

/// Numbers near the policy's own, so that ratios lie on either side of the clip.
fn compared(model: &LanguageModel, group: &AnswerGroup) -> Vec<Compared> {
    let numbers =
        |answer: &Vec<u32>| Vec::<f32>::try_from(alone(model, &group.prompt, answer).detach()).unwrap();
    let shifted = |numbers: &[f32], by: f32| -> Vec<f32> {
        numbers.iter().enumerate().map(|(token, number)| number + by * (token as f32 - 0.7)).collect()
    };
    let answers = group.answers.iter().map(numbers);
    answers.map(|own| Compared { reference: shifted(&own, -0.4), sampler: shifted(&own, 0.3) }).collect()
}

fn losses(model: &LanguageModel, method: &Method, groups: &[AnswerGroup]) -> Vec<Group> {
    let group = |group: &AnswerGroup| {
        let answers = group.answers.iter().zip(REWARDS);
        let judged: Vec<Judged<'_>> =
            answers.map(|(ids, reward)| Judged { text: "said", tokens: ids.len(), reward }).collect();
        Group::new(method, &judged, &compared(model, group), Device::Cpu).unwrap()
    };
    groups.iter().map(group).collect()
}

fn gradient(loss: &Tensor, model: &LanguageModel) -> Tensor {
    let gradients = Tensor::run_backward(&[loss], model.parameters().tensors(), false, false);
    Tensor::cat(&gradients.iter().map(|gradient| gradient.reshape([-1])).collect::<Vec<_>>(), 0)
}

#[test]
fn a_groups_gradient_is_that_of_its_answers_one_by_one() {
    let model = LanguageModel::load(&fixtures().join("model/llama-tied"), Device::Cpu).unwrap();
    let groups = groups();
    model.parameters().set_requires_grad(true);
    for method in methods() {
        let expected = losses(&model, &method, &groups);
        let terms: Vec<Tensor> = groups
            .iter()
            .zip(&expected)
            .map(|(group, loss)| {
                let log_probs: Vec<Tensor> =
                    group.answers.iter().map(|answer| alone(&model, &group.prompt, answer)).collect();
                loss.loss(&log_probs).loss
            })
            .collect();
        let expected = Tensor::stack(&terms, 0).sum(Kind::Float);
        let expected_gradient = gradient(&expected, &model);

        let losses = Losses(losses(&model, &method, &groups));
        let objective = PolicyAnswers::new(&model, &groups, losses, Precision::Fp32);
        for cut in [&[&[0, 1, 2][..]][..], &[&[0, 2], &[1]], &[&[0], &[1], &[2]]] {
            let parts: Vec<Tensor> = cut.iter().map(|rows| objective.part(rows).unwrap().loss).collect();
            let loss = Tensor::stack(&parts, 0).sum(Kind::Float);
            let apart = (gradient(&loss, &model) - &expected_gradient).norm().double_value(&[])
                / expected_gradient.norm().double_value(&[]);
            assert!(apart < 1e-5, "{method:?}: gradients are {apart} apart");
            let (loss, expected) = (loss.double_value(&[]), expected.double_value(&[]));
            assert!(
                (loss - expected).abs() < 1e-5 * expected.abs().max(1.0),
                "{method:?}: {loss} not {expected}"
            );
        }
    }
}
