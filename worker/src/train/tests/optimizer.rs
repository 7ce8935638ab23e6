//! Compares AdamW, clipping and schedules with `torch.optim.AdamW`, `clip_grad_norm_` and transformers'
//! `get_scheduler`.

use foil_common::spec::{Schedule, ScheduleKind};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::super::AdamW;
use super::super::optimizer::{clip, decays, global_norm};
use super::{fixture, numbers, optimizer};

fn tensor(values: &Value, shape: &[i64]) -> Tensor {
    Tensor::from_slice(&numbers(values)).to_kind(Kind::Float).view(shape)
}

fn max_difference(found: &Tensor, expected: &Value) -> f64 {
    (found.detach().view(-1) - tensor(expected, &[-1])).abs().max().double_value(&[])
}

fn schedule(case: &Value) -> Schedule {
    let kind = match case["kind"].as_str().unwrap() {
        "constant" => ScheduleKind::Constant,
        "linear" => ScheduleKind::Linear,
        _ => ScheduleKind::Cosine,
    };
    let warmup_steps = case["warmup"].as_u64().unwrap() as u32;
    Schedule { kind, warmup_steps, min_lr_ratio: case["min_lr_ratio"].as_f64().unwrap() }
}

/// Sets the parameters' gradients, clearing the previous ones in place.
fn set_gradients(parameters: &[Tensor], gradients: &Value) -> Vec<Tensor> {
    foil_torch::autograd::zero_gradients(parameters).unwrap();
    for (parameter, gradient) in parameters.iter().zip(gradients.as_array().unwrap()) {
        (parameter * tensor(gradient, &parameter.size())).sum(Kind::Float).backward();
    }
    parameters.iter().map(Tensor::grad).collect()
}

#[test]
fn moments_and_weights_match_pytorch() {
    for case in fixture("optimizer.json").as_array().unwrap() {
        let rows = case["parameters"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
        let start = |row: &Value| {
            let shape: Vec<i64> = numbers(&row["shape"]).into_iter().map(|size| size as i64).collect();
            tensor(&row["start"], &shape).set_requires_grad(true)
        };
        let parameters: Vec<Tensor> = rows.iter().map(start).collect();
        let settings = optimizer(None, 1);
        let decaying = names.iter().zip(&parameters).map(|(name, p)| (p, decays(settings.decay, name, p)));
        let mut adamw = AdamW::new(decaying, &settings);
        let (schedule, steps) = (schedule(case), case["steps"].as_u64().unwrap());
        for (index, update) in case["updates"].as_array().unwrap().iter().enumerate() {
            let gradients = set_gradients(&parameters, &update["gradients"]);
            let norm = global_norm(&gradients).unwrap().double_value(&[]);
            assert!((norm / update["norm"].as_f64().unwrap() - 1.0).abs() < 1e-6);
            clip(&gradients, norm, case["clip"].as_f64().unwrap()).unwrap();
            let rate = case["learning_rate"].as_f64().unwrap() * schedule.factor(index as u64 + 1, steps);
            assert!((rate - update["rate"].as_f64().unwrap()).abs() < 1e-12, "{}: {rate}", case["kind"]);
            adamw.step(&gradients, rate).unwrap();
        }
        for (parameter, row) in parameters.iter().zip(rows) {
            assert!(max_difference(parameter, &row["end"]) < 1e-6, "{} {}", case["kind"], row["name"]);
        }
        // Parameters that decay (o_proj), then the others, each in name order.
        for ((mean, square), index) in adamw.moments().zip([2, 0, 1, 3]) {
            assert!(max_difference(mean, &rows[index]["exp_avg"]) < 1e-6);
            assert!(max_difference(square, &rows[index]["exp_avg_sq"]) < 1e-6);
        }
    }
}
