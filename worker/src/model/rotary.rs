//! Rotary position embeddings (Su et al., arXiv 2104.09864) in the half-split layout of Hugging Face
//! checkpoints.

use std::sync::{Mutex, PoisonError};

use foil_torch::ops::RotaryAngles;
use foil_torch::runtime::uses_cpu_kernels;
use tch::{Device, Kind, Tensor};

use super::{RopeConfig, RopeScaling};

/// A table of cosines and sines that grows with the longest sequence.
#[derive(Debug)]
pub(super) struct RotaryEmbedding {
    /// `[head_dim / 2]`, radians per position.
    inv_freq: Tensor,
    /// Cosines and sines of all positions, in the layout of [`RotaryAngles`].
    cos_sin: Mutex<(Tensor, Tensor)>,
}

impl RotaryEmbedding {
    pub(super) fn new(rope: &RopeConfig, head_dim: i64, device: Device) -> Self {
        let inv_freq = Tensor::from_slice(&inv_freq(rope, head_dim)).to_device(device);
        let cos_sin = Mutex::new(cos_sin_table(&inv_freq, 0));
        Self { inv_freq, cos_sin }
    }

    /// The angles of one position per row, all below `max_len`.
    pub(super) fn angles(&self, positions: &Tensor, max_len: usize) -> RotaryAngles {
        let (cos, sin) = self.cos_sin(max_len as i64);
        RotaryAngles { cos: cos.index_select(0, positions), sin: sin.index_select(0, positions) }
    }

    /// Extends the table to positions below `max_len`.
    pub(super) fn reserve(&self, max_len: usize) {
        let _ = self.cos_sin(max_len as i64);
    }

    fn cos_sin(&self, max_len: i64) -> (Tensor, Tensor) {
        let mut table = self.cos_sin.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = table.0.size().first().copied().unwrap_or(0);
        if cached < max_len {
            *table = cos_sin_table(&self.inv_freq, (max_len as u64).next_power_of_two() as i64);
        }
        (table.0.shallow_clone(), table.1.shallow_clone())
    }
}

fn cos_sin_table(inv_freq: &Tensor, max_len: i64) -> (Tensor, Tensor) {
    tch::no_grad(|| {
        let positions = Tensor::arange(max_len, (Kind::Float, inv_freq.device()));
        let angles = positions.outer(inv_freq);
        let (cos, sin) = (angles.cos(), angles.sin());
        match uses_cpu_kernels(inv_freq.device()) {
            true => (cos, sin),
            false => (cos, Tensor::stack(&[sin.neg(), sin], 1)),
        }
    })
}

/// Radians per position of each pair of dimensions, in fp32 throughout as in transformers: at position 10,000
/// one ulp of a frequency is a visible angle.
fn inv_freq(rope: &RopeConfig, head_dim: i64) -> Vec<f32> {
    let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) / head_dim as f64;
    let unscaled = Tensor::pow_scalar(rope.theta, &exponents).reciprocal();
    let mut inv_freq = vec![0.0_f32; unscaled.numel()];
    unscaled.copy_data(&mut inv_freq, unscaled.numel());
    for frequency in &mut inv_freq {
        *frequency = scale_frequency(*frequency, &rope.scaling);
    }
    inv_freq
}

fn scale_frequency(frequency: f32, scaling: &RopeScaling) -> f32 {
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
