use foil_proto::v1;

use super::SpecError;
use super::check::{Range, count, path, real, size, wire_size};
use super::choice::choices;

/// AdamW and the settings around its step.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub decay: Decay,
    /// Global gradient norm; `None` does not clip.
    pub max_grad_norm: Option<f64>,
    /// Tokens per micro-batch and rank, padding counted.
    pub micro_batch_tokens: usize,
    pub on_nonfinite: OnNonfinite,
}

choices! {
    /// The parameters that decay.
    Decay:
    /// Those with two dimensions, except embeddings.
    #[default]
    Matrices = "matrices",
    All = "all",
}

choices! {
    /// The reaction to a non-finite loss or gradient.
    OnNonfinite:
    #[default]
    Fail = "fail",
    Skip = "skip",
}

impl Optimizer {
    pub(crate) fn parse(at: &str, wire: &v1::OptimizerSpec) -> Result<Self, SpecError> {
        let at = &path(at, "optimizer");
        let (beta1, beta2) = match wire.betas.as_slice() {
            [] => (0.9, 0.999),
            [beta1, beta2] => (*beta1, *beta2),
            other => {
                return Err(SpecError::field(
                    &path(at, "betas"),
                    format!("{} numbers", other.len()),
                    "two numbers",
                ));
            }
        };
        let clip = real(at, "max_grad_norm", wire.max_grad_norm, 1.0, Range::NonNegative)?;
        Ok(Self {
            beta1: real(at, "betas", Some(beta1), 0.9, Range::BelowOne)?,
            beta2: real(at, "betas", Some(beta2), 0.999, Range::BelowOne)?,
            eps: real(at, "eps", wire.eps, 1e-8, Range::Positive)?,
            weight_decay: real(at, "weight_decay", wire.weight_decay, 0.0, Range::NonNegative)?,
            decay: Decay::parse(at, "decay", &wire.decay)?,
            max_grad_norm: (clip > 0.0).then_some(clip),
            micro_batch_tokens: size(at, "micro_batch_tokens", wire.micro_batch_tokens, 8192, 1)?,
            on_nonfinite: OnNonfinite::parse(at, "on_nonfinite", &wire.on_nonfinite)?,
        })
    }
}

impl From<&Optimizer> for v1::OptimizerSpec {
    fn from(optimizer: &Optimizer) -> Self {
        Self {
            betas: vec![optimizer.beta1, optimizer.beta2],
            eps: Some(optimizer.eps),
            weight_decay: Some(optimizer.weight_decay),
            decay: optimizer.decay.to_string(),
            max_grad_norm: Some(optimizer.max_grad_norm.unwrap_or(0.0)),
            micro_batch_tokens: Some(wire_size(optimizer.micro_batch_tokens)),
            on_nonfinite: optimizer.on_nonfinite.to_string(),
        }
    }
}

/// The learning rate over a phase's steps, as a factor of its peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub warmup_steps: u32,
    /// The factor at the last step; not used by `Constant`.
    pub min_lr_ratio: f64,
}

choices! {
    ScheduleKind:
    Constant = "constant",
    #[default]
    Linear = "linear",
    Cosine = "cosine",
}

impl Schedule {
    /// The factor at `step` (from 1) of `steps`. The warm-up rises linearly and reaches 1 at its last step;
    /// the decay then runs from 1 to `min_lr_ratio`, which the last step takes.
    ///
    /// A warm-up longer than the phase never reaches the peak.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let warmup = u64::from(self.warmup_steps);
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        // The last warm-up step (or the first step, without one) is at the peak.
        let peak = warmup.max(1);
        let span = steps.saturating_sub(peak);
        let progress = if span == 0 { 0.0 } else { (step - peak) as f64 / span as f64 }.min(1.0);
        let kept = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.min_lr_ratio + (1.0 - self.min_lr_ratio) * kept
    }

    pub(crate) fn parse(at: &str, wire: &v1::ScheduleSpec) -> Result<Self, SpecError> {
        let at = &path(at, "schedule");
        Ok(Self {
            kind: ScheduleKind::parse(at, "kind", &wire.kind)?,
            warmup_steps: count(at, "warmup_steps", wire.warmup_steps, 0, 0)?,
            min_lr_ratio: real(at, "min_lr_ratio", wire.min_lr_ratio, 0.1, Range::Unit)?,
        })
    }
}

impl From<&Schedule> for v1::ScheduleSpec {
    fn from(schedule: &Schedule) -> Self {
        Self {
            kind: schedule.kind.to_string(),
            warmup_steps: Some(schedule.warmup_steps),
            min_lr_ratio: Some(schedule.min_lr_ratio),
        }
    }
}
