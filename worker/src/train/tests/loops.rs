//! Compares training phases with PyTorch loops over the same models and rows.

use foil_common::spec::{Normalization, Optimizer, Schedule, Sharding};
use serde_json::Value;
use tch::Device;

use super::super::{
    Demonstrations, Ended, NoCheckpoints, Objective, OrderKey, PairRanking, StepMetrics, Summary,
    TrainConfig, train,
};
use super::{demonstrations, fixture, fixtures, linear, numbers, optimizer, pairs};
use crate::collective::Gang;
use crate::model::{LanguageModel, Parameters, Precision, RewardModel};

/// Trains on all rows in every step, as the fixture's loop does.
fn run(
    objective: &dyn Objective,
    parameters: &Parameters,
    case: &Value,
    budget: usize,
) -> (Vec<StepMetrics>, Summary) {
    let optimizer: Optimizer = optimizer(case["clip"].as_f64(), budget);
    let schedule: Schedule = linear(case["warmup"].as_u64().unwrap() as u32);
    let config = TrainConfig {
        order: OrderKey { seed: 1, round: 1 },
        epochs: case["steps"].as_u64().unwrap() as u32,
        batch_size: objective.sets().iter().sum(),
        peak_learning_rate: case["learning_rate"].as_f64().unwrap(),
        optimizer,
        schedule,
        sharding: Sharding::Ddp,
    };
    let mut steps = Vec::new();
    let mut report = |metrics: &StepMetrics| steps.push(metrics.clone());
    let ended =
        train(objective, parameters, &config, &Gang::single(), &mut NoCheckpoints, &mut report).unwrap();
    let Ended::Done(summary) = ended else { panic!("{ended:?}") };
    (steps, summary)
}

fn assert_close(steps: &[StepMetrics], case: &Value, tolerance: f64) {
    let (losses, norms) = (numbers(&case["losses"]), numbers(&case["norms"]));
    assert_eq!(steps.len(), losses.len());
    for (metrics, (loss, norm)) in steps.iter().zip(losses.into_iter().zip(norms)) {
        let step = metrics.step;
        assert!((metrics.loss / loss - 1.0).abs() < tolerance, "step {step}: {} not {loss}", metrics.loss);
        assert!(
            (metrics.grad_norm / norm - 1.0).abs() < tolerance,
            "step {step}: {} not {norm}",
            metrics.grad_norm
        );
    }
}

#[test]
fn fine_tuning_matches_pytorch() {
    let case = &fixture("loops.json")["demonstrations"];
    let rows = demonstrations(case);
    for budget in [16, 40, 1000] {
        let model = LanguageModel::load(&fixtures().join("model/llama-tied"), Device::Cpu).unwrap();
        let objective = Demonstrations::new(&model, &rows, Precision::Fp32);
        let (steps, summary) = run(&objective, model.parameters(), case, budget);
        assert_close(&steps, case, 2e-5);
        assert_eq!((summary.steps, summary.skipped), (6, 0));
        assert_eq!(summary.first_loss, steps[0].loss);
        assert_eq!(summary.loss, steps[5].loss);
        assert_eq!(summary.tokens, 6 * rows.iter().map(|row| row.ids.len() as u64).sum::<u64>());
    }
}

#[test]
fn reward_training_matches_pytorch() {
    let case = &fixture("loops.json")["pairs"];
    let rows = pairs(case);
    let (human, golden) = rows.split_at(3);
    for budget in [16, 60, 1000] {
        let model = RewardModel::load(&fixtures().join("model/llama-reward"), Device::Cpu).unwrap();
        let objective = PairRanking::new(&model, human, golden, Precision::Fp32, Normalization::Global);
        let (steps, summary) = run(&objective, model.parameters(), case, budget);
        assert_close(&steps, case, 2e-5);
        let share = summary.objective.iter().find(|(name, _)| *name == "golden_weight_share");
        assert!((share.unwrap().1 - 0.2).abs() < 1e-12);
        assert!(steps[5].objective[0].1 > 0.9, "train_accuracy after training on the same pairs");
    }
}

#[test]
fn bf16_training_is_close_to_fp32() {
    let cases = fixture("loops.json");
    let case = &cases["demonstrations"];
    let rows = demonstrations(case);
    let model = LanguageModel::load(&fixtures().join("model/llama-tied"), Device::Cpu).unwrap();
    let objective = Demonstrations::new(&model, &rows, Precision::Bf16);
    let (steps, _) = run(&objective, model.parameters(), case, 40);
    assert_close(&steps, case, 0.03);
    assert!(model.parameters().tensors().iter().all(|tensor| tensor.kind() == tch::Kind::Float));

    let case = &cases["pairs"];
    let rows = pairs(case);
    let model = RewardModel::load(&fixtures().join("model/llama-reward"), Device::Cpu).unwrap();
    let objective = PairRanking::new(&model, &rows, &[], Precision::Bf16, Normalization::Global);
    let (steps, _) = run(&objective, model.parameters(), case, 60);
    assert!((steps[0].loss / numbers(&case["losses"])[0] - 1.0).abs() < 0.05);
    assert!(steps[5].loss < 0.2 * steps[0].loss);
}
