//! A model: a decoder, its parameters, an adapter and a head of either kind.

use std::marker::PhantomData;
use std::path::Path;

use foil_common::spec::Lora;
use foil_common::text::TokenIds;
use tch::{Device, Tensor};

use super::adapter::Adapter;
use super::decoder::{Decoder, Weights};
use super::layer::Linear;
use super::{DecoderConfig, HeadKind, Holding, ModelError, Parameters, Precision};

/// A kind of head.
pub trait Head {
    const KIND: HeadKind;

    /// The head's matrix if it is trained in full even with LoRA (PEFT's `modules_to_save`).
    fn trainable_head(parameters: &Parameters) -> Option<&Tensor>;
}

/// A decoder with a head `H`: see [`LanguageModel`](super::LanguageModel) and
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
    /// Reads the Hugging Face directory of a model with this head.
    ///
    /// # Errors
    /// Anything in config.json or in the checkpoint that does not make this model, by name.
    pub fn load(dir: &Path, device: Device) -> Result<Self, ModelError> {
        Self::load_held(dir, device, Holding::Masters)
    }

    /// Like [`Self::load`], with `holding` for the parameters.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_held(dir: &Path, device: Device, holding: Holding) -> Result<Self, ModelError> {
        let config = DecoderConfig::load(dir)?;
        let parameters = Parameters::load(dir, &config, H::KIND, (device, holding))?;
        Ok(Self::new(config, parameters, device))
    }

    pub(super) fn new(config: DecoderConfig, parameters: Parameters, device: Device) -> Self {
        let mut decoder = Decoder::new(&config, device);
        decoder.shards = parameters.shards().and_then(|shards| shards.decoder(config.layers));
        Self { config, parameters, adapter: None, decoder, device, head: PhantomData }
    }

    /// A deep copy of the parameters, without adapters and gradients.
    pub fn copy(&self) -> Self {
        Self::new(self.config.clone(), self.parameters.copy(), self.device)
    }

    /// The same parameters with the configuration in `dir`, to which they were saved: equal to the model that
    /// loading `dir` returns.
    ///
    /// # Errors
    /// Anything in config.json that does not make a model, by name.
    pub fn reopened(self, dir: &Path) -> Result<Self, ModelError> {
        Ok(Self::new(DecoderConfig::load(dir)?, self.parameters, self.device))
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Sets the BOS, EOS and padding ids to write to config.json.
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

    /// Sets whether the backward pass recomputes each layer's activations instead of keeping them.
    #[must_use]
    pub fn with_checkpointing(mut self, on: bool) -> Self {
        self.decoder.checkpointing = on;
        self
    }

    /// Adds a fresh LoRA adapter, initialized from `(seed, round)`. Afterwards only the adapter and a reward
    /// model's head are [trainable](Self::trainable).
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn add_lora(&mut self, lora: &Lora, seed_and_round: (u64, u32)) -> Result<(), ModelError> {
        let head = H::trainable_head(&self.parameters).map(Tensor::shallow_clone);
        let adapter =
            Adapter::new(&self.config, lora, seed_and_round, (&mut self.parameters, head), self.device)?;
        self.parameters.set_requires_grad(false);
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Attaches `adapter`, which must fit this model, and adopts the head that came with it.
    pub fn set_adapter(&mut self, adapter: Adapter) {
        self.parameters.set_requires_grad(false);
        self.adapter = Some(match H::trainable_head(&self.parameters) {
            Some(head) => adapter.with_shared_head(head),
            None => adapter,
        });
    }

    /// The parameters that training updates: all of them, or those of the adapter.
    pub fn trainable(&self) -> &Parameters {
        self.adapter.as_ref().map_or(&self.parameters, Adapter::parameters)
    }

    /// Merges the adapter, if any, into the weights and returns it. All ranks that hold shards must call it
    /// together.
    ///
    /// # Errors
    /// A rank fails.
    pub fn merge(&mut self) -> Result<Option<Adapter>, ModelError> {
        let Some(adapter) = self.adapter.take() else { return Ok(None) };
        adapter.parameters().set_requires_grad(false);
        let adapter = adapter.gathered()?;
        adapter.merge_into(&self.parameters)?;
        Ok(Some(adapter))
    }

    /// The decoder's weights in `precision`, including the adapter.
    pub(super) fn weights(&self, precision: Precision) -> Result<Weights<Linear>, ModelError> {
        if let Some(shards) = self.parameters.shards() {
            shards.store().gather_residents()?;
        }
        Ok(self.decoder.weights(&self.parameters, self.adapter.as_ref(), precision))
    }

    /// The parameter called `name`, which every model with this head has.
    pub(super) fn parameter(&self, name: &str) -> &Tensor {
        match self.parameters.get(name) {
            Some(tensor) => tensor,
            None => unreachable!("a model was built without its parameter {name}"),
        }
    }
}
