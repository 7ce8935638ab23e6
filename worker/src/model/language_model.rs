//! A decoder with a language-model head.

use std::path::Path;

use foil_common::model::{EMBEDDINGS, LM_HEAD};
use tch::{Device, Tensor};

use super::head::{Head, Model};
use super::layer::linear;
use super::{
    DecoderConfig, HeadKind, Holding, ModelError, PackedBatch, Parameters, Precision, SaveDtype,
    SavedWeights, Sink,
};

/// A decoder whose hidden states are projected to logits over the vocabulary: `…ForCausalLM`.
pub type LanguageModel = Model<LmHead>;

/// The head of a [`LanguageModel`].
#[derive(Debug)]
pub struct LmHead;

impl Head for LmHead {
    const KIND: HeadKind = HeadKind::LanguageModel;

    fn trainable_head(_: &Parameters) -> Option<&Tensor> {
        None
    }
}

impl LanguageModel {
    /// Fresh weights for the config.json in `config_dir`; the same seed gives the same model.
    ///
    /// # Errors
    /// Anything in config.json that does not make a model, by name.
    pub fn random(config_dir: &Path, seed: u64, device: Device) -> Result<Self, ModelError> {
        Self::random_held(config_dir, seed, device, Holding::Masters)
    }

    /// Like [`LanguageModel::random`], with `holding` for the parameters.
    ///
    /// # Errors
    /// As [`LanguageModel::random`].
    pub fn random_held(
        config_dir: &Path,
        seed: u64,
        device: Device,
        holding: Holding,
    ) -> Result<Self, ModelError> {
        let config = DecoderConfig::load(config_dir)?;
        let parameters = Parameters::random(&config, HeadKind::LanguageModel, seed, (device, holding))?;
        Ok(Self::new(config, parameters, device))
    }

    /// Fresh weights for a configuration.
    pub fn from_config(config: &DecoderConfig, seed: u64, device: Device) -> Self {
        let parameters =
            Parameters::random(config, HeadKind::LanguageModel, seed, (device, Holding::Masters));
        let Ok(parameters) = parameters else { unreachable!("whole weights are made without a group") };
        Self::new(config.clone(), parameters, device)
    }

    /// Hidden states after the final norm at `output_rows` (`[n]`, int64) of a packed batch: `[n, hidden]`,
    /// in the kind of `precision`.
    ///
    /// # Errors
    /// Errors of libtorch.
    ///
    /// # Panics
    /// A token id outside the vocabulary; out of memory.
    pub fn forward(
        &self,
        batch: &PackedBatch,
        output_rows: &Tensor,
        precision: Precision,
    ) -> Result<Tensor, ModelError> {
        let weights = self.weights(precision)?;
        let residual = self.decoder.forward(&weights, batch, output_rows)?;
        let hidden = self.decoder.final_norm(&weights, &residual)?;
        if let Some(shards) = self.parameters.shards() {
            shards.gather(self.head_name())?;
        }
        Ok(hidden)
    }

    fn head_name(&self) -> &'static str {
        if self.config.tied_embeddings { EMBEDDINGS } else { LM_HEAD }
    }

    /// `[.., hidden]` → logits `[.., vocab]`, in the kind of `hidden`. Let log-softmax convert them to fp32.
    ///
    /// Select the positions that a loss needs before the head, not after it: the head is a large part of a
    /// small model's work.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        linear(hidden, &self.lm_head().to_kind(hidden.kind()), None)
    }

    /// The head's matrix `[vocab, hidden]`: `lm_head`, or the embeddings if they are tied. In a sharded model
    /// it is valid from the end of a [forward pass](LanguageModel::forward) until the next forward or
    /// backward pass begins.
    pub fn lm_head(&self) -> &Tensor {
        self.parameter(self.head_name())
    }

    /// Writes config.json and model.safetensors to `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, dir: &Path, dtype: SaveDtype) -> Result<SavedWeights, ModelError> {
        self.save_to(Sink::File, dir, dtype)
    }

    /// Like [`LanguageModel::save`], with the weights written or only hashed.
    ///
    /// # Errors
    /// As [`LanguageModel::save`].
    pub fn save_to(&self, sink: Sink, dir: &Path, dtype: SaveDtype) -> Result<SavedWeights, ModelError> {
        std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        let saved = self.parameters.save(dir, dtype, sink)?;
        self.config.save(dir, HeadKind::LanguageModel, dtype)?;
        Ok(saved)
    }
}
