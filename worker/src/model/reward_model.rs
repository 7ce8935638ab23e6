//! A decoder with a scalar head.

use std::path::Path;

use tch::{Device, Tensor};

use super::headed::{Head, Model};
use super::layer::linear;
use super::parameters::SCORE;
use super::{
    DecoderConfig, HeadKind, LanguageModel, ModelError, PackedBatch, Parameters, Precision, SaveDtype,
};

/// A decoder that gives one score per sequence, read at its last real token: `…ForSequenceClassification` with one label.
///
/// The same as transformers' class, except that the last token is known by length. transformers looks for the last token
/// that is not `pad_token_id`, hence the care in [`RewardModel::save`].
pub type RewardModel = Model<Score>;

/// The head of a [`RewardModel`].
#[derive(Debug)]
pub struct Score;

impl Head for Score {
    const KIND: HeadKind = HeadKind::Reward;

    fn trained_whole(parameters: &Parameters) -> Option<&Tensor> {
        parameters.get(SCORE)
    }
}

impl RewardModel {
    /// Reads a `…ForCausalLM` directory and puts a fresh head on it: N(0, 0.1/√hidden), drawn from `seed`.
    ///
    /// # Errors
    /// Anything in config.json or in the checkpoint that does not make a language model, by name.
    pub fn from_language_model(dir: &Path, seed: u64, device: Device) -> Result<Self, ModelError> {
        Ok(Self::with_fresh_head(LanguageModel::load(dir, device)?, seed))
    }

    /// Takes over a language model's decoder, with a fresh head drawn from `seed`.
    pub fn with_fresh_head(model: LanguageModel, seed: u64) -> Self {
        let parameters = model.parameters.with_fresh_head(&model.config, seed);
        let mut judge = Self::new(model.config, parameters, model.device);
        // With what was chosen for it, such as whether activations are kept.
        judge.decoder = model.decoder;
        judge
    }

    /// Scores `[sequences]`, fp32: the head on the hidden state of each sequence's last token.
    ///
    /// # Errors
    /// What libtorch reports.
    ///
    /// # Panics
    /// A token id outside the vocabulary; memory that runs out.
    pub fn scores(&self, batch: &PackedBatch, precision: Precision) -> Result<Tensor, ModelError> {
        let weights = self.weights(precision);
        let last = self.decoder.residual(&weights, batch, &batch.last_rows())?;
        let hidden = self.decoder.finish_fp32(&weights, &last)?; // [sequences, hidden]
        Ok(linear(&hidden, self.head(), None).squeeze_dim(1))
    }

    /// Moves the head's weights into [−`bound`, `bound`], in place. Call it without gradients.
    pub fn bound_head(&self, bound: f64) {
        let _ = self.head().shallow_clone().clamp_(-bound, bound);
    }

    fn head(&self) -> &Tensor {
        self.expect(SCORE)
    }

    /// Writes config.json and model.safetensors into `dir`, which is made where it is missing.
    ///
    /// `pad` is written as `pad_token_id`. transformers scores a row at its last token other than that one, so it has to
    /// be an id that never occurs in a text.
    ///
    /// # Errors
    /// `pad` is outside the vocabulary, or ends or begins texts; the directory cannot be written.
    pub fn save(&self, dir: &Path, dtype: SaveDtype, pad: u32) -> Result<(), ModelError> {
        self.config.check_pad(pad)?;
        std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        self.parameters.save(dir, dtype)?;
        let config = DecoderConfig { pad_token_id: Some(pad), ..self.config.clone() };
        Ok(config.save(dir, HeadKind::Reward, dtype)?)
    }
}
