//! Pairs of completions to one prompt, by their rewards.

pub use foil_common::selection::{Preference, pairs};
use tch::{Device, Tensor};

/// The two sides of pairs, as indices on the policy's device. They are created once, since a copy from the
/// host in every step would wait for the device.
#[derive(Debug)]
pub struct Sides {
    /// `[pairs]`, int64, like `rejected`.
    chosen: Tensor,
    rejected: Tensor,
}

impl Sides {
    pub fn new(pairs: &[Preference], device: Device) -> Self {
        let side = |index: fn(&Preference) -> usize| {
            let indices: Vec<i64> = pairs.iter().map(|pair| index(pair) as i64).collect();
            Tensor::from_slice(&indices).to_device(device)
        };
        Self { chosen: side(|pair| pair.chosen), rejected: side(|pair| pair.rejected) }
    }

    /// Selects from a value for each completion, `[completions]`, the values of the pairs' chosen and
    /// rejected completions, `[pairs]` each.
    ///
    /// # Panics
    /// An index beyond the completions.
    pub fn of(&self, values: &Tensor) -> (Tensor, Tensor) {
        (values.index_select(0, &self.chosen), values.index_select(0, &self.rejected))
    }
}
