//! AdamW and gradient clipping.

use foil_common::spec::{Decay, Optimizer};
use tch::{Kind, Tensor, no_grad};

use super::TrainError;
use super::checkpoint::{MEAN, SQUARE};

/// AdamW (Loshchilov and Hutter 2019) with decoupled weight decay on some of the parameters; moments in fp32.
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    groups: Vec<Group>,
}

/// Parameters that share a weight decay, in the order given.
struct Group {
    weight_decay: f64,
    /// The index of each parameter among all of the optimizer's parameters.
    numbers: Vec<usize>,
    parameters: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl AdamW {
    /// Creates the optimizer. Each of `parameters` is paired with whether it decays.
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a Tensor, bool)>, settings: &Optimizer) -> Self {
        let mut groups = [Group::new(settings.weight_decay), Group::new(0.0)];
        for (number, (parameter, decays)) in parameters.into_iter().enumerate() {
            groups[usize::from(!decays)].add(number, parameter);
        }
        Self {
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.eps,
            groups: groups.into_iter().filter(|group| !group.parameters.is_empty()).collect(),
        }
    }

    /// Updates the parameters in place. `gradients` are in the order of [`AdamW::new`]'s parameters.
    ///
    /// # Errors
    /// A gradient is missing or has another shape.
    pub fn step(&mut self, gradients: &[Tensor], learning_rate: f64) -> Result<(), TrainError> {
        for group in &self.groups {
            let gradients: Vec<Tensor> =
                group.numbers.iter().map(|&number| gradients[number].shallow_clone()).collect();
            let state = foil_torch::ops::AdamWState {
                parameters: &group.parameters,
                gradients: &gradients,
                exp_avg: &group.exp_avg,
                exp_avg_sq: &group.exp_avg_sq,
                steps: &group.steps,
            };
            let options = foil_torch::AdamW {
                learning_rate,
                beta1: self.beta1,
                beta2: self.beta2,
                epsilon: self.epsilon,
                weight_decay: group.weight_decay,
            };
            no_grad(|| foil_torch::ops::fused_adamw(&state, &options))?;
        }
        Ok(())
    }

    /// Number of updates taken so far.
    pub(super) fn updates(&self) -> u64 {
        let steps = self.groups.first().and_then(|group| group.steps.first());
        steps.map_or(0, |steps| steps.double_value(&[]) as u64)
    }

    /// The index of each parameter with its first and second moments, which share storage.
    pub(super) fn state(&self) -> impl Iterator<Item = (usize, [&Tensor; 2])> {
        self.groups.iter().flat_map(|group| {
            let moments = group.exp_avg.iter().zip(&group.exp_avg_sq);
            group.numbers.iter().copied().zip(moments.map(|(mean, square)| [mean, square]))
        })
    }

    /// Restores the state after `updates`; `moments` returns the moments of the parameter with a given index.
    ///
    /// # Errors
    /// Those of `moments`.
    pub(super) fn restore<E>(
        &mut self,
        updates: u64,
        mut moments: impl FnMut(usize) -> Result<[Tensor; 2], E>,
    ) -> Result<(), E> {
        for group in &mut self.groups {
            for (index, &number) in group.numbers.iter().enumerate() {
                let [mean, square] = moments(number)?;
                no_grad(|| {
                    group.exp_avg[index].copy_(&mean);
                    group.exp_avg_sq[index].copy_(&square);
                    let _ = group.steps[index].fill_(updates as f64);
                });
            }
        }
        Ok(())
    }

    /// First and second moments, in the order of [`AdamW::new`]'s parameters: first those that decay, then
    /// those that do not.
    #[cfg(test)]
    pub(super) fn moments(&self) -> impl Iterator<Item = (&Tensor, &Tensor)> {
        self.groups.iter().flat_map(|group| group.exp_avg.iter().zip(&group.exp_avg_sq))
    }
}

/// A parameter's moments with their names in a checkpoint.
pub(super) fn by_name<'t>(name: &str, [mean, square]: [&'t Tensor; 2]) -> [(String, &'t Tensor); 2] {
    [(format!("{MEAN}{name}"), mean), (format!("{SQUARE}{name}"), square)]
}

impl Group {
    fn new(weight_decay: f64) -> Self {
        Self {
            weight_decay,
            numbers: Vec::new(),
            parameters: Vec::new(),
            exp_avg: Vec::new(),
            exp_avg_sq: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn add(&mut self, number: usize, parameter: &Tensor) {
        let zeros = || no_grad(|| parameter.detach().zeros_like());
        self.numbers.push(number);
        self.exp_avg.push(zeros());
        self.exp_avg_sq.push(zeros());
        self.steps.push(Tensor::zeros([], (Kind::Float, parameter.device())));
        self.parameters.push(parameter.shallow_clone());
    }
}

/// Whether a parameter of this name decays.
pub(super) fn decays(decay: Decay, name: &str, parameter: &Tensor) -> bool {
    match decay {
        Decay::All => true,
        Decay::Matrices => parameter.dim() == 2 && !name.contains("embed"),
    }
}

/// The norm of all gradients as one vector: a scalar, fp32.
pub(super) fn global_norm(gradients: &[Tensor]) -> Result<Tensor, TrainError> {
    Ok(foil_torch::ops::global_norm(gradients)?)
}

/// Clips gradients of global norm `norm` to `limit` like `torch.nn.utils.clip_grad_norm_`: scales them by
/// limit / (norm + 1e-6) if that is below 1.
pub(super) fn clip(gradients: &[Tensor], norm: f64, limit: f64) -> Result<(), TrainError> {
    let coefficient = limit / (norm + 1e-6);
    if coefficient < 1.0 { Ok(foil_torch::ops::scale(gradients, coefficient)?) } else { Ok(()) }
}
