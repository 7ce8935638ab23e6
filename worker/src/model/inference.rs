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
        // So that no step has to extend the table.
        self.decoder().rotary_emb().reserve(capacity);
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

    /// Appends `ids[i]` to slot i, and returns its hidden state, `[rows, hidden]`.
    ///
    /// # Errors
    /// More tokens than slots, or none; slots that are empty or full.
    pub fn decode(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor, ModelError> {
        let rows = ids.len();
        let positions = (0..rows.min(cache.slots())).map(|slot| cache.length(slot) as i64).collect();
        let ids = ids.iter().map(|&id| i64::from(id)).collect();
        let numbers = [Numbers::Int64(ids), Numbers::Int64(positions)];
        let uploaded = foil_torch::upload(&numbers, self.device())?;
        self.decode_rows([&uploaded[0], &uploaded[1]], cache, rows)
    }

    /// Like [`Inference::decode`], with the tokens and their positions on the device: `[padded rows]`, int64
    /// each. The position of row i is the length of slot i. Rows from `rows` on are padding: each writes to
    /// its own free slot, at a position below the capacity.
    ///
    /// Nothing is copied between host and device. The shapes of a step, except on the host's own loops,
    /// depend only on the padded rows and on the bucket of the longest row, and its inputs stay at their
    /// addresses, so that a CUDA graph can record it.
    ///
    /// # Errors
    /// Those of [`Inference::decode`]; padding rows whose slots are not free, or on the host's own loops.
    pub fn decode_rows(
        &self,
        [ids, positions]: [&Tensor; 2],
        cache: &mut KvCache,
        rows: usize,
    ) -> Result<Tensor, ModelError> {
        let step = cache.step(rows, positions)?;
        let hidden = tch::no_grad(|| {
            let rotation = self.decoder().rotary_emb().angles(positions, cache.capacity());
            let residual =
                self.decoder().forward_layers(&self.weights, ids, None, &mut |layer, q, k, v| {
                    cache.attend(layer, &step, [q, k, v], &rotation)
                })?;
            self.decoder().final_norm(&self.weights, &residual)
        })?;
        for slot in 0..rows {
            cache.set_length(slot, cache.length(slot) as i64 + 1);
        }
        Ok(hidden)
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
