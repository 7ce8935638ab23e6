//! A decoder with its parameters and adapters, under either head.

use std::marker::PhantomData;
use std::path::Path;

use foil_common::spec::Lora;
use foil_common::text::TokenIds;
use tch::{Device, Tensor};

use super::adapter::Adapter;
use super::decoder::{Decoder, Weights};
use super::layer::Plain;
use super::{DecoderConfig, HeadKind, ModelError, Parameters, Precision};

/// What is particular to a head.
pub trait Head {
    const KIND: HeadKind;

    /// The head's matrix where training moves it as a whole, also beside adapters.
    fn trained_whole(parameters: &Parameters) -> Option<&Tensor>;
}

/// A decoder whose hidden states are read by a head `H`: see [`LanguageModel`](super::LanguageModel) and
/// [`RewardModel`](super::RewardModel).
#[derive(Debug)]
pub struct Model<H> {
    pub(super) config: DecoderConfig,
    pub(super) parameters: Parameters,
    adapter: Option<Adapter>,
    pub(super) decoder: Decoder,
    pub(super) device: Device,
    head: PhantomData<H>,
}

impl<H: Head> Model<H> {
    /// Reads a Hugging Face directory of a model with this head.
    ///
    /// # Errors
    /// Anything in config.json or in the checkpoint that does not make this model, by name.
    pub fn load(dir: &Path, device: Device) -> Result<Self, ModelError> {
        let config = DecoderConfig::load(dir)?;
        let parameters = Parameters::load(dir, &config, H::KIND, device)?;
        Ok(Self::new(config, parameters, device))
    }

    pub(super) fn new(config: DecoderConfig, parameters: Parameters, device: Device) -> Self {
        let decoder = Decoder::new(&config, device);
        Self { config, parameters, adapter: None, decoder, device, head: PhantomData }
    }

    /// A deep copy of the parameters, without adapters and gradients.
    pub fn copy(&self) -> Self {
        Self::new(self.config.clone(), self.parameters.copy(), self.device)
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Sets what config.json will name as the tokens that begin, end and pad sequences.
    pub fn set_token_ids(&mut self, ids: &TokenIds) {
        self.config.bos_token_id = ids.bos;
        self.config.eos_token_ids.clone_from(&ids.eos);
        self.config.pad_token_id = ids.pad;
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether backward computes each layer's activations again instead of keeping them.
    #[must_use]
    pub fn with_checkpointing(mut self, on: bool) -> Self {
        self.decoder.checkpointing = on;
        self
    }

    /// Puts fresh low-rank adapters beside the matrices, drawn from `(seed, round)`: from here on only those are
    /// [trainable](Self::trainable), with a head that is trained whole.
    pub fn adapt(&mut self, lora: &Lora, draw: (u64, u32)) {
        let head = H::trained_whole(&self.parameters);
        self.set_adapter(Adapter::fresh(&self.config, lora, draw, head, self.device));
    }

    /// Puts `adapter`, which is this model's, beside the matrices, and takes over the head that came with it.
    pub fn set_adapter(&mut self, adapter: Adapter) {
        self.parameters.set_requires_grad(false);
        self.adapter = Some(match H::trained_whole(&self.parameters) {
            Some(head) => adapter.with_head_in(head),
            None => adapter,
        });
    }

    /// What training moves: all parameters, or those of the adapters.
    pub fn trainable(&self) -> &Parameters {
        self.adapter.as_ref().map_or(&self.parameters, Adapter::parameters)
    }

    /// Makes the adapters, where there are any, part of the matrices.
    pub fn merge(&mut self) -> Option<Adapter> {
        let adapter = self.adapter.take()?;
        adapter.parameters().set_requires_grad(false);
        adapter.merge_into(&self.parameters);
        Some(adapter)
    }

    /// The decoder's weights in the kind that its matrix products have, with adapters.
    pub(super) fn weights(&self, precision: Precision) -> Weights<Plain> {
        self.decoder.cast(&self.parameters, self.adapter.as_ref(), precision)
    }

    /// The parameter called `name`, which every model of this head has.
    pub(super) fn expect(&self, name: &str) -> &Tensor {
        match self.parameters.get(name) {
            Some(tensor) => tensor,
            None => unreachable!("a model was built without its parameter {name}"),
        }
    }
}
