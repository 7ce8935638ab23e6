//! The preallocated KV cache of active sequences.

use foil_torch::Numbers;
use foil_torch::ops::{DecodeIndex, LayerCache, RotaryAngles};
use foil_torch::runtime::{uses_cpu_kernels, with_distinct_indices};
use tch::{Device, Kind, Tensor};

use super::{DecoderConfig, ModelError, PackedBatch, Precision, attention};

/// Keys and values of up to `slots` sequences of up to `capacity` tokens.
///
/// A slot is free if its length is 0. Nothing beyond a slot's length is ever read.
#[derive(Debug)]
pub struct KvCache {
    /// One tensor per layer, `[slots, kv_heads, capacity, head_dim]`. The memory layout has this order for
    /// this project's own loops, and the order `[slots, capacity, kv_heads, head_dim]` for flash attention.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    lengths: Vec<i64>,
    capacity: i64,
    /// Whether this project's own loops read the cache.
    own_loops: bool,
}

impl KvCache {
    pub fn new(
        config: &DecoderConfig,
        slots: usize,
        capacity: usize,
        precision: Precision,
        device: Device,
    ) -> Self {
        let own_loops = uses_cpu_kernels(device);
        let (slot_count, tokens) = (slots as i64, capacity as i64);
        // Zeros instead of uninitialized memory: a masked NaN would still poison the product with the values.
        let zeros = |shape: [i64; 4]| Tensor::zeros(shape, (precision.kind(), device));
        let empty = || match own_loops {
            true => zeros([slot_count, config.kv_heads, tokens, config.head_dim]),
            false => zeros([slot_count, tokens, config.kv_heads, config.head_dim]).transpose(1, 2),
        };
        let layers = || (0..config.layers).map(|_| empty()).collect();
        Self { keys: layers(), values: layers(), lengths: vec![0; slots], capacity: tokens, own_loops }
    }

    /// Size of such a cache in bytes.
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

    /// Number of tokens in a slot.
    pub fn length(&self, slot: usize) -> usize {
        self.lengths[slot] as usize
    }

    /// Frees a slot.
    pub fn clear(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }

    /// Copies sequences between slots. All `(from, to)` pairs are read before any is written. This lets one
    /// prefill serve all completions of a prompt, and an active sequence move into a freed slot.
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
            let [from, to] = self.upload([int64(&from), int64(&to)])?;
            with_distinct_indices(|| {
                tch::no_grad(|| {
                    for tensor in self.keys.iter().chain(&self.values) {
                        let mut used = tensor.narrow(2, 0, max_len);
                        let rows = used.index_select(0, &from);
                        let _ = used.index_copy_(0, &to, &rows);
                    }
                });
            })?;
        }
        for (slot, length) in to.iter().zip(lengths) {
            self.lengths[*slot] = length;
        }
        Ok(())
    }

    /// Moves sequences, `(from, to)`, and frees their old slots. All pairs are read before any is written.
    ///
    /// # Errors
    /// A slot that does not exist, or one written twice.
    pub fn move_slots(&mut self, pairs: &[(usize, usize)]) -> Result<(), ModelError> {
        self.copy_slots(pairs)?;
        let left = pairs.iter().map(|pair| pair.0).filter(|from| pairs.iter().all(|pair| pair.1 != *from));
        for slot in left.collect::<Vec<_>>() {
            self.clear(slot);
        }
        Ok(())
    }

    /// Prepares to write prompts: sequence i of the packed batch, which must not share rows, into `slots[i]`.
    pub(super) fn prompt_slots(
        &self,
        prompts: &PackedBatch,
        slots: &[usize],
    ) -> Result<PromptSlots, ModelError> {
        let rows = slots.iter().enumerate().flat_map(|(sequence, &slot)| {
            let length = if self.own_loops { 0 } else { prompts.length(sequence) };
            std::iter::repeat_n(slot as i64, length)
        });
        let [slot_of_row] = self.upload([Numbers::Int64(rows.collect())])?;
        Ok(PromptSlots { slots: slots.to_vec(), slot_of_row })
    }

    /// Writes prompts: `k` (rotated) and `v` are `[rows, kv_heads, head_dim]`, rows in the order of the
    /// packed batch.
    pub(super) fn write_prompts(
        &mut self,
        layer: usize,
        prompts: &PackedBatch,
        to: &PromptSlots,
        [k, v]: [&Tensor; 2],
    ) -> Result<(), ModelError> {
        if !self.own_loops {
            return self.write_rows(layer, [&to.slot_of_row, prompts.positions()], [k, v]);
        }
        for (cached, new) in [(&self.keys[layer], k), (&self.values[layer], v)] {
            for (sequence, &slot) in to.slots.iter().enumerate() {
                let (first, length) = (prompts.row(sequence, 0), prompts.length(sequence) as i64);
                let mut target = cached.get(slot as i64).narrow(1, 0, length);
                target.copy_(&new.narrow(0, first, length).transpose(0, 1));
            }
        }
        Ok(())
    }

    /// Writes row i of `k` and `v`, `[rows, kv_heads, head_dim]`, at `positions[i]` of `slots[i]`.
    fn write_rows(
        &mut self,
        layer: usize,
        [slots, positions]: [&Tensor; 2],
        [k, v]: [&Tensor; 2],
    ) -> Result<(), ModelError> {
        Ok(with_distinct_indices(|| {
            for (cached, new) in [(&self.keys[layer], k), (&self.values[layer], v)] {
                let _ = cached.transpose(1, 2).index_put_(&[Some(slots), Some(positions)], new, false);
            }
        })?)
    }

    /// Writes one token per row and computes attention. `q` is `[rows, heads, head_dim]`; `k` and `v` are
    /// `[rows, kv_heads, head_dim]`; none is rotated. Row i belongs to the step's slot i. Returns `[rows,
    /// heads, head_dim]`.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        step: &DecodeStep,
        [q, k, v]: [&Tensor; 3],
        rotation: &RotaryAngles,
    ) -> Result<Tensor, ModelError> {
        if self.own_loops {
            let cached = LayerCache { keys: &self.keys[layer], values: &self.values[layer] };
            return Ok(foil_torch::ops::decode_attention(
                [q, k, v],
                rotation,
                cached,
                &step.slots,
                &step.lengths,
            )?);
        }
        // Rotates queries and keys together, with half the launches.
        let rotated = foil_torch::ops::rotary(&Tensor::cat(&[q, k], 1), rotation)?;
        let (heads, kv_heads) = (q.size()[1], k.size()[1]);
        let (q, k) = (rotated.narrow(1, 0, heads), rotated.narrow(1, heads, kv_heads));
        self.write_rows(layer, [&step.slot_indices, &step.positions], [&k, v])?;
        match &step.read {
            Read::Flash(index) => {
                let [keys, values] = [&self.keys, &self.values].map(|layers| layers[layer].transpose(1, 2));
                Ok(foil_torch::ops::decode_by_flash(&q, &keys, &values, index)?)
            }
            Read::Masked(mask) => {
                let (keys, values) = self.rows(layer, step);
                Ok(attention::attend_cached(&q, &keys, &values, mask))
            }
        }
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

    /// Copies `numbers` to the cache's device.
    fn upload<const N: usize>(&self, numbers: [Numbers; N]) -> Result<[Tensor; N], ModelError> {
        let mut tensors = foil_torch::upload(&numbers, self.device())?.into_iter();
        Ok(numbers.map(|_| tensors.next().unwrap_or_default()))
    }

    pub(super) fn set_length(&mut self, slot: usize, length: i64) {
        self.lengths[slot] = length;
    }

    /// Prepares for one more token in each of `slots` and copies `numbers` to the device in the same
    /// transfer.
    pub(super) fn step(
        &self,
        slots: &[usize],
        numbers: Vec<Numbers>,
    ) -> Result<(DecodeStep, Vec<Tensor>), ModelError> {
        self.check_step(slots)?;
        let lengths: Vec<i64> = slots.iter().map(|&slot| self.lengths[slot]).collect();
        let ascending = slots.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let first_slot = slots.first().filter(|_| ascending).map(|&first| first as i64);
        let slots: Vec<i64> = slots.iter().map(|&slot| slot as i64).collect();
        let max_len = lengths.iter().copied().max().unwrap_or(0) + 1;
        let flash = self.flash_numbers(&slots, &lengths);
        let uses_flash = flash.is_some();
        let mut parts = vec![Numbers::Int64(slots.clone()), Numbers::Int64(lengths.clone())];
        parts.extend(flash.into_iter().flatten().chain(numbers));
        let mut tensors = foil_torch::upload(&parts, self.device())?.into_iter();
        let mut next = || tensors.next().unwrap_or_default();
        let (slot_indices, positions) = (next(), next());
        let read = match uses_flash {
            true => Read::Flash(DecodeIndex::new([next(), next(), next()])),
            // This project's own loops take no mask.
            false if self.own_loops => Read::Masked(Tensor::new()),
            false => Read::Masked(mask(&positions, max_len, self.keys[0].kind())),
        };
        let step = DecodeStep { first_slot, slots, lengths, slot_indices, positions, max_len, read };
        Ok((step, tensors.collect()))
    }

    /// Inputs of flash attention for a step that appends to `slots`, if it supports this cache.
    fn flash_numbers(&self, slots: &[i64], lengths: &[i64]) -> Option<[Numbers; 3]> {
        let keys = self.keys.first()?;
        let used: Vec<i64> = lengths.iter().map(|length| length + 1).collect();
        let head_dim = *keys.size().last()?;
        DecodeIndex::numbers((keys.device(), keys.kind(), head_dim), self.capacity, slots, &used)
    }

    /// Checks that each of `slots` holds a sequence and has room for a token.
    fn check_step(&self, slots: &[usize]) -> Result<(), ModelError> {
        self.check_distinct(slots)?;
        for &slot in slots {
            let length = self.lengths[slot];
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
        Ok(())
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

fn int64(slots: &[usize]) -> Numbers {
    Numbers::Int64(slots.iter().map(|&slot| slot as i64).collect())
}

/// The slots that prompts are written to.
#[derive(Debug)]
pub(super) struct PromptSlots {
    slots: Vec<usize>,
    /// Slot of each row of the packed batch, `[rows]`, int64. Empty for this project's own loops.
    slot_of_row: Tensor,
}

/// The slots and positions of one decoding step.
#[derive(Debug)]
pub(super) struct DecodeStep {
    /// Set if the slots are consecutive. Rows are then a view of the cache, not a copy.
    first_slot: Option<i64>,
    slots: Vec<i64>,
    /// Number of tokens in each slot before the step, which is the position of the new token.
    lengths: Vec<i64>,
    /// `slots` on the device.
    slot_indices: Tensor,
    /// `lengths` on the device.
    positions: Tensor,
    /// Length of the longest row after the step.
    max_len: i64,
    read: Read,
}

/// How attention reads the cache on devices where this project has no loops.
#[derive(Debug)]
enum Read {
    /// Flash attention, by slots and lengths.
    Flash(DecodeIndex),
    /// Scaled dot-product attention with a mask, `[rows, 1, 1, max_len]`: 0 at real tokens, −∞ beyond.
    Masked(Tensor),
}

impl DecodeStep {
    /// Position of each row's new token, `[rows]`, int64.
    pub(super) fn positions(&self) -> &Tensor {
        &self.positions
    }

    pub(super) fn max_len(&self) -> usize {
        self.max_len as usize
    }
}

/// The mask of rows whose new tokens are at `positions`.
fn mask(positions: &Tensor, max_len: i64, kind: Kind) -> Tensor {
    let device = positions.device();
    let all = Tensor::arange(max_len, (Kind::Int64, device)).unsqueeze(0);
    let beyond = all.gt_tensor(&positions.unsqueeze(1));
    Tensor::zeros(beyond.size(), (kind, device))
        .masked_fill(&beyond, f64::NEG_INFINITY)
        .unsqueeze(1)
        .unsqueeze(1)
}
