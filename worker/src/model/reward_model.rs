//! A decoder with a scalar head.

use std::path::Path;

use tch::{Device, Tensor};

use super::head::{Head, Model};
use super::layer::linear;
use super::parameters::SCORE;
use super::{
    DecoderConfig, HeadKind, Holding, LanguageModel, ModelError, PackedBatch, Parameters, Precision,
    SaveDtype, SavedWeights, Sink,
};

/// A decoder that computes one score per sequence, at its last token: `…ForSequenceClassification` with one
/// label.
///
/// Equal to transformers' class, except that the last token is determined by length. transformers looks for
/// the last token that is not `pad_token_id`; see [`RewardModel::save`].
pub type RewardModel = Model<ScoreHead>;

/// The head of a [`RewardModel`].
#[derive(Debug)]
pub struct ScoreHead;

impl Head for ScoreHead {
    const KIND: HeadKind = HeadKind::Reward;

    fn trainable_head(parameters: &Parameters) -> Option<&Tensor> {
        parameters.get(SCORE)
    }
}

impl RewardModel {
    /// Reads a `…ForCausalLM` directory and adds a fresh head, N(0, 0.1/√hidden) from `seed`.
    ///
    /// # Errors
    /// Anything in config.json or in the checkpoint that does not make a language model, by name.
    pub fn from_language_model(dir: &Path, seed: u64, device: Device) -> Result<Self, ModelError> {
        Self::from_language_model_held(dir, seed, device, Holding::Masters)
    }

    /// Like [`RewardModel::from_language_model`], with `holding` for the parameters.
    ///
    /// # Errors
    /// As [`RewardModel::from_language_model`].
    pub fn from_language_model_held(
        dir: &Path,
        seed: u64,
        device: Device,
        holding: Holding,
    ) -> Result<Self, ModelError> {
        if let Holding::Shards(placement) = holding {
            let config = DecoderConfig::load(dir)?;
            let parameters = Parameters::load_with_fresh_head(dir, &config, seed, (device, placement))?;
            return Ok(Self::new(config, parameters, device));
        }
        Ok(Self::with_fresh_head(LanguageModel::load_held(dir, device, holding)?, seed))
    }

    /// Converts a language model, whose decoder it keeps, with a fresh head from `seed`.
    pub fn with_fresh_head(model: LanguageModel, seed: u64) -> Self {
        let parameters = model.parameters.with_fresh_head(&model.config, seed);
        let mut reward_model = Self::new(model.config, parameters, model.device);
        // Keeps its settings, such as activation checkpointing.
        reward_model.decoder = model.decoder;
        reward_model
    }

    /// Scores `[sequences]`, fp32: the head on the hidden state of each sequence's last token.
    ///
    /// # Errors
    /// Errors of libtorch.
    ///
    /// # Panics
    /// A token id outside the vocabulary; out of memory.
    pub fn scores(&self, batch: &PackedBatch, precision: Precision) -> Result<Tensor, ModelError> {
        let weights = self.weights(precision)?;
        let residual = self.decoder.forward(&weights, batch, batch.last_rows())?;
        let hidden = self.decoder.final_norm_fp32(&weights, &residual)?; // [sequences, hidden]
        Ok(linear(&hidden, self.head(), None).squeeze_dim(1))
    }

    /// Clips the head's weights to [−`bound`, `bound`] in place. Call it without gradients.
    pub fn clip_head(&self, bound: f64) {
        self.parameters.clamp(SCORE, bound);
    }

    fn head(&self) -> &Tensor {
        self.parameter(SCORE)
    }

    /// Writes config.json and model.safetensors to `dir`, which is created if it does not exist.
    ///
    /// `pad` is written as `pad_token_id`. transformers scores a row at its last token other than
    /// `pad_token_id`, so `pad` must be an id that never occurs in a text.
    ///
    /// # Errors
    /// `pad` is outside the vocabulary, or is a BOS or EOS id; the directory cannot be written.
    pub fn save(&self, dir: &Path, dtype: SaveDtype, pad: u32) -> Result<SavedWeights, ModelError> {
        self.save_to(Sink::File, dir, dtype, pad)
    }

    /// Like [`RewardModel::save`], with the weights written or only hashed.
    ///
    /// # Errors
    /// As [`RewardModel::save`].
    pub fn save_to(
        &self,
        sink: Sink,
        dir: &Path,
        dtype: SaveDtype,
        pad: u32,
    ) -> Result<SavedWeights, ModelError> {
        self.config.check_pad(pad)?;
        std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        let saved = self.parameters.save(dir, dtype, sink)?;
        let config = DecoderConfig { pad_token_id: Some(pad), ..self.config.clone() };
        config.save(dir, HeadKind::Reward, dtype)?;
        Ok(saved)
    }
}
