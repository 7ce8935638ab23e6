//! Checks that communication overlaps the backward pass.

use foil_torch::Error;
use foil_torch::c10d::{BucketSizes, Reducer, TraceEvent};
use tch::{Device, Kind, Tensor};

use crate::harness::{Rank, run};

const LAYERS: usize = 6;
const WIDTH: i64 = 16;
/// Each layer's gradient fills a bucket.
const SIZES: BucketSizes = BucketSizes { first: 64, rest: 64 };

fn loss(parameters: &[Tensor]) -> Tensor {
    let input = Tensor::ones([2, WIDTH], (Kind::Float, Device::Cpu));
    parameters.iter().fold(input, |x, weight| x.matmul(weight).tanh()).sum(Kind::Float)
}

/// Returns the order of events, which is the same on all ranks.
pub(crate) fn rank(rank: &Rank) -> String {
    let group = rank.group("overlap");
    let weight =
        |layer: usize| Tensor::full([WIDTH, WIDTH], 0.01 * (layer + 1) as f64, (Kind::Float, Device::Cpu));
    let parameters: Vec<Tensor> = (0..LAYERS).map(|layer| weight(layer).set_requires_grad(true)).collect();
    let mut reducer = Reducer::new(&group, &parameters, SIZES).unwrap();
    reducer.warm_up(|| Ok::<_, Error>(loss(&parameters))).unwrap();

    let events = reducer.trace(&loss(&parameters), 0).unwrap();
    let at = |expected: TraceEvent| {
        let found = events.iter().position(|event| *event == expected);
        found.unwrap_or_else(|| panic!("no {expected:?} in {events:?}"))
    };
    // The backward pass goes from the last layer to the first.
    let last_gradient = at(TraceEvent::Gradient(0));
    assert!((1..LAYERS).all(|layer| at(TraceEvent::Gradient(layer)) < last_gradient), "{events:?}");
    // A bucket is sent as soon as its layer's gradient is ready, before the next layer's is computed …
    let sent = |bucket| at(TraceEvent::Sent(bucket));
    for bucket in 0..LAYERS - 1 {
        assert!(at(TraceEvent::Gradient(LAYERS - 1 - bucket)) < sent(bucket), "{events:?}");
        assert!(sent(bucket) < at(TraceEvent::Gradient(LAYERS - 2 - bucket)), "{events:?}");
        // … and is summed while the backward pass is paused.
        assert!(at(TraceEvent::Summed(bucket)) < sent(LAYERS - 1), "{events:?}");
    }
    assert_eq!(events.len(), 3 * LAYERS - 1, "{events:?}");

    // The sums equal those of a step without a trace, and nothing is traced afterwards.
    let traced: Vec<Tensor> = reducer.gradients().iter().map(Tensor::copy).collect();
    reducer.zero_gradients().unwrap();
    reducer.reduce(&loss(&parameters)).unwrap();
    assert!(traced.iter().zip(reducer.gradients()).all(|(traced, plain)| traced.equal(&plain)));
    format!("{events:?}")
}

#[test]
fn a_bucket_is_summed_before_the_backward_pass_ends() {
    for world in [2, 3] {
        let reports = run("overlap", world);
        assert!(reports.iter().all(|report| *report == reports[0]), "{reports:?}");
    }
}
