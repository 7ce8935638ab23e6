//! Runs decoding steps and samples their tokens: on the host, or on the device without the host.

use foil_torch::runtime::uses_cpu_kernels;
use tch::Tensor;

use super::device_runner::DeviceRunner;
use super::host_runner::HostRunner;
use super::sequence::Active;
use super::{GenerateError, GenerationConfig, Token};
use crate::model::{Inference, KvCache};

/// Decodes the active sequences. Sequence i occupies slot i of the cache.
pub(super) trait Runner {
    /// Samples the first token of each sequence of `new`, which follow the active ones. `hidden`:
    /// `[sequences, hidden]`, after their prompts.
    ///
    /// Returns the tokens, or none if the next step returns them.
    fn start(&mut self, new: &[Active<'_>], hidden: &Tensor) -> Result<Vec<Token>, GenerateError>;

    /// Samples a token for each active sequence, and returns the oldest one that has not been returned.
    fn step(&mut self, active: &[Active<'_>], cache: &mut KvCache) -> Result<Vec<Token>, GenerateError>;

    /// Keeps some of the active sequences: sequence i is what `kept[i]` was.
    fn keep(&mut self, kept: &[usize]) -> Result<(), GenerateError>;
}

/// The runner for a model's device, with a cache of `capacity` tokens per slot.
pub(super) fn runner<'a>(
    model: &'a Inference<'a>,
    config: &'a GenerationConfig<'a>,
    capacity: usize,
) -> Result<Box<dyn Runner + 'a>, GenerateError> {
    Ok(match uses_cpu_kernels(model.device()) {
        true => Box::new(HostRunner::new(model, config)),
        false => Box::new(DeviceRunner::new(model, config, capacity)?),
    })
}
