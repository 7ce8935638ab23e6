//! Decoding without gradients, with weights cast once.

use tch::{Kind, Tensor};

use super::decoder::{Decoder, Weights, linear};
use super::{DecoderConfig, KvCache, LanguageModel, ModelError, Precision, TokenBatch, attention};

/// A language model made ready for many steps without gradients.
///
/// It shares or copies the parameters as they are now; after a training step make a new one.
#[derive(Debug)]
pub struct Inference<'m> {
    model: &'m LanguageModel,
    weights: Weights,
    head: Tensor,
    precision: Precision,
}

impl<'m> Inference<'m> {
    pub(super) fn new(model: &'m LanguageModel, precision: Precision) -> Self {
        tch::no_grad(|| Self {
            model,
            weights: model.decoder().cast(model.parameters(), precision),
            head: model.head().to_kind(precision.kind()),
            precision,
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

    /// Reads whole prompts into the cache, row i into `slots[i]`, replacing what was there.
    ///
    /// Gives the hidden state of each row's last token, `[rows, hidden]`.
    ///
    /// # Errors
    /// A prompt longer than the cache's capacity; slots that do not exist, repeat, or are not one per row.
    pub fn prefill(
        &self,
        batch: &TokenBatch,
        cache: &mut KvCache,
        slots: &[usize],
    ) -> Result<Tensor, ModelError> {
        cache.check_distinct(slots)?;
        if slots.len() != batch.lengths.len() {
            return Err(ModelError::Cache(format!(
                "{} slots for {} prompts",
                slots.len(),
                batch.lengths.len()
            )));
        }
        if batch.seq() > cache.capacity() as i64 {
            return Err(ModelError::Cache(format!(
                "a prompt of {} tokens does not fit a capacity of {}",
                batch.seq(),
                cache.capacity()
            )));
        }
        let rotation = self.decoder().rotary().prefix(batch.seq());
        let at = cache.indices(slots);
        let hidden = tch::no_grad(|| {
            let residual = self.decoder().run(&self.weights, &batch.ids, &rotation, &mut |layer, q, k, v| {
                cache.write_sequences(layer, &at, k, v);
                attention::causal(q, k, v)
            });
            let last = residual.flatten(0, 1).index_select(0, &batch.last_positions());
            self.decoder().finish(&self.weights, &last)
        });
        for (&slot, &length) in slots.iter().zip(&batch.lengths) {
            cache.set_length(slot, length);
        }
        Ok(hidden)
    }

    /// Appends one token to each of `slots` and gives its hidden state, `[rows, hidden]`.
    ///
    /// Cheapest where `slots` are consecutive and ascending: the cache is then read in place.
    ///
    /// # Errors
    /// Slots that do not exist, repeat, are empty or full, or are not one per token.
    pub fn decode(&self, ids: &[u32], cache: &mut KvCache, slots: &[usize]) -> Result<Tensor, ModelError> {
        if ids.len() != slots.len() || ids.is_empty() {
            return Err(ModelError::Cache(format!("{} tokens for {} slots", ids.len(), slots.len())));
        }
        let step = cache.step(slots)?;
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let ids = Tensor::from_slice(&ids).unsqueeze(1).to_device(self.model.device());
        let hidden = tch::no_grad(|| {
            let rotation = self.decoder().rotary().rows(&step.positions, step.longest - 1);
            let residual = self.decoder().run(&self.weights, &ids, &rotation, &mut |layer, q, k, v| {
                cache.write_tokens(layer, &step, k, v);
                let (keys, values) = cache.rows(layer, &step);
                attention::cached(q, &keys, &values, &step.mask)
            });
            self.decoder().finish(&self.weights, &residual.squeeze_dim(1))
        });
        for &slot in slots {
            cache.set_length(slot, cache.length(slot) as i64 + 1);
        }
        Ok(hidden)
    }

    /// `[.., hidden]` → logits `[.., vocab]`, fp32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        tch::no_grad(|| linear(hidden, &self.head, None).to_kind(Kind::Float))
    }

    fn decoder(&self) -> &Decoder {
        self.model.decoder()
    }
}
