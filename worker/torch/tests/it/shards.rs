//! Checks that sharded parameters compute the same as whole ones.

use foil_torch::autograd::{backward, checkpoint, grad_enabled};
use foil_torch::c10d::{ProcessGroup, ShardStore, Unit};
use tch::{Device, Kind, Tensor, no_grad};

use crate::harness::{Rank, run};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Widths of layers whose weights and biases have numbers of elements that no number of ranks divides.
const WIDTHS: [i64; 5] = [7, 13, 5, 11, 3];
const MICRO_BATCHES: usize = 2;
const ROWS: i64 = 6;

/// Sharded layers, and a scale that stays resident.
struct Layers {
    store: ShardStore,
    /// The fp32 shards, each with the number of elements of its flattened parameters. The scale's is last.
    shards: Vec<(Tensor, i64)>,
    layers: Vec<Vec<Tensor>>,
    scale: Tensor,
    kind: Kind,
    checkpointing: bool,
}

fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    x.to_kind(weight.kind()).linear(weight, Some(bias)).to_kind(Kind::Float).tanh()
}

/// This rank's part of a parameter's elements, padded with zeros.
fn shard(whole: &[Tensor], rank: &Rank) -> (Tensor, i64, Vec<(i64, Vec<i64>)>) {
    let flat: Vec<Tensor> = whole.iter().map(|tensor| tensor.detach().view(-1)).collect();
    let flat = Tensor::cat(&flat, 0);
    let (elements, world) = (flat.size()[0], rank.world as i64);
    let length = (elements as usize).div_ceil(rank.world) as i64;
    let padded = Tensor::zeros([length * world], CPU);
    padded.narrow(0, 0, elements).copy_(&flat);
    let mut start = 0;
    let placed = whole.iter().map(|tensor| {
        start += tensor.numel() as i64;
        (start - tensor.numel() as i64, tensor.size())
    });
    (padded.narrow(0, length * rank.rank as i64, length).copy(), elements, placed.collect())
}

impl Layers {
    fn new(whole: &[Vec<Tensor>], scale: &Tensor, kind: Kind, rank: &Rank) -> Self {
        let store = ShardStore::new(rank.world).unwrap();
        let mut shards = Vec::new();
        let mut add = |tensors: &[Tensor], kind, resident| {
            let (shard, elements, parameters) = shard(tensors, rank);
            let unit = Unit { shard: &shard, parameters: &parameters, kind, resident };
            let (number, tensors) = store.add_unit(&unit).unwrap();
            assert_eq!(number, shards.len());
            shards.push((shard, elements));
            tensors
        };
        let layers: Vec<Vec<Tensor>> = whole.iter().map(|layer| add(layer, kind, false)).collect();
        let scale = add(&[scale.shallow_clone()], Kind::Float, true).remove(0);
        Self { store, shards, layers, scale, kind, checkpointing: false }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.store.gather_residents().unwrap();
        let count = self.layers.len();
        let mut x = x * &self.scale;
        for index in 0..count {
            let next = Some(index + 1).filter(|next| *next < count);
            let before = index.checked_sub(1);
            if self.checkpointing {
                let store = self.store.clone();
                let compute = move |inputs: &[Tensor]| {
                    store.gather(index, if grad_enabled() { before } else { next })?;
                    Ok::<_, foil_torch::Error>(vec![linear(&inputs[0], &inputs[1], &inputs[2])])
                };
                let inputs: Vec<Tensor> =
                    std::iter::once(&x).chain(&self.layers[index]).map(Tensor::shallow_clone).collect();
                x = checkpoint(&inputs, compute).unwrap().remove(0);
            } else {
                self.store.gather(index, next).unwrap();
                let output = linear(&x, &self.layers[index][0], &self.layers[index][1]);
                x = self.store.gather_in_backward(index, before, &[output]).unwrap().remove(0);
            }
            self.at_most_two_layers();
        }
        x
    }

    /// Checks that memory holds at most a layer and the one gathered ahead, in addition to the resident
    /// scale.
    fn at_most_two_layers(&self) {
        let bytes = |width: i64| (width + 4) as u64 * self.kind.elt_size_in_bytes() as u64;
        let largest = WIDTHS.windows(2).map(|pair| pair[1] * (pair[0] + 1)).max().unwrap();
        assert!(self.store.gathered_bytes() <= 2 * bytes(largest) + 64, "{:?}", self.store);
    }

    fn set_requires_grad(&self) {
        self.layers.iter().flatten().chain([&self.scale]).for_each(|tensor| {
            let _ = tensor.set_requires_grad(true);
        });
        self.store.watch_gradients().unwrap();
    }
}

/// Weights, a scale and every rank's rows, equal on all ranks.
fn inputs(group: &ProcessGroup, world: i64) -> (Vec<Vec<Tensor>>, Tensor, Tensor) {
    let mut seed = Tensor::randint(1 << 40, [1], (Kind::Int64, Device::Cpu));
    group.broadcast(&mut seed, 0).unwrap();
    tch::manual_seed(seed.int64_value(&[0]));
    let layer = |pair: &[i64]| {
        vec![Tensor::randn([pair[1], pair[0]], CPU) * 0.5, Tensor::randn([pair[1]], CPU) * 0.1]
    };
    let layers = WIDTHS.windows(2).map(layer).collect();
    let rows = Tensor::randn([world, MICRO_BATCHES as i64, ROWS, WIDTHS[0]], CPU);
    (layers, Tensor::rand([WIDTHS[0]], CPU) + 0.5, rows)
}

/// The gradients of the loss over all ranks' rows, in the order of the shards, computed by autograd alone.
fn expected(layers: &[Vec<Tensor>], scale: &Tensor, rows: &Tensor, kind: Kind) -> Vec<Vec<Tensor>> {
    let leaf = |tensor: &Tensor| tensor.detach().copy().set_requires_grad(true);
    let layers: Vec<Vec<Tensor>> = layers.iter().map(|layer| layer.iter().map(leaf).collect()).collect();
    let scale = leaf(scale);
    let mut x = rows.view([-1, WIDTHS[0]]) * &scale;
    for layer in &layers {
        x = linear(&x, &layer[0].to_kind(kind), &layer[1].to_kind(kind));
    }
    backward(&x.square().sum(Kind::Float)).unwrap();
    let mut gradients: Vec<Vec<Tensor>> =
        layers.iter().map(|layer| layer.iter().map(Tensor::grad).collect()).collect();
    gradients.push(vec![scale.grad()]);
    gradients
}

pub(crate) fn rank(rank: &Rank) -> String {
    let group = rank.group("shards");
    let mut report = String::new();
    for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
        let (whole, scale, rows) = inputs(&group, rank.world as i64);
        let expected = expected(&whole, &scale, &rows, kind);
        for checkpointing in [false, true] {
            let layers = Layers { checkpointing, ..Layers::new(&whole, &scale, kind, rank) };
            layers.store.connect(&group);
            layers.set_requires_grad();
            for index in 0..MICRO_BATCHES as i64 {
                let own = rows.get(rank.rank as i64).get(index);
                backward(&layers.forward(&own).square().sum(Kind::Float)).unwrap();
                layers.store.finish_backward().unwrap();
                layers.at_most_two_layers();
            }
            for ((shard_of, _), expected) in layers.shards.iter().zip(&expected) {
                let (expected, ..) = shard(expected, rank);
                let found = shard_of.grad();
                let distance = (&found - &expected).norm() / (expected.norm() + 1e-9);
                assert!(
                    distance.double_value(&[]) < bound,
                    "{kind:?}, checkpointing: {checkpointing}: {distance} from the gradient {expected}"
                );
            }
            layers.store.release().unwrap();
            assert_eq!(layers.store.gathered_bytes(), 0);
            gathers_ahead(&layers);
            gathers_exact_values(&layers, &whole, kind);
        }
        report.push_str(&format!("{kind:?} "));
    }
    a_parameter_without_a_gradient_is_an_error(&group, rank);
    group.shutdown().unwrap();
    report
}

/// Checks that gathering a unit starts to gather the next one.
fn gathers_ahead(layers: &Layers) {
    layers.store.gather(0, Some(1)).unwrap();
    let both = layers.store.gathered_bytes();
    layers.store.gather(1, None).unwrap();
    let second = layers.store.gathered_bytes();
    layers.store.release().unwrap();
    layers.store.gather(0, None).unwrap();
    assert_eq!(both, second + layers.store.gathered_bytes());
    layers.store.release().unwrap();
}

/// Checks that a unit gathers the rounded master, and that its shards together are the master itself.
fn gathers_exact_values(layers: &Layers, whole: &[Vec<Tensor>], kind: Kind) {
    for (index, layer) in whole.iter().enumerate() {
        layers.store.gather(index, None).unwrap();
        for (found, master) in layers.layers[index].iter().zip(layer) {
            assert_eq!(found.detach(), master.to_kind(kind));
        }
        let flat: Vec<Tensor> = layer.iter().map(|tensor| tensor.view(-1)).collect();
        let elements = layers.shards[index].1;
        assert_eq!(layers.store.whole(index).unwrap().narrow(0, 0, elements), Tensor::cat(&flat, 0));
    }
}

fn a_parameter_without_a_gradient_is_an_error(group: &ProcessGroup, rank: &Rank) {
    let (whole, scale, rows) = inputs(group, rank.world as i64);
    let layers = Layers::new(&whole, &scale, Kind::Float, rank);
    layers.store.connect(group);
    layers.set_requires_grad();
    layers.store.gather_residents().unwrap();
    layers.store.gather(0, None).unwrap();
    let x = rows.get(0).get(0) * &layers.scale;
    backward(&x.matmul(&layers.layers[0][0].tr()).sum(Kind::Float)).unwrap();
    let error = layers.store.finish_backward().unwrap_err().to_string();
    assert!(error.contains("unit 0"), "{error}");
    layers.store.discard_gradients().unwrap();
    assert!(no_grad(|| layers.shards.iter().all(|(shard, _)| !shard.grad().defined())));
}

#[test]
fn gradients_of_shards_equal_those_of_whole_parameters() {
    for world in [1, 2, 3] {
        let reports = run("shards", world);
        assert!(reports.iter().all(|report| report == "Float BFloat16 "), "{reports:?}");
    }
}
