//! Tests of single steps: normalization and non-finite losses.

use foil_common::spec::{BradleyTerry, Normalization, OnNonfinite, Optimizer, RewardLoss, Wgan};
use tch::{Device, Kind, no_grad};

use super::super::{
    Comparison, MicroBatchLoss, NoCheckpoints, Objective, PairRanking, RankInfo, RowShape, StepPlan,
    StepRequests, TrainConfig, TrainError, Trainer, train,
};
use super::{config, fixture, fixtures, optimizer, pairs};
use crate::collective::Gang;
use crate::model::{Precision, RewardModel};
use crate::objective::metrics::MetricSums;

const SINGLE: RankInfo = RankInfo { rank: 0, world: 1 };

fn reward_model() -> RewardModel {
    RewardModel::load(&fixtures().join("model/llama-reward"), Device::Cpu).unwrap()
}

fn rows() -> Vec<Comparison> {
    pairs(&fixture("loops.json")["pairs"])
}

fn plan(objective: &dyn Objective, budget: usize) -> StepPlan {
    let shapes: Vec<RowShape> = (0..objective.sets().iter().sum()).map(|row| objective.shape(row)).collect();
    StepPlan::new(&(0..shapes.len()).collect::<Vec<_>>(), &shapes, SINGLE, budget)
}

#[test]
fn reference_normalization_is_the_mean_over_micro_batches() {
    let (model, rows) = (reward_model(), rows());
    let objective = PairRanking::new(&model, &rows, &[], Precision::Fp32, Normalization::Reference);
    let plan = plan(&objective, 48);
    assert!(plan.micro_batches.len() > 1);
    let mean_loss = |rows: &Vec<usize>| {
        no_grad(|| objective.loss(rows).unwrap().loss.double_value(&[])) / rows.len() as f64
    };
    let expected = plan.micro_batches.iter().map(mean_loss).sum::<f64>() / plan.micro_batches.len() as f64;
    let (config, gang) = (config(optimizer(None, 48)), Gang::single());
    let mut trainer = Trainer::new(model.parameters(), &config, 1, &gang).unwrap();
    let metrics = trainer.step(&objective, &plan, StepRequests::default()).unwrap().0;
    assert!((metrics.loss - expected).abs() < 1e-6);
}

/// An objective whose losses are infinite.
struct NonFinite<'a>(&'a dyn Objective);

impl Objective for NonFinite<'_> {
    fn sets(&self) -> Vec<usize> {
        self.0.sets()
    }

    fn shape(&self, row: usize) -> RowShape {
        self.0.shape(row)
    }

    fn row_name(&self, row: usize) -> String {
        self.0.row_name(row)
    }

    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError> {
        let output = self.0.loss(rows)?;
        Ok(MicroBatchLoss { loss: output.loss * f64::INFINITY, metrics: MetricSums::zeros(&[], Device::Cpu) })
    }
}

fn step_on_non_finite(optimizer: &Optimizer) -> (Result<bool, TrainError>, bool) {
    let (model, rows) = (reward_model(), rows());
    let (human, golden) = rows.split_at(2);
    let objective = PairRanking::new(&model, human, golden, Precision::Fp32, Normalization::Global);
    let non_finite = NonFinite(&objective);
    let before = model.parameters().blake3().unwrap();
    let (config, gang) = (config(optimizer.clone()), Gang::single());
    let mut trainer = Trainer::new(model.parameters(), &config, 2, &gang).unwrap();
    let result = trainer
        .step(&non_finite, &plan(&non_finite, 100), StepRequests::default())
        .map(|(metrics, _)| metrics.skipped);
    let unchanged = model.parameters().blake3().unwrap() == before;
    if result.is_ok() {
        let metrics = trainer.step(&objective, &plan(&objective, 100), StepRequests::default()).unwrap().0;
        assert!(!metrics.skipped && metrics.loss.is_finite() && metrics.step == 2);
        assert!(model.parameters().tensors().iter().all(|t| t.isfinite().all().int64_value(&[]) == 1));
        assert_eq!(model.parameters().tensors()[0].kind(), Kind::Float);
    }
    (result, unchanged)
}

#[test]
fn a_non_finite_loss_names_its_rows() {
    let (result, unchanged) = step_on_non_finite(&optimizer(Some(1.0), 100));
    let error = result.unwrap_err();
    assert_eq!(error.class(), foil_common::failure::FailureClass::Nonfinite);
    let message = error.to_string();
    assert!(message.contains("human pair 0, human pair 1, golden answer 2"), "{message}");
    assert!(unchanged);
}

#[test]
fn a_step_with_a_non_finite_loss_can_be_skipped() {
    let settings = Optimizer { on_nonfinite: OnNonfinite::Skip, ..optimizer(Some(1.0), 100) };
    let (result, unchanged) = step_on_non_finite(&settings);
    assert!(result.unwrap());
    assert!(unchanged);
}

#[test]
fn a_clipped_head_stays_within_its_bound() {
    let (model, rows) = (reward_model(), rows());
    let largest = || model.parameters().get("score.weight").unwrap().abs().max().double_value(&[]);
    let step = |weight_clip| {
        let wgan = RewardLoss::Wgan(Wgan { weight_clip, human: BradleyTerry::default() });
        let objective =
            PairRanking::new(&model, &[], &rows, Precision::Fp32, Normalization::Global).with_loss(wgan);
        let gang = Gang::single();
        let config = TrainConfig { peak_learning_rate: 1e-2, ..config(optimizer(None, 100)) };
        let mut trainer = Trainer::new(model.parameters(), &config, 1, &gang).unwrap();
        trainer.step(&objective, &plan(&objective, 100), StepRequests::default()).unwrap().0
    };
    assert!(step(None).loss.is_finite() && largest() > 0.01);
    let _ = step(Some(0.01));
    assert!((largest() - 0.01).abs() < 1e-8, "{}", largest());
}

#[test]
fn rows_without_weight_are_refused() {
    let model = reward_model();
    let rows: Vec<Comparison> = rows().into_iter().map(|pair| Comparison { weight: 0.0, ..pair }).collect();
    let objective = PairRanking::new(&model, &rows, &[], Precision::Fp32, Normalization::Global);
    let config = config(optimizer(None, 100));
    let run = |objective: &dyn Objective| {
        train(objective, model.parameters(), &config, &Gang::single(), &mut NoCheckpoints, &mut |_| ())
            .unwrap_err()
    };
    assert!(matches!(run(&objective), TrainError::NoWeight { step: 1, .. }));
    let empty = PairRanking::new(&model, &[], &[], Precision::Fp32, Normalization::Global);
    assert!(matches!(run(&empty), TrainError::NoRows));
    assert_eq!(run(&empty).class(), foil_common::failure::FailureClass::Data);
}
