//! Checks that gradients summed over ranks equal those of one process, and that a resumed run is bitwise
//! equal to an uninterrupted one.

use foil_torch::autograd::backward;
use foil_torch::c10d::{BucketSizes, ProcessGroup, Reducer};
use foil_torch::ops::{AdamWState, fused_adamw};
use foil_torch::{AdamW, Error};
use tch::{Device, Kind, Tensor};

use crate::harness::{Rank, run};

/// Small buckets: these few parameters fill several, so that their layout matters.
const SIZES: BucketSizes = BucketSizes { first: 300, rest: 1500 };
const SHAPES: [&[i64]; 6] = [&[16, 24], &[24], &[24, 20], &[20], &[20, 1], &[1]];
const ROWS: i64 = 12;
const STEPS: i64 = 5;
const OPTIONS: AdamW =
    AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };

/// Pseudo-random numbers that are the same in every process.
fn noise(shape: &[i64], seed: i64, kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    let phase = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed as f64 * 78.233;
    ((phase.sin() * 43_758.545_3).frac().view(shape) * 0.5).to_kind(kind)
}

/// A network with two hidden layers and its AdamW state.
struct Network {
    parameters: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl Network {
    fn new(kind: Kind) -> Self {
        let leaf = |(seed, shape): (usize, &&[i64])| noise(shape, seed as i64, kind).set_requires_grad(true);
        let parameters: Vec<Tensor> = SHAPES.iter().enumerate().map(leaf).collect();
        let zeros = || parameters.iter().map(|parameter| parameter.detach().zeros_like()).collect();
        let steps = SHAPES.map(|_| Tensor::from(0.0_f32)).into();
        Self { exp_avg: zeros(), exp_avg_sq: zeros(), steps, parameters }
    }

    /// The squared error of `rows` of batch `step`, divided by the size of the whole batch.
    fn loss(&self, step: i64, rows: &[i64]) -> Tensor {
        let kind = self.parameters[0].kind();
        let index = Tensor::from_slice(rows);
        let inputs = noise(&[ROWS, 16], 100 + step, kind).index_select(0, &index);
        let targets = noise(&[ROWS, 1], 200 + step, kind).index_select(0, &index);
        let [w1, b1, w2, b2, w3, b3] = self.parameters.as_slice() else { unreachable!("six parameters") };
        let hidden = (inputs.matmul(w1) + b1).tanh();
        let output = (hidden.matmul(w2) + b2).tanh().matmul(w3) + b3;
        (output - targets).square().sum(kind) / ROWS as f64
    }

    fn update(&self, gradients: &[Tensor]) {
        let state = AdamWState {
            parameters: &self.parameters,
            gradients,
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
            steps: &self.steps,
        };
        fused_adamw(&state, &OPTIONS).unwrap();
    }

    /// A copy that shares no storage, as restored from a checkpoint.
    fn restored(&self) -> Self {
        let copies =
            |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.detach().copy()).collect::<Vec<_>>();
        let parameters =
            copies(&self.parameters).into_iter().map(|copy| copy.set_requires_grad(true)).collect();
        Self {
            parameters,
            exp_avg: copies(&self.exp_avg),
            exp_avg_sq: copies(&self.exp_avg_sq),
            steps: copies(&self.steps),
        }
    }

    /// The bits of all parameters.
    fn bits(&self) -> Vec<u64> {
        let all: Vec<Tensor> = self.parameters.iter().map(|parameter| parameter.detach().view(-1)).collect();
        let flat = Tensor::cat(&all, 0).to_kind(Kind::Double);
        Vec::<f64>::try_from(flat).unwrap().into_iter().map(f64::to_bits).collect()
    }
}

/// This rank's rows of batch `step`. At step 1 the last rank has none.
fn shard(step: i64, rank: usize, world: usize) -> Vec<i64> {
    let takers = if step == 1 { world - 1 } else { world };
    (0..ROWS).filter(|row| *row as usize % takers == rank).collect()
}

/// One step's gradients, in two micro-batches if there are enough rows.
fn gradients(network: &Network, reducer: &mut Reducer, step: i64, rows: &[i64]) -> Vec<Tensor> {
    reducer.zero_gradients().unwrap();
    match rows {
        [] => reducer.reduce(&reducer.zero_loss()).unwrap(),
        [only] => reducer.reduce(&network.loss(step, &[*only])).unwrap(),
        [first, rest @ ..] => {
            reducer.accumulate(&network.loss(step, &[*first])).unwrap();
            reducer.reduce(&network.loss(step, rest)).unwrap();
        }
    }
    reducer.gradients()
}

fn warm_reducer(group: &ProcessGroup, network: &Network, step: i64, rank: &Rank) -> Reducer {
    let mut reducer = Reducer::new(group, &network.parameters, SIZES).unwrap();
    let rows = shard(step, rank.rank, rank.world);
    reducer
        .warm_up(|| {
            let zero_loss = foil_torch::autograd::zero_loss(&network.parameters);
            Ok::<_, Error>(if rows.is_empty() { zero_loss } else { network.loss(step, &rows) })
        })
        .unwrap();
    reducer
}

pub(crate) fn rank_compares_gradients(rank: &Rank) -> String {
    for (kind, tolerance) in [(Kind::Double, 1e-14), (Kind::Float, 1e-6)] {
        let (network, alone) = (Network::new(kind), Network::new(kind));
        let group = rank.group(&format!("gradient/{kind:?}"));
        let mut reducer = warm_reducer(&group, &network, 0, rank);
        for step in 0..STEPS {
            let rows = shard(step, rank.rank, rank.world);
            let summed = gradients(&network, &mut reducer, step, &rows);
            foil_torch::autograd::zero_gradients(&alone.parameters).unwrap();
            backward(&alone.loss(step, &Vec::from_iter(0..ROWS))).unwrap();
            let own: Vec<Tensor> = alone.parameters.iter().map(Tensor::grad).collect();
            for (position, (sum, whole)) in summed.iter().zip(&own).enumerate() {
                let apart = (sum - whole).abs().max().double_value(&[]);
                assert!(apart <= tolerance, "{kind:?}: gradient {position} of step {step} is {apart:e} off");
            }
            network.update(&summed);
            // Compared at equal weights in each step, so that rounding does not accumulate over steps.
            tch::no_grad(|| {
                for (mine, theirs) in alone.parameters.iter().zip(&network.parameters) {
                    mine.shallow_clone().copy_(theirs);
                }
            });
        }
    }
    "same".to_owned()
}

#[test]
fn gradients_are_those_of_one_process() {
    for world in [2, 3] {
        assert_eq!(run("gradient", world), vec!["same"; world]);
    }
}

/// Trains uninterrupted, then again from every step's state with a new group and a new reducer.
pub(crate) fn rank_resumes(rank: &Rank) -> String {
    let network = Network::new(Kind::Float);
    let group = rank.group("uninterrupted");
    let mut reducer = warm_reducer(&group, &network, 0, rank);
    let mut states = vec![network.restored()];
    for step in 0..STEPS {
        network.update(&gradients(&network, &mut reducer, step, &shard(step, rank.rank, rank.world)));
        states.push(network.restored());
    }
    for start in 1..STEPS {
        let resumed = states[start as usize].restored();
        let group = rank.group(&format!("resumed/{start}"));
        let mut reducer = warm_reducer(&group, &resumed, start, rank);
        assert_eq!(resumed.bits(), states[start as usize].bits(), "warming up changed the weights");
        for step in start..STEPS {
            resumed.update(&gradients(&resumed, &mut reducer, step, &shard(step, rank.rank, rank.world)));
            let (now, then) = (resumed.bits(), states[step as usize + 1].bits());
            assert_eq!(now, then, "resumed at {start}, apart after step {step}");
        }
    }
    format!("{:x?}", states[STEPS as usize].bits())
}

#[test]
fn resuming_gives_the_same_bits() {
    for world in [2, 3, 4] {
        let reports = run("resume", world);
        assert!(reports.iter().all(|report| *report == reports[0]), "weights differ between {world} ranks");
    }
}
