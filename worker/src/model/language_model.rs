//! A decoder with a language-model head.

use std::path::Path;

use foil_common::spec::Lora;
use tch::{Device, Tensor};

use super::adapter::Adapter;
use super::decoder::Decoder;
use super::layer::linear;
use super::{DecoderConfig, HeadKind, Inference, ModelError, PackedBatch, Parameters, Precision, SaveDtype};

/// A decoder whose hidden states are turned into logits over the vocabulary.
#[derive(Debug)]
pub struct LanguageModel {
    config: DecoderConfig,
    parameters: Parameters,
    adapter: Option<Adapter>,
    decoder: Decoder,
    device: Device,
}

impl LanguageModel {
    /// Reads a Hugging Face directory of a `…ForCausalLM` model.
    ///
    /// # Errors
    /// Anything in config.json or in the checkpoint that does not make this model, by name.
    pub fn load(dir: &Path, device: Device) -> Result<Self, ModelError> {
        let config = DecoderConfig::load(dir)?;
        let parameters = Parameters::load(dir, &config, HeadKind::LanguageModel, device)?;
        Ok(Self::new(config, parameters, device))
    }

    /// Fresh weights for the config.json in `config_dir`; the same seed gives the same model.
    ///
    /// # Errors
    /// Anything in config.json that does not make a model, by name.
    pub fn random(config_dir: &Path, seed: u64, device: Device) -> Result<Self, ModelError> {
        Ok(Self::from_config(&DecoderConfig::load(config_dir)?, seed, device))
    }

    /// Fresh weights for a configuration at hand.
    pub fn from_config(config: &DecoderConfig, seed: u64, device: Device) -> Self {
        let parameters = Parameters::random(config, HeadKind::LanguageModel, seed, device);
        Self::new(config.clone(), parameters, device)
    }

    fn new(config: DecoderConfig, parameters: Parameters, device: Device) -> Self {
        let decoder = Decoder::new(&config, device);
        Self { config, parameters, adapter: None, decoder, device }
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Puts fresh low-rank adapters beside the matrices, drawn from `(seed, round)`: from here on only those are
    /// [trainable](Self::trainable).
    pub fn adapt(&mut self, lora: &Lora, draw: (u64, u32)) {
        self.set_adapter(Adapter::fresh(&self.config, lora, draw, None, self.device));
    }

    /// Puts `adapter`, which is this model's, beside the matrices.
    pub fn set_adapter(&mut self, adapter: Adapter) {
        self.parameters.set_requires_grad(false);
        self.adapter = Some(adapter);
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

    /// Whether backward computes each layer's activations again instead of keeping them.
    #[must_use]
    pub fn with_checkpointing(mut self, on: bool) -> Self {
        self.decoder.checkpointing = on;
        self
    }

    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    pub(super) fn into_parts(self) -> (DecoderConfig, Parameters, Decoder, Device) {
        (self.config, self.parameters, self.decoder, self.device)
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Hidden states after the final norm at the rows `read` (`[n]`, int64) of a packed batch: `[n, hidden]`, in the
    /// kind of `precision`.
    ///
    /// # Errors
    /// What libtorch reports.
    ///
    /// # Panics
    /// A token id outside the vocabulary; memory that runs out.
    pub fn forward(
        &self,
        batch: &PackedBatch,
        read: &Tensor,
        precision: Precision,
    ) -> Result<Tensor, ModelError> {
        let weights = self.decoder.cast(&self.parameters, self.adapter.as_ref(), precision);
        let residual = self.decoder.residual(&weights, batch, read)?;
        self.decoder.finish(&weights, &residual)
    }

    /// `[.., hidden]` → logits `[.., vocab]`, in the kind of `hidden`: let log-softmax convert them to fp32.
    ///
    /// Pick the positions that a loss reads before, not after: the head is a large part of a small model's work.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        linear(hidden, &self.head().to_kind(hidden.kind()), None)
    }

    /// The head's matrix `[vocab, hidden]`, its own or the embeddings.
    pub fn head(&self) -> &Tensor {
        let name = if self.config.tied_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        match self.parameters.get(name) {
            Some(head) => head,
            None => unreachable!("a model was built without its parameter {name}"),
        }
    }

    /// Makes ready for generation of about `rows` sequences together: no gradients, weights cast and laid out once.
    ///
    /// # Errors
    /// What libtorch reports.
    pub fn inference(&self, precision: Precision, rows: usize) -> Result<Inference<'_>, ModelError> {
        Inference::new(self, precision, rows)
    }

    /// A deep copy of the parameters, without adapters and gradients.
    pub fn copy(&self) -> Self {
        Self::new(self.config.clone(), self.parameters.copy(), self.device)
    }

    /// Writes config.json and model.safetensors into `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, dir: &Path, dtype: SaveDtype) -> Result<(), ModelError> {
        std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        self.parameters.save(dir, dtype)?;
        self.config.save(dir, HeadKind::LanguageModel, dtype)
    }
}
