//! The preallocated KV cache of active sequences.

use foil_torch::ops::{LayerCache, RotaryAngles};
use tch::{Device, Kind, Tensor};

use super::{DecoderConfig, ModelError, PackedBatch, Precision, attention};

/// Keys and values of up to `slots` sequences of up to `capacity` tokens.
///
/// A slot is free if its length is 0; nothing beyond a slot's length is ever read.
#[derive(Debug)]
pub struct KvCache {
    /// One tensor per layer, `[slots, kv_heads, capacity, head_dim]`.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    lengths: Vec<i64>,
    capacity: i64,
}

impl KvCache {
    pub fn new(
        config: &DecoderConfig,
        slots: usize,
        capacity: usize,
        precision: Precision,
        device: Device,
    ) -> Self {
        let shape = [slots as i64, config.kv_heads, capacity as i64, config.head_dim];
        // Zeros, not uninitialized memory: a masked NaN would still poison the product with the values.
        let empty = || Tensor::zeros(shape, (precision.kind(), device));
        let layers = || (0..config.layers).map(|_| empty()).collect();
        Self { keys: layers(), values: layers(), lengths: vec![0; slots], capacity: capacity as i64 }
    }

    /// Size in bytes of such a cache.
    pub fn bytes(config: &DecoderConfig, slots: usize, capacity: usize, precision: Precision) -> usize {
        let per_token = config.layers * config.kv_width() * 2;
        slots * capacity * per_token as usize * precision.kind().elt_size_in_bytes()
    }

    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Maximum number of tokens in a slot.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Tokens in a slot.
    pub fn length(&self, slot: usize) -> usize {
        self.lengths[slot] as usize
    }

    /// Frees a slot.
    pub fn clear(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }

    /// Copies sequences between slots: `(from, to)` pairs, all read before any is written. This is how one
    /// prefill serves all completions of a prompt, and how an active sequence moves into a freed slot.
    ///
    /// # Errors
    /// A slot that does not exist, or one written twice.
    pub fn copy_slots(&mut self, pairs: &[(usize, usize)]) -> Result<(), ModelError> {
        let from: Vec<usize> = pairs.iter().map(|pair| pair.0).collect();
        let to: Vec<usize> = pairs.iter().map(|pair| pair.1).collect();
        self.check(&from)?;
        self.check_distinct(&to)?;
        let lengths: Vec<i64> = from.iter().map(|&slot| self.lengths[slot]).collect();
        let max_len = lengths.iter().copied().max().unwrap_or(0);
        if max_len > 0 {
            let (from, to) = (self.indices(&from), self.indices(&to));
            tch::no_grad(|| {
                for tensor in self.keys.iter().chain(&self.values) {
                    let mut used = tensor.narrow(2, 0, max_len);
                    let rows = used.index_select(0, &from);
                    let _ = used.index_copy_(0, &to, &rows);
                }
            });
        }
        for (slot, length) in to.iter().zip(lengths) {
            self.lengths[*slot] = length;
        }
        Ok(())
    }

    /// Moves one sequence and frees its old slot.
    ///
    /// # Errors
    /// A slot that does not exist.
    pub fn move_slot(&mut self, from: usize, to: usize) -> Result<(), ModelError> {
        if from != to {
            self.copy_slots(&[(from, to)])?;
            self.clear(from);
        }
        Ok(())
    }

    /// Writes prompts: `k` (rotated) and `v` are `[rows, kv_heads, head_dim]`, rows in the order of the
    /// packed batch, sequence i for `slots[i]`.
    pub(super) fn write_prompts(
        &mut self,
        layer: usize,
        prompts: &PackedBatch,
        slots: &[usize],
        k: &Tensor,
        v: &Tensor,
    ) {
        for (cached, new) in [(&self.keys[layer], k), (&self.values[layer], v)] {
            for (sequence, &slot) in slots.iter().enumerate() {
                let (first, length) = (prompts.row(sequence, 0), prompts.length(sequence) as i64);
                let mut target = cached.get(slot as i64).narrow(1, 0, length);
                target.copy_(&new.narrow(0, first, length).transpose(0, 1));
            }
        }
    }

    /// Writes one token per row and computes attention: `q` is `[rows, heads, head_dim]`, `k` and `v` `[rows,
    /// kv_heads, head_dim]`, not rotated yet, row i for the step's slot i. Gives `[rows, heads,
    /// head_dim]`.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        step: &DecodeStep,
        [q, k, v]: [&Tensor; 3],
        rotation: &RotaryAngles,
    ) -> Result<Tensor, ModelError> {
        if self.device() == Device::Cpu {
            let cached = LayerCache { keys: &self.keys[layer], values: &self.values[layer] };
            return Ok(foil_torch::ops::decode_attention(
                [q, k, v],
                rotation,
                cached,
                &step.slots,
                &step.lengths,
            )?);
        }
        let (q, k) = (foil_torch::ops::rotary(q, rotation)?, foil_torch::ops::rotary(k, rotation)?);
        let at = [Some(&step.slot_indices), Some(&step.positions)];
        let _ = self.keys[layer].transpose(1, 2).index_put_(&at, &k, false);
        let _ = self.values[layer].transpose(1, 2).index_put_(&at, v, false);
        let (keys, values) = self.rows(layer, step);
        Ok(attention::attend_cached(&q, &keys, &values, &step.mask()))
    }

    /// The step's rows of a layer: keys and values, `[rows, kv_heads, max_len, head_dim]`.
    fn rows(&self, layer: usize, step: &DecodeStep) -> (Tensor, Tensor) {
        let pick = |tensor: &Tensor| {
            let used = tensor.narrow(2, 0, step.max_len);
            match step.first_slot {
                Some(first) => used.narrow(0, first, step.slots.len() as i64),
                None => used.index_select(0, &step.slot_indices),
            }
        };
        (pick(&self.keys[layer]), pick(&self.values[layer]))
    }

    fn indices(&self, slots: &[usize]) -> Tensor {
        let slots: Vec<i64> = slots.iter().map(|&slot| slot as i64).collect();
        Tensor::from_slice(&slots).to_device(self.device())
    }

    pub(super) fn set_length(&mut self, slot: usize, length: i64) {
        self.lengths[slot] = length;
    }

    /// Prepares for one more token in each of `slots`.
    pub(super) fn step(&self, slots: &[usize]) -> Result<DecodeStep, ModelError> {
        self.check_distinct(slots)?;
        let lengths: Vec<i64> = slots.iter().map(|&slot| self.lengths[slot]).collect();
        for (&slot, &length) in slots.iter().zip(&lengths) {
            if length == 0 {
                return Err(ModelError::Cache(format!("slot {slot} holds no sequence to continue")));
            }
            if length >= self.capacity {
                return Err(ModelError::Cache(format!(
                    "slot {slot} is full: its capacity is {} tokens",
                    self.capacity
                )));
            }
        }
        let ascending = slots.windows(2).all(|pair| pair[1] == pair[0] + 1);
        Ok(DecodeStep {
            first_slot: slots.first().filter(|_| ascending).map(|&first| first as i64),
            slots: slots.iter().map(|&slot| slot as i64).collect(),
            slot_indices: self.indices(slots),
            positions: Tensor::from_slice(&lengths).to_device(self.device()),
            max_len: lengths.iter().copied().max().unwrap_or(0) + 1,
            lengths,
            kind: self.keys[0].kind(),
        })
    }

    /// Checks that the prompts fit their slots.
    pub(super) fn check_prompts(&self, prompts: &PackedBatch, slots: &[usize]) -> Result<(), ModelError> {
        self.check_distinct(slots)?;
        if slots.len() != prompts.sequences() {
            return Err(ModelError::Cache(format!(
                "{} slots for {} prompts",
                slots.len(),
                prompts.sequences()
            )));
        }
        if prompts.max_len() > self.capacity() {
            return Err(ModelError::Cache(format!(
                "a prompt of {} tokens does not fit a capacity of {}",
                prompts.max_len(),
                self.capacity()
            )));
        }
        Ok(())
    }

    fn check_distinct(&self, slots: &[usize]) -> Result<(), ModelError> {
        self.check(slots)?;
        let mut seen = vec![false; self.slots()];
        for &slot in slots {
            if std::mem::replace(&mut seen[slot], true) {
                return Err(ModelError::Cache(format!("slot {slot} is given twice")));
            }
        }
        Ok(())
    }

    fn check(&self, slots: &[usize]) -> Result<(), ModelError> {
        match slots.iter().find(|&&slot| slot >= self.slots()) {
            None => Ok(()),
            Some(slot) => Err(ModelError::Cache(format!("slot {slot} of {} does not exist", self.slots()))),
        }
    }

    fn device(&self) -> Device {
        self.keys.first().map_or(Device::Cpu, Tensor::device)
    }
}

/// The slots and positions of one decoding step.
#[derive(Debug)]
pub(super) struct DecodeStep {
    /// Set if the slots are consecutive: rows are then a view of the cache, not a copy.
    first_slot: Option<i64>,
    slots: Vec<i64>,
    /// Number of tokens in each slot before the step: the position of the new one.
    lengths: Vec<i64>,
    /// `slots` on the device.
    slot_indices: Tensor,
    /// `lengths` on the device.
    positions: Tensor,
    /// Length of the longest row after the step.
    max_len: i64,
    kind: Kind,
}

impl DecodeStep {
    /// Position of each row's new token, `[rows]`, int64.
    pub(super) fn positions(&self) -> &Tensor {
        &self.positions
    }

    pub(super) fn max_len(&self) -> usize {
        self.max_len as usize
    }

    /// `[rows, 1, 1, max_len]`: 0 at real tokens, −∞ beyond.
    fn mask(&self) -> Tensor {
        let device = self.positions.device();
        let positions = Tensor::arange(self.max_len, (Kind::Int64, device)).unsqueeze(0);
        let beyond = positions.gt_tensor(&self.positions.unsqueeze(1));
        Tensor::zeros(beyond.size(), (self.kind, device))
            .masked_fill(&beyond, f64::NEG_INFINITY)
            .unsqueeze(1)
            .unsqueeze(1)
    }
}
