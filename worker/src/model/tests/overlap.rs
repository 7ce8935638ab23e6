//! Checks that gradients of upper layers are sent while those of lower layers are computed, in bf16 too.

use foil_torch::Error;
use foil_torch::c10d::{BucketSizes, TraceEvent};
use tch::{Device, Kind, Tensor};

use super::super::units::flatten;
use super::{PackedBatch, Precision, RewardModel, llama, model, qwen3, rows};
use crate::collective::testing::in_threads;
use crate::collective::{Gang, Gradients};

/// Each parameter fills a bucket.
const SIZES: BucketSizes = BucketSizes { first: 1, rest: 1 };
/// Marks the end of the lowest layer's backward pass: this norm is applied to the layer's input.
const LOWEST: &str = "model.layers.0.input_layernorm.weight";

fn loss(model: &RewardModel, precision: Precision) -> Tensor {
    let batch = PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap();
    model.scores(&batch, precision).unwrap().sum(Kind::Float)
}

/// The events of a data-parallel backward pass, and the parameters' names.
fn traced(model: &RewardModel, gang: &Gang, precision: Precision) -> (Vec<TraceEvent>, Vec<String>) {
    model.parameters().set_requires_grad(true);
    let loss = || Ok::<_, Error>(loss(model, precision));
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

/// The events of a backward pass of flat parameters, their names, and the unit of each.
fn traced_flat(
    model: &RewardModel,
    gang: &Gang,
    precision: Precision,
) -> (Vec<TraceEvent>, Vec<String>, Vec<String>) {
    model.parameters().set_requires_grad(true);
    let flat = gang.flat_parameters().unwrap();
    let units = flatten(model.parameters(), &flat, gang.rank(), gang.world()).unwrap();
    let members = units.iter().flat_map(|unit| unit.members().map(|(name, ..)| name.to_owned()));
    let names = units.iter().map(|unit| unit.name().to_owned());
    (flat.trace(&loss(model, precision), usize::MAX).unwrap(), members.collect(), names.collect())
}

#[test]
fn upper_units_are_sent_before_the_lowest_layer_has_a_gradient() {
    for (config, precision, checkpointing) in [
        (llama(), Precision::Fp32, false),
        (qwen3(), Precision::Bf16, false),
        (llama(), Precision::Bf16, true),
    ] {
        let traces = in_threads(2, |gang| {
            let model = RewardModel::with_fresh_head(model(&config), 3).with_checkpointing(checkpointing);
            traced_flat(&model, gang, precision)
        });
        for (events, members, units) in traces {
            let upper = (1..config.layers).rev().map(|layer| format!("layers.{layer}"));
            let expected: Vec<String> = ["score".to_owned()].into_iter().chain(upper).collect();
            assert_eq!(units[..expected.len()], expected);
            assert_eq!(units[expected.len()..], ["layers.0", "norms", "embed_tokens"]);
            let is_lowest = |event: &TraceEvent| match event {
                TraceEvent::Gradient(at) => members[*at].starts_with("model.layers.0."),
                _ => false,
            };
            let first = events.iter().position(is_lowest).unwrap();
            let sent = |event: &&TraceEvent| matches!(event, TraceEvent::Sent(_));
            let sent: Vec<_> = events[..first].iter().filter(sent).copied().collect();
            let all: Vec<_> = (0..expected.len()).map(TraceEvent::Sent).collect();
            assert_eq!(sent, all, "{precision:?}, checkpointing {checkpointing}: {events:?}");
        }
    }
}
