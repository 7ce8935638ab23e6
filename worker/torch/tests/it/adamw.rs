use foil_torch::ops::{AdamWState, fused_adamw, global_norm, scale};
use foil_torch::{AdamW, Error};
use tch::{Device, Kind, Tensor};

const OPTIONS: AdamW =
    AdamW { learning_rate: 3e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 };

/// The update of the paper, for one number.
struct Scalar {
    weight: f64,
    mean: f64,
    square: f64,
}

impl Scalar {
    fn update(&mut self, gradient: f64, step: i32) {
        let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } = OPTIONS;
        self.weight -= learning_rate * weight_decay * self.weight;
        self.mean = beta1 * self.mean + (1.0 - beta1) * gradient;
        self.square = beta2 * self.square + (1.0 - beta2) * gradient * gradient;
        let mean = self.mean / (1.0 - beta1.powi(step));
        let square = self.square / (1.0 - beta2.powi(step));
        self.weight -= learning_rate * mean / (square.sqrt() + epsilon);
    }
}

fn gradient(index: usize, step: i32) -> f64 {
    ((index as f64 + 1.0) * 0.7 + f64::from(step) * 1.3).sin()
}

/// Weights after 10 fused updates.
fn fused(shapes: &[&[i64]]) -> Vec<f64> {
    let options = (Kind::Float, Device::Cpu);
    let start = |index: f64| (index * 0.37).cos();
    let mut offset = 0.0;
    let mut parameters = Vec::new();
    for shape in shapes {
        let count: i64 = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|index| start(offset + index as f64) as f32).collect();
        parameters.push(Tensor::from_slice(&values).view(*shape).set_requires_grad(true));
        offset += count as f64;
    }
    let zeros = || -> Vec<Tensor> { shapes.iter().map(|shape| Tensor::zeros(*shape, options)).collect() };
    let (exp_avg, exp_avg_sq) = (zeros(), zeros());
    let steps: Vec<Tensor> = shapes.iter().map(|_| Tensor::from(0.0_f32)).collect();
    for step in 1..=10 {
        let mut next = 0..;
        let gradients: Vec<Tensor> = shapes
            .iter()
            .map(|shape| {
                let count: i64 = shape.iter().product();
                let values: Vec<f32> =
                    next.by_ref().take(count as usize).map(|index| gradient(index, step) as f32).collect();
                Tensor::from_slice(&values).view(*shape)
            })
            .collect();
        let state = AdamWState {
            parameters: &parameters,
            gradients: &gradients,
            exp_avg: &exp_avg,
            exp_avg_sq: &exp_avg_sq,
            steps: &steps,
        };
        fused_adamw(&state, &OPTIONS).unwrap();
    }
    assert!(steps.iter().all(|step| step.double_value(&[]) == 10.0));
    parameters.iter().flat_map(|tensor| Vec::<f64>::try_from(tensor.detach().view(-1)).unwrap()).collect()
}

#[test]
fn the_fused_update_is_the_papers() {
    let weights = fused(&[&[3, 5], &[7], &[1]]);
    for (index, weight) in weights.iter().enumerate() {
        let mut scalar = Scalar { weight: (index as f64 * 0.37).cos(), mean: 0.0, square: 0.0 };
        for step in 1..=10 {
            scalar.update(gradient(index, step), step);
        }
        let error = (weight - scalar.weight).abs();
        assert!(error <= 1e-6, "weight {index}: {weight} against {}", scalar.weight);
    }
}

#[test]
fn the_same_inputs_give_the_same_bits() {
    let bits = |weights: Vec<f64>| weights.into_iter().map(f64::to_bits).collect::<Vec<_>>();
    let shapes: [&[i64]; 2] = [&[64, 33], &[129]];
    assert_eq!(bits(fused(&shapes)), bits(fused(&shapes)));
}

#[test]
fn lists_that_do_not_match_are_refused() {
    let one = [Tensor::from(1.0_f32)];
    let step = [Tensor::from(0.0_f32)];
    let missing = [Tensor::new()];
    let state =
        AdamWState { parameters: &one, gradients: &missing, exp_avg: &one, exp_avg_sq: &one, steps: &step };
    assert!(matches!(fused_adamw(&state, &OPTIONS), Err(Error::Argument { .. })));
    let state = AdamWState { gradients: &[], ..state };
    assert!(matches!(fused_adamw(&state, &OPTIONS), Err(Error::Argument { .. })));
    let wide = [Tensor::zeros([2], (Kind::Float, Device::Cpu))];
    let state = AdamWState { gradients: &wide, ..state };
    assert!(matches!(fused_adamw(&state, &OPTIONS), Err(Error::Argument { .. })));
}

#[test]
fn deterministic_kernels_can_be_switched_on() {
    foil_torch::runtime::set_deterministic(true).unwrap();
    foil_torch::runtime::set_deterministic(false).unwrap();
}

/// On CPUs, results must be bitwise equal to those of earlier runs.
#[test]
fn norms_and_scaling_of_many_tensors_have_the_bits_of_each() {
    let tensors: Vec<Tensor> = [17, 4096, 3]
        .iter()
        .map(|&length| (Tensor::arange(length, (Kind::Float, Device::Cpu)) * 0.37).sin() * 3.1)
        .collect();
    let norms: Vec<Tensor> = tensors.iter().map(Tensor::norm).collect();
    assert!(global_norm(&tensors).unwrap().equal(&Tensor::stack(&norms, 0).norm()));
    let expected: Vec<Tensor> = tensors.iter().map(|tensor| tensor * 0.731).collect();
    scale(&tensors, 0.731).unwrap();
    assert!(tensors.iter().zip(&expected).all(|(scaled, expected)| scaled.equal(expected)));
}
