//! Prefill and decoding without gradients, with weights cast and packed once.

use foil_torch::Numbers;
use foil_torch::ops::PackedWeight;
use tch::{Kind, Tensor};

use super::decoder::{Decoder, Weights};
use super::layer::linear;
use super::{DecoderConfig, KvCache, LanguageModel, ModelError, PackedBatch, Precision};

/// A language model prepared for many decoding steps without gradients.
///
/// It shares or copies the current parameters; create a new one after a training step.
#[derive(Debug)]
pub struct Inference<'m> {
    model: &'m LanguageModel,
    weights: Weights<PackedWeight>,
    lm_head: Tensor,
    precision: Precision,
}

impl LanguageModel {
    /// Prepares generation of about `rows` sequences together: no gradients, weights cast and packed once.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn inference(&self, precision: Precision, rows: usize) -> Result<Inference<'_>, ModelError> {
        Inference::new(self, precision, rows)
    }
}

impl<'m> Inference<'m> {
    fn new(model: &'m LanguageModel, precision: Precision, rows: usize) -> Result<Self, ModelError> {
        tch::no_grad(|| {
            let weights = model.weights(precision)?;
            Ok(Self {
                model,
                weights: weights.packed(rows as i64, model.device())?,
                lm_head: model.lm_head().to_kind(precision.kind()),
                precision,
            })
        })
    }

    pub fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    pub fn device(&self) -> tch::Device {
        self.model.device()
    }

    /// An empty cache that fits this model and precision.
    pub fn new_cache(&self, slots: usize, capacity: usize) -> KvCache {
        KvCache::new(self.config(), slots, capacity, self.precision, self.model.device())
    }

    /// Computes whole prompts into the cache: sequence i of the batch replaces the contents of `slots[i]`.
    ///
    /// Returns the hidden state of each prompt's last token, `[prompts, hidden]`.
    ///
    /// # Errors
    /// A prompt longer than the cache's capacity; slots that do not exist, repeat, or are not one per prompt.
    pub fn prefill(
        &self,
        prompts: &PackedBatch,
        cache: &mut KvCache,
        slots: &[usize],
    ) -> Result<Tensor, ModelError> {
        cache.check_prompts(prompts, slots)?;
        let to = cache.prompt_slots(prompts, slots)?;
        let rotation = self.decoder().rotary_emb().angles(prompts.positions(), prompts.max_len());
        let hidden = tch::no_grad(|| {
            let residual = self.decoder().forward_layers(
                &self.weights,
                prompts.ids(),
                Some(prompts.last_rows()),
                &mut |layer, q, k, v| {
                    let rotated = foil_torch::ops::rotary(k, &rotation)?;
                    cache.write_prompts(layer, prompts, &to, [&rotated, v])?;
                    Ok(foil_torch::ops::attention(q, k, v, &rotation, prompts.segments())?)
                },
            )?;
            self.decoder().final_norm(&self.weights, &residual)
        })?;
        for (sequence, &slot) in slots.iter().enumerate() {
            cache.set_length(slot, prompts.length(sequence) as i64);
        }
        Ok(hidden)
    }

    /// Appends one token to each of `slots` and returns its hidden state, `[rows, hidden]`.
    ///
    /// On CUDA, if flash attention does not support the model, consecutive ascending `slots` are cheapest:
    /// the cache is then read in place.
    ///
    /// # Errors
    /// Slots that do not exist, repeat, are empty or full, or are not one per token.
    pub fn decode(&self, ids: &[u32], cache: &mut KvCache, slots: &[usize]) -> Result<Tensor, ModelError> {
        Ok(self.decode_with_numbers(ids, cache, slots, Vec::new())?.0)
    }

    /// Like [`Inference::decode`], but also copies `numbers` to the device in the same transfer.
    ///
    /// # Errors
    /// Those of [`Inference::decode`].
    pub fn decode_with_numbers(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        slots: &[usize],
        numbers: Vec<Numbers>,
    ) -> Result<(Tensor, Vec<Tensor>), ModelError> {
        if ids.len() != slots.len() || ids.is_empty() {
            return Err(ModelError::Cache(format!("{} tokens for {} slots", ids.len(), slots.len())));
        }
        let ids = Numbers::Int64(ids.iter().map(|&id| i64::from(id)).collect());
        let (step, mut tensors) = cache.step(slots, std::iter::once(ids).chain(numbers).collect())?;
        let ids = tensors.remove(0);
        let hidden = tch::no_grad(|| {
            let rotation = self.decoder().rotary_emb().angles(step.positions(), step.max_len());
            let residual =
                self.decoder().forward_layers(&self.weights, &ids, None, &mut |layer, q, k, v| {
                    cache.attend(layer, &step, [q, k, v], &rotation)
                })?;
            self.decoder().final_norm(&self.weights, &residual)
        })?;
        for &slot in slots {
            cache.set_length(slot, cache.length(slot) as i64 + 1);
        }
        Ok((hidden, tensors))
    }

    /// `[.., hidden]` → logits `[.., vocab]`, fp32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        tch::no_grad(|| linear(hidden, &self.lm_head, None).to_kind(Kind::Float))
    }

    /// `[rows, hidden]` → logits `[vocab, rows]` for [`foil_torch::ops::sample_tokens`], in the precision's
    /// kind.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn logits_by_token(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(foil_torch::ops::linear_by_output(&self.lm_head, hidden)?)
    }

    fn decoder(&self) -> &Decoder {
        &self.model.decoder
    }
}
