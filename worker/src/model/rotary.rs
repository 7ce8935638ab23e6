//! Rotary position embeddings (Su et al., arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints.

use std::sync::{Mutex, PoisonError};

use foil_torch::ops::RotaryAngles;
use tch::{Device, Kind, Tensor};

use super::{RopeConfig, RopeScaling};

/// Tables of cosines and sines, grown as longer sequences come.
#[derive(Debug)]
pub(super) struct Rotary {
    /// `[head_dim / 2]`, radians per position.
    frequencies: Tensor,
    /// Cosines and sines, `[positions, head_dim / 2]` each.
    table: Mutex<(Tensor, Tensor)>,
}

impl Rotary {
    pub(super) fn new(rope: &RopeConfig, head_dim: i64, device: Device) -> Self {
        let frequencies = Tensor::from_slice(&frequencies(rope, head_dim)).to_device(device);
        let table = Mutex::new(tables(&frequencies, 0));
        Self { frequencies, table }
    }

    /// For one position per row, all below `end`.
    pub(super) fn at(&self, positions: &Tensor, end: usize) -> RotaryAngles {
        let (cos, sin) = self.upto(end as i64);
        RotaryAngles { cos: cos.index_select(0, positions), sin: sin.index_select(0, positions) }
    }

    fn upto(&self, positions: i64) -> (Tensor, Tensor) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let have = table.0.size().first().copied().unwrap_or(0);
        if have < positions {
            *table = tables(&self.frequencies, (positions as u64).next_power_of_two() as i64);
        }
        (table.0.shallow_clone(), table.1.shallow_clone())
    }
}

fn tables(frequencies: &Tensor, positions: i64) -> (Tensor, Tensor) {
    tch::no_grad(|| {
        let steps = Tensor::arange(positions, (Kind::Float, frequencies.device()));
        let angles = steps.outer(frequencies);
        (angles.cos(), angles.sin())
    })
}

/// Radians per position of every pair, in fp32 throughout as in transformers: at position 10,000 an ulp of frequency
/// is a visible angle.
fn frequencies(rope: &RopeConfig, head_dim: i64) -> Vec<f32> {
    let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) / head_dim as f64;
    let plain = Tensor::pow_scalar(rope.theta, &exponents).reciprocal();
    let mut frequencies = vec![0.0_f32; plain.numel()];
    plain.copy_data(&mut frequencies, plain.numel());
    for frequency in &mut frequencies {
        *frequency = scaled(*frequency, &rope.scaling);
    }
    frequencies
}

fn scaled(frequency: f32, scaling: &RopeScaling) -> f32 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            let context = original_max_positions as f32;
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength > context / low {
                return frequency / factor;
            }
            if wavelength < context / high {
                return frequency;
            }
            let ramp = (context / wavelength - low) / (high - low);
            (1.0 - ramp) * frequency / factor + ramp * frequency
        }
    }
}
