//! Checks that flat parameters, of which each rank updates a part, compute the same as separate ones.

use foil_torch::autograd::backward;
use foil_torch::c10d::{FlatParameters, ProcessGroup, TraceEvent};
use tch::{Device, Kind, Tensor, no_grad};

use crate::harness::{Rank, run};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Widths of layers whose weights and biases have numbers of elements that no number of ranks divides.
const WIDTHS: [i64; 5] = [7, 13, 5, 11, 3];
const MICRO_BATCHES: i64 = 3;
const ROWS: i64 = 6;
/// Elements between the two parameters of a unit.
const GAP: i64 = 5;

/// Layers whose parameters are laid out flat, with one unit per layer, the last layer first.
struct Layers {
    flat: FlatParameters,
    layers: Vec<Vec<Tensor>>,
    /// This rank's part of each layer.
    shards: Vec<Tensor>,
}

/// Indices of the first elements of a layer's parameters.
fn offsets(layer: &[Tensor]) -> [i64; 2] {
    [0, layer[0].numel() as i64 + GAP]
}

/// A layer's parameters in the layout of its unit, with zeros between and after them: `[world, length]`.
fn laid_out(layer: &[Tensor], world: i64) -> Tensor {
    let elements = offsets(layer)[1] + layer[1].numel() as i64;
    let length = (elements as usize).div_ceil(world as usize) as i64;
    let whole = Tensor::zeros([world * length], CPU);
    for (offset, parameter) in offsets(layer).into_iter().zip(layer) {
        whole.narrow(0, offset, parameter.numel() as i64).copy_(&parameter.detach().reshape([-1]));
    }
    whole.view([world, length])
}

fn leaf(tensor: &Tensor) -> Tensor {
    tensor.detach().copy().set_requires_grad(true)
}

impl Layers {
    fn new(whole: &[Vec<Tensor>], group: &ProcessGroup, rank: &Rank) -> Self {
        let flat = FlatParameters::new(Some(group)).unwrap();
        let layers: Vec<Vec<Tensor>> = whole.iter().map(|layer| layer.iter().map(leaf).collect()).collect();
        let add = |layer: &Vec<Tensor>| {
            let length = laid_out(layer, rank.world as i64).size()[1];
            flat.add_unit(layer, &offsets(layer), length).unwrap()
        };
        let mut shards: Vec<Tensor> = layers.iter().rev().map(add).collect();
        shards.reverse();
        Self { flat, layers, shards }
    }
}

fn loss(layers: &[Vec<Tensor>], x: &Tensor) -> Tensor {
    let apply = |x: Tensor, layer: &Vec<Tensor>| x.linear(&layer[0], Some(&layer[1])).tanh();
    layers.iter().fold(x.shallow_clone(), apply).square().sum(Kind::Float)
}

/// Layers and every rank's rows, equal on all ranks.
fn inputs(group: &ProcessGroup, world: i64) -> (Vec<Vec<Tensor>>, Tensor) {
    let mut seed = Tensor::randint(1 << 40, [1], (Kind::Int64, Device::Cpu));
    group.broadcast(&mut seed, 0).unwrap();
    tch::manual_seed(seed.int64_value(&[0]));
    let layer = |pair: &[i64]| {
        vec![Tensor::randn([pair[1], pair[0]], CPU) * 0.5, Tensor::randn([pair[1]], CPU) * 0.1]
    };
    let layers = WIDTHS.windows(2).map(layer).collect();
    (layers, Tensor::randn([world, MICRO_BATCHES, ROWS, WIDTHS[0]], CPU))
}

/// Computes a step's gradients over the rows of the first `with_rows` ranks and compares this rank's parts.
fn assert_sums(layers: &Layers, whole: &[Vec<Tensor>], rows: &Tensor, (rank, with_rows): (&Rank, usize)) {
    let separate: Vec<Vec<Tensor>> = whole.iter().map(|layer| layer.iter().map(leaf).collect()).collect();
    backward(&loss(&separate, &rows.narrow(0, 0, with_rows as i64).reshape([-1, WIDTHS[0]]))).unwrap();
    let has_rows = rank.rank < with_rows;
    let mut last = None;
    for index in 0..if has_rows { MICRO_BATCHES } else { 0 } {
        let loss = loss(&layers.layers, &rows.get(rank.rank as i64).get(index));
        if index + 1 < MICRO_BATCHES {
            backward(&loss).unwrap();
        } else {
            last = Some(loss);
        }
    }
    layers.flat.reduce(last.as_ref()).unwrap();
    for (shard, layer) in layers.shards.iter().zip(&separate) {
        let gradients: Vec<Tensor> = layer.iter().map(Tensor::grad).collect();
        let expected = laid_out(&gradients, rank.world as i64).get(rank.rank as i64);
        let distance = (shard.grad() - &expected).norm() / (expected.norm() + 1e-9);
        assert!(distance.double_value(&[]) < 1e-5, "{distance} from the gradient {expected}");
    }
    layers.flat.discard_gradients().unwrap();
    let mut all = layers.layers.iter().flatten().chain(&layers.shards);
    assert!(all.all(|tensor| !tensor.grad().defined()));
}

/// The step's last micro-batch reaches only one layer.
fn assert_sums_of_earlier_micro_batches(layers: &Layers, rows: &Tensor, rank: &Rank) {
    let world = rank.world as i64;
    let x = rows.get(0).get(0);
    backward(&loss(&layers.layers, &x)).unwrap();
    let own: Vec<Tensor> = layers.layers.iter().flatten().map(|parameter| parameter.grad().copy()).collect();
    let last = &layers.layers[1][0];
    layers.flat.reduce(Some(&(last * 3.0).sum(Kind::Float))).unwrap();
    for (index, (shard, own)) in layers.shards.iter().zip(own.chunks(2)).enumerate() {
        // All ranks had the same rows.
        let sum = |own: &Tensor, more: f64| (own + more) * world as f64;
        let expected = [sum(&own[0], if index == 1 { 3.0 } else { 0.0 }), sum(&own[1], 0.0)];
        let expected = laid_out(&expected, world).get(rank.rank as i64);
        assert!(shard.grad().allclose(&expected, 1e-5, 1e-6, false), "{} {expected}", shard.grad());
    }
    layers.flat.discard_gradients().unwrap();
}

/// Checks that each rank's part of the values is a view and reaches the parameters of all ranks.
fn assert_gathered(layers: &Layers, rank: &Rank) {
    let world = rank.world as i64;
    for (shard, layer) in layers.shards.iter().zip(&layers.layers) {
        assert_eq!(*shard, laid_out(layer, world).get(rank.rank as i64));
        no_grad(|| {
            let _ = shard.shallow_clone().fill_(rank.rank as f64 + 0.5);
        });
    }
    layers.flat.gather().unwrap();
    for (shard, layer) in layers.shards.iter().zip(&layers.layers) {
        let ranks = Tensor::arange(world, CPU) + 0.5;
        let length = shard.numel() as i64;
        let whole = ranks.view([-1, 1]).expand([world, length], false).reshape([-1]);
        for (offset, parameter) in offsets(layer).into_iter().zip(layer) {
            let expected = whole.narrow(0, offset, parameter.numel() as i64);
            assert_eq!(parameter.detach().reshape([-1]), expected);
        }
    }
}

pub(crate) fn rank(rank: &Rank) -> String {
    let group = rank.group("flat");
    let (whole, rows) = inputs(&group, rank.world as i64);
    let layers = Layers::new(&whole, &group, rank);
    for (parameters, values) in layers.layers.iter().zip(&whole) {
        assert!(parameters.iter().zip(values).all(|(flat, value)| flat.detach() == *value));
    }
    // The sums must not include gradients of a failed backward pass or of a rehearsal.
    backward(&loss(&layers.layers, &rows.get(0).get(0))).unwrap();
    layers.flat.discard_gradients().unwrap();
    // All ranks have rows, then all but the last, then all again.
    for with_rows in [rank.world, rank.world.max(2) - 1, rank.world] {
        assert_sums(&layers, &whole, &rows, (rank, with_rows));
    }
    assert_sums_of_earlier_micro_batches(&layers, &rows, rank);
    assert_gathered(&layers, rank);
    group.shutdown().unwrap();
    "equal".to_owned()
}

#[test]
fn parts_of_gradients_and_parameters_equal_those_of_separate_ones() {
    for world in [1, 2, 3] {
        assert!(run("flat", world).iter().all(|report| report == "equal"));
    }
}

/// Returns the order of events, which is the same on all ranks.
pub(crate) fn rank_traces(rank: &Rank) -> String {
    let group = rank.group("flat_overlap");
    let (whole, rows) = inputs(&group, rank.world as i64);
    let layers = Layers::new(&whole, &group, rank);
    let count = layers.layers.len();
    // Parameters are numbered in the order of added units: the lowest layer's weight is the last but one.
    let lowest = 2 * (count - 1);
    let events = layers.flat.trace(&loss(&layers.layers, &rows.get(0).get(0)), lowest).unwrap();
    let at = |expected: TraceEvent| {
        let found = events.iter().position(|event| *event == expected);
        found.unwrap_or_else(|| panic!("no {expected:?} in {events:?}"))
    };
    for unit in 0..count - 1 {
        // Each unit is sent once its own gradients are computed, before those of the layer below, and is
        // summed in backward.
        let own = [2 * unit, 2 * unit + 1].map(|parameter| at(TraceEvent::Gradient(parameter)));
        let sent = at(TraceEvent::Sent(unit));
        assert!(own.iter().all(|own| *own < sent), "{events:?}");
        assert!(sent < at(TraceEvent::Gradient(2 * unit + 2)), "{events:?}");
        assert!(at(TraceEvent::Summed(unit)) < at(TraceEvent::Sent(count - 1)), "{events:?}");
    }
    format!("{events:?}")
}

#[test]
fn units_are_summed_while_the_backward_pass_goes_on() {
    let reports = run("flat_overlap", 2);
    assert_eq!(reports[0], reports[1]);
}

pub(crate) fn rank_with_unused_parameter(rank: &Rank) -> String {
    let group = rank.group("flat_unreduced");
    let (whole, rows) = inputs(&group, rank.world as i64);
    let layers = Layers::new(&whole, &group, rank);
    let x = rows.get(0).get(0);
    // All except the lowest layer's bias, which is in the last unit.
    let upper = layers.layers[1..]
        .iter()
        .fold(x.matmul(&layers.layers[0][0].tr()), |x, layer| x.linear(&layer[0], Some(&layer[1])).tanh());
    layers.flat.reduce(Some(&upper.sum(Kind::Float))).unwrap_err().to_string()
}

#[test]
fn a_flat_parameter_without_a_gradient_is_an_error() {
    for report in run("flat_unreduced", 2) {
        assert!(report.contains(&format!("unit {} of the flat ones", WIDTHS.len() - 2)), "{report}");
    }
}
