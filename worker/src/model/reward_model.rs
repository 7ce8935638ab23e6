//! A decoder with a scalar head.

use std::path::Path;

use tch::{Device, Tensor};

use super::decoder::{Decoder, linear};
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
        Self { config, parameters, decoder, device }
    }

    fn new(config: DecoderConfig, parameters: Parameters, device: Device) -> Self {
        let decoder = Decoder::new(&config, device);
        Self { config, parameters, decoder, device }
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

    /// Scores `[sequences]`, fp32: the head on the hidden state of each sequence's last token.
    ///
    /// # Errors
    /// What libtorch reports.
    ///
    /// # Panics
    /// A token id outside the vocabulary; memory that runs out.
    pub fn scores(&self, batch: &PackedBatch, precision: Precision) -> Result<Tensor, ModelError> {
        let weights = self.decoder.cast(&self.parameters, precision);
        let last = self.decoder.residual(&weights, batch, &batch.last_rows())?;
        let hidden = self.decoder.finish_fp32(&weights, &last)?; // [sequences, hidden]
        Ok(linear(&hidden, self.head(), None).squeeze_dim(1))
    }

    fn head(&self) -> &Tensor {
        match self.parameters.get(SCORE) {
            Some(head) => head,
            None => unreachable!("a reward model was built without its parameter {SCORE}"),
        }
    }

    /// A deep copy, without gradients.
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
