//! Checks that the micro-batch size is reduced to fit in memory, equally on all ranks, before the first step.

use std::cell::RefCell;

use foil_common::spec::Sharding;
use tch::{Device, Kind, TchError, Tensor};

use super::super::{
    Ended, MicroBatchLoss, NoCheckpoints, Objective, OrderKey, RowShape, TrainConfig, TrainError, train,
};
use super::{linear, optimizer};
use crate::collective::Gang;
use crate::collective::testing::in_threads;
use crate::model::Parameters;
use crate::objective::metrics::MetricSums;

/// Rows of 1 to `rows` tokens, with memory for `capacity` tokens.
struct LimitedMemory {
    parameter: Tensor,
    rows: usize,
    capacity: usize,
    panics: bool,
    seen: RefCell<Vec<usize>>,
}

impl Objective for LimitedMemory {
    fn sets(&self) -> Vec<usize> {
        vec![self.rows]
    }

    fn shape(&self, row: usize) -> RowShape {
        RowShape { cost: row + 1, tokens: row + 1, items: 1, weight: 1.0 }
    }

    fn row_name(&self, row: usize) -> String {
        format!("row {row}")
    }

    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError> {
        let tokens: usize = rows.iter().map(|row| row + 1).sum();
        if tokens > self.capacity {
            let message = format!("CUDA out of memory. Tried to allocate {tokens} MiB.");
            assert!(!self.panics, "{message}");
            return Err(TrainError::Torch(TchError::Torch(message)));
        }
        self.seen.borrow_mut().push(tokens);
        Ok(MicroBatchLoss {
            loss: self.parameter.square().sum(Kind::Float) * rows.len() as f64,
            metrics: MetricSums::zeros(&[], Device::Cpu),
        })
    }
}

fn run(gang: &Gang, rows: usize, capacity: usize, panics: bool) -> Result<Vec<usize>, TrainError> {
    let parameters =
        Parameters::from_named(vec![("w".to_owned(), Tensor::ones([3], (Kind::Float, Device::Cpu)))]);
    let parameter = parameters.tensors()[0].shallow_clone();
    let objective = LimitedMemory { parameter, rows, capacity, panics, seen: RefCell::default() };
    let (optimizer, schedule) = (optimizer(None, 64), linear(0));
    let config = TrainConfig {
        order: OrderKey { seed: 3, round: 1 },
        epochs: 1,
        batch_size: 16,
        peak_learning_rate: 1e-3,
        optimizer,
        schedule,
        sharding: Sharding::Ddp,
    };
    let ended = train(&objective, &parameters, &config, gang, &mut NoCheckpoints, &mut |_| ())?;
    let Ended::Done(summary) = ended else { panic!("{ended:?}") };
    assert_eq!(summary.steps as usize, rows.div_ceil(16));
    Ok(objective.seen.into_inner())
}

#[test]
fn a_budget_that_does_not_fit_is_halved_until_it_does() {
    for panics in [false, true] {
        let seen = run(&Gang::single(), 32, 40, panics).unwrap();
        // The probe, then the steps.
        assert!(seen.len() > 17 && seen.iter().all(|&tokens| tokens <= 32));
        assert_eq!(seen.iter().skip(1).sum::<usize>(), 32 * 33 / 2);
    }
}

#[test]
fn a_row_too_large_for_memory_is_named_before_the_first_step() {
    let error = run(&Gang::single(), 32, 20, false).unwrap_err();
    let TrainError::OutOfMemory { row, tokens, detail } = &error else { panic!("{error}") };
    assert_eq!((row.as_str(), *tokens), ("row 31", 32));
    assert!(detail.contains("Tried to allocate 32 MiB"));
}

#[test]
fn all_ranks_use_the_smallest_budget() {
    let capacities = [1000, 40];
    let seen = in_threads(2, |gang| run(gang, 32, capacities[gang.rank()], false).unwrap());
    // Rank 0's first probe fits, and its steps use the other rank's budget.
    assert!(seen[0][0] > 32);
    let steps = seen[0].iter().skip(1).chain(&seen[1]).max().copied();
    assert!(steps.unwrap() <= 32, "{steps:?}");
}
