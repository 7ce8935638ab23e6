//! Activation checkpointing changes memory use but no bit of a result.

use tch::{Device, Kind, Tensor};

use super::super::{LanguageModel, PackedBatch, Precision, RewardModel};
use super::{llama, model, observed, qwen3, rows};

fn loss_and_gradients(model: &LanguageModel, precision: Precision) -> (Tensor, Vec<Tensor>) {
    model.trainable().set_requires_grad(true);
    let prompt: Vec<u32> = (2..14).collect();
    let completion = |tokens: &[u32]| [prompt.as_slice(), tokens].concat();
    let groups = [vec![completion(&[1, 30, 31]), completion(&[5])], vec![rows()[1].clone()]];
    let batch = PackedBatch::from_groups(&groups, Device::Cpu).unwrap();
    let hidden = model.forward(&batch, batch.last_rows(), precision).unwrap();
    let log_probs = model.logits(&hidden).log_softmax(-1, Kind::Float);
    let loss = (&log_probs * log_probs.detach().sin()).sum(Kind::Float);
    let gradients = Tensor::run_backward(&[&loss], model.trainable().tensors(), false, false);
    (loss, gradients)
}

#[test]
fn gradients_are_the_same_bits() {
    for config in [llama(), qwen3()] {
        for precision in [Precision::Fp32, Precision::Bf16] {
            let (loss, expected) = loss_and_gradients(&model(&config), precision);
            let (recomputed, found) = loss_and_gradients(&model(&config).with_checkpointing(true), precision);
            assert!(recomputed.equal(&loss));
            assert!(found.iter().zip(&expected).all(|(found, expected)| found.equal(expected)));
        }
    }
}

#[test]
fn scores_without_gradients_are_the_same_bits() {
    let reward = || RewardModel::with_fresh_head(model(&llama()), 3);
    let batch = PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap();
    let scores = |model: &RewardModel| tch::no_grad(|| model.scores(&batch, Precision::Fp32).unwrap());
    assert!(scores(&reward()).equal(&scores(&reward().with_checkpointing(true))));
}

#[test]
fn the_backward_pass_recomputes_each_layer_once() {
    let count = |on: bool| {
        let model = model(&llama()).with_checkpointing(on);
        observed(|| drop(loss_and_gradients(&model, Precision::Fp32))).len()
    };
    let layers = llama().layers as usize;
    assert_eq!(count(true), count(false) + 7 * layers);
}
