//! A decoder with a scalar head.

use std::path::Path;

use foil_common::spec::Lora;
use tch::{Device, Tensor};

use super::adapter::Adapter;
use super::decoder::Decoder;
use super::layer::linear;
use super::parameters::SCORE;
use super::{
    DecoderConfig, HeadKind, LanguageModel, ModelError, PackedBatch, Parameters, Precision, SaveDtype,
};

/// A decoder that gives one score per sequence, read at its last real token.
///
/// The same as transformers' `…ForSequenceClassification` with one label, except that the last token is known by
/// length. transformers looks for the last token that is not `pad_token_id`, hence the care in [`RewardModel::save`].
#[derive(Debug)]
pub struct RewardModel {
    config: DecoderConfig,
    parameters: Parameters,
    adapter: Option<Adapter>,
    decoder: Decoder,
    device: Device,
}

impl RewardModel {
    /// Reads a Hugging Face directory of a `…ForSequenceClassification` model with one label.
    ///
    /// # Errors
    /// Anything in config.json or in the checkpoint that does not make this model, by name.
    pub fn load(dir: &Path, device: Device) -> Result<Self, ModelError> {
        let config = DecoderConfig::load(dir)?;
        let parameters = Parameters::load(dir, &config, HeadKind::Reward, device)?;
        Ok(Self::new(config, parameters, device))
    }

    /// Reads a `…ForCausalLM` directory and puts a fresh head on it: N(0, 0.1/√hidden), drawn from `seed`.
    ///
    /// # Errors
    /// Anything in config.json or in the checkpoint that does not make a language model, by name.
    pub fn from_language_model(dir: &Path, seed: u64, device: Device) -> Result<Self, ModelError> {
        Ok(Self::with_fresh_head(LanguageModel::load(dir, device)?, seed))
    }

    /// Takes over a language model's decoder, with a fresh head drawn from `seed`.
    pub fn with_fresh_head(model: LanguageModel, seed: u64) -> Self {
        let (config, parameters, decoder, device) = model.into_parts();
        let parameters = parameters.with_fresh_head(&config, seed);
        Self { config, parameters, adapter: None, decoder, device }
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

    pub fn device(&self) -> Device {
        self.device
    }

    /// Puts fresh low-rank adapters beside the matrices, drawn from `(seed, round)`: from here on only those are
    /// [trainable](Self::trainable), with the head.
    pub fn adapt(&mut self, lora: &Lora, draw: (u64, u32)) {
        self.set_adapter(Adapter::fresh(&self.config, lora, draw, Some(self.head()), self.device));
    }

    /// Puts `adapter`, which is this model's, beside the matrices, and takes over its head.
    pub fn set_adapter(&mut self, adapter: Adapter) {
        self.parameters.set_requires_grad(false);
        self.adapter = Some(adapter.with_head_in(self.head()));
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

    /// Scores `[sequences]`, fp32: the head on the hidden state of each sequence's last token.
    ///
    /// # Errors
    /// What libtorch reports.
    ///
    /// # Panics
    /// A token id outside the vocabulary; memory that runs out.
    pub fn scores(&self, batch: &PackedBatch, precision: Precision) -> Result<Tensor, ModelError> {
        let weights = self.decoder.cast(&self.parameters, self.adapter.as_ref(), precision);
        let last = self.decoder.residual(&weights, batch, &batch.last_rows())?;
        let hidden = self.decoder.finish_fp32(&weights, &last)?; // [sequences, hidden]
        Ok(linear(&hidden, self.head(), None).squeeze_dim(1))
    }

    /// Moves the head's weights into [−`bound`, `bound`], in place. Call it without gradients.
    pub fn bound_head(&self, bound: f64) {
        let _ = self.head().shallow_clone().clamp_(-bound, bound);
    }

    fn head(&self) -> &Tensor {
        match self.parameters.get(SCORE) {
            Some(head) => head,
            None => unreachable!("a reward model was built without its parameter {SCORE}"),
        }
    }

    /// A deep copy of the parameters, without adapters and gradients.
    pub fn copy(&self) -> Self {
        Self::new(self.config.clone(), self.parameters.copy(), self.device)
    }

    /// Writes config.json and model.safetensors into `dir`, which is made where it is missing.
    ///
    /// `pad` is written as `pad_token_id`. transformers scores a row at its last token other than that one, so it has to
    /// be an id that never occurs in a text.
    ///
    /// # Errors
    /// `pad` is outside the vocabulary, or ends or begins texts; the directory cannot be written.
    pub fn save(&self, dir: &Path, dtype: SaveDtype, pad: u32) -> Result<(), ModelError> {
        let wrong = |reason: &str| Err(ModelError::Pad { pad, reason: reason.to_owned() });
        if i64::from(pad) >= self.config.vocab_size {
            return wrong("it is outside the vocabulary; choose an unused id inside it");
        }
        if self.config.eos_token_ids.contains(&pad) {
            return wrong(
                "it is also an end-of-text token, so transformers would score before it; choose an unused id",
            );
        }
        if self.config.bos_token_id == Some(pad) {
            return wrong("it is also the begin-of-text token; choose an unused id");
        }
        std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        self.parameters.save(dir, dtype)?;
        let config = DecoderConfig { pad_token_id: Some(pad), ..self.config.clone() };
        config.save(dir, HeadKind::Reward, dtype)
    }
}
