//! Gradients of upper layers travel while those of lower layers are computed, in bf16 too.

use foil_torch::Error;
use foil_torch::c10d::{BucketSizes, TraceEvent};
use tch::{Device, Kind};

use super::{PackedBatch, Precision, RewardModel, llama, model, qwen3, rows};
use crate::collective::Gradients;
use crate::collective::testing::in_threads;

/// Each parameter fills a bucket.
const SIZES: BucketSizes = BucketSizes { first: 1, rest: 1 };
/// Ends a layer's backward pass: its input is what the layer below gives.
const LOWEST: &str = "model.layers.0.input_layernorm.weight";

/// The events of a data-parallel backward pass, and the parameters' names.
fn traced(
    model: &RewardModel,
    gang: &crate::collective::Gang,
    precision: Precision,
) -> (Vec<TraceEvent>, Vec<String>) {
    model.parameters().set_requires_grad(true);
    let batch = PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap();
    let loss = || Ok::<_, Error>(model.scores(&batch, precision).unwrap().sum(Kind::Float));
    let mut gradients = gang.gradients(model.parameters().tensors(), SIZES).unwrap();
    let Gradients::Distributed(reducer) = &mut gradients else { panic!("two ranks have a reducer") };
    reducer.warm_up(loss).unwrap();
    (reducer.trace(&loss().unwrap(), usize::MAX).unwrap(), model.parameters().names().to_vec())
}

#[test]
fn upper_layers_are_sent_before_the_lowest_layer_is_done() {
    for (config, precision, checkpointing) in [
        (llama(), Precision::Fp32, false),
        (llama(), Precision::Bf16, false),
        (qwen3(), Precision::Bf16, false),
        (llama(), Precision::Bf16, true),
    ] {
        let layers = config.layers as usize;
        let traces = in_threads(2, |gang| {
            let model = RewardModel::with_fresh_head(model(&config), 3).with_checkpointing(checkpointing);
            traced(&model, gang, precision)
        });
        for (events, names) in traces {
            let lowest = names.iter().position(|name| name == LOWEST).unwrap();
            let end = events.iter().position(|event| *event == TraceEvent::Gradient(lowest)).unwrap();
            let sent = events[..end].iter().filter(|event| matches!(event, TraceEvent::Sent(_))).count();
            let upper = names.iter().filter(|name| !name.contains("layers.0.") && !name.contains("embed"));
            assert!(
                sent >= upper.count(),
                "{sent} buckets of {layers} layers in {precision:?}, checkpointing {checkpointing}: {events:?}"
            );
        }
    }
}
