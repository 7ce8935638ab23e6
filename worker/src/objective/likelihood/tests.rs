use tch::{Device, Kind, Tensor};

use super::{Prediction, ResponsePositions, chunks, grouped, log_probs, nll};

struct Problem {
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
}

impl Problem {
    fn new(kind: Kind) -> Self {
        tch::manual_seed(3);
        let random = |size: [i64; 2]| {
            Tensor::randn(size, (Kind::Double, Device::Cpu)).to_kind(kind).set_requires_grad(true)
        };
        let targets = Tensor::randint(9, [11], (Kind::Int64, Device::Cpu));
        Self { hidden: random([11, 6]), head: random([9, 6]), targets }
    }

    fn prediction(&self, compute: Kind) -> Prediction<'_> {
        Prediction { hidden: &self.hidden, targets: &self.targets, head: &self.head, compute }
    }

    /// log p by autograd, `[tokens]`.
    fn by_autograd(&self) -> Tensor {
        let logits = self.hidden.matmul(&self.head.tr()).log_softmax(-1, Kind::Double);
        logits.gather(1, &self.targets.unsqueeze(1), false).squeeze_dim(1)
    }

    fn gradients(&self, loss: &Tensor) -> Vec<Tensor> {
        Tensor::run_backward(&[loss], &[&self.hidden, &self.head], false, false)
    }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// A loss in which every token of a group depends on all others in the group.
fn entangled(log_probs: &Tensor) -> Tensor {
    (log_probs.sum(log_probs.kind()) * 0.3).log_sigmoid() * 2.0 + log_probs.square().sum(log_probs.kind())
}

#[test]
fn the_likelihood_has_autograds_loss_and_gradients() {
    let problem = Problem::new(Kind::Double);
    let expected = -problem.by_autograd().sum(Kind::Double);
    let gradients = problem.gradients(&(&expected * 0.3));
    let loss = nll(&problem.prediction(Kind::Double)).unwrap();
    assert!(distance(&loss, &expected) < 1e-9);
    let found = problem.gradients(&(loss * 0.3));
    assert!(distance(&found[0], &gradients[0]) < 1e-12);
    assert!(distance(&found[1], &gradients[1]) < 1e-12);
}

#[test]
fn a_frozen_head_changes_nothing_for_the_states_and_gets_no_gradient() {
    let problem = Problem::new(Kind::Float);
    let gradients = problem.gradients(&nll(&problem.prediction(Kind::Float)).unwrap());
    let _ = problem.head.set_requires_grad(false);
    let loss = nll(&problem.prediction(Kind::Float)).unwrap();
    let found = Tensor::run_backward(&[&loss], &[&problem.hidden], false, false);
    assert!(found[0].equal(&gradients[0]));
    foil_torch::autograd::backward(&nll(&problem.prediction(Kind::Float)).unwrap()).unwrap();
    assert!(!problem.head.grad().defined());
}

/// Covers fp64 with ATen's operations and fp32 with the CPU kernels, for groups within a chunk and groups
/// longer than one.
#[test]
fn a_loss_of_groups_has_autograds_loss_and_gradients() {
    let groups = [3, 0, 7, 1];
    for (kind, bound) in [(Kind::Double, 1e-9), (Kind::Float, 2e-5)] {
        let problem = Problem::new(kind);
        let parts = problem.by_autograd().split_with_sizes(groups, 0);
        let expected: Tensor = parts.iter().map(entangled).sum();
        let gradients = problem.gradients(&(&expected * 0.3));
        for rows in [2, 4, 100] {
            let (spans, members) = super::whole_groups(&groups, rows);
            assert_eq!(spans.iter().map(|span| span.length).sum::<i64>(), 11);
            assert_eq!(members.last().unwrap().end, groups.len());
        }
        let mut order = Vec::new();
        let loss = grouped(&problem.prediction(kind), &groups, &mut |group, log_probs| {
            order.push(group);
            assert_eq!(log_probs.size(), [groups[group]]);
            entangled(log_probs)
        })
        .unwrap();
        assert_eq!(order, [0, 1, 2, 3]);
        assert!(distance(&loss, &expected) < bound);
        let found = problem.gradients(&(loss * 0.3));
        assert!(distance(&found[0], &gradients[0]) < bound, "{kind:?}");
        assert!(distance(&found[1], &gradients[1]) < bound, "{kind:?}");
    }
}

#[test]
fn log_probs_are_those_of_the_loss() {
    for kind in [Kind::Double, Kind::Float] {
        let problem = Problem::new(kind);
        let found = log_probs(&problem.prediction(kind)).unwrap();
        assert!(!found.requires_grad());
        assert!(distance(&found, &problem.by_autograd()) < 2e-6);
    }
}

#[test]
fn bf16_stays_near_fp32() {
    let problem = Problem::new(Kind::Float);
    let exact = nll(&problem.prediction(Kind::Float)).unwrap();
    let coarse = nll(&problem.prediction(Kind::BFloat16)).unwrap();
    assert_eq!(coarse.kind(), Kind::Float);
    assert!(distance(&exact, &coarse) / exact.double_value(&[]) < 0.02);
    coarse.backward();
    assert_eq!(problem.head.grad().kind(), Kind::Float);
}

#[test]
fn no_answer_tokens_is_a_zero_loss() {
    let problem = Problem::new(Kind::Float);
    let (hidden, targets) = (problem.hidden.narrow(0, 0, 0), problem.targets.narrow(0, 0, 0));
    let none = Prediction { hidden: &hidden, targets: &targets, ..problem.prediction(Kind::Float) };
    let none = nll(&none).unwrap();
    none.backward();
    assert_eq!(none.double_value(&[]), 0.0);
    assert_eq!(problem.head.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
}

#[test]
fn answers_are_read_one_position_earlier() {
    let sequences: [(&[u32], usize); 3] = [(&[5, 6, 7, 8], 2), (&[5, 6], 2), (&[4, 3, 2], 0)];
    let groups = sequences.map(|(ids, _)| [ids]);
    let (_, positions) = ResponsePositions::pack(&groups, &sequences, Device::Cpu).unwrap();
    assert_eq!(Vec::<i64>::try_from(positions.rows()).unwrap(), [1, 2, 6, 7]);
    assert_eq!(Vec::<i64>::try_from(positions.targets()).unwrap(), [7, 8, 3, 2]);
    assert_eq!(positions.counts(), [2, 0, 2]);
    assert_eq!(positions.tokens(), 4);
    let per_token = Tensor::from_slice(&[1.0_f32, 2.0, 8.0, 9.0]);
    assert_eq!(positions.split(&per_token)[2].size(), [2]);
}

#[test]
fn chunks_cover_everything_once() {
    assert_eq!(chunks(7, 3).collect::<Vec<_>>(), [(0, 3), (3, 3), (6, 1)]);
    assert_eq!(chunks(0, 3).count(), 0);
}
