//! The preallocated KV cache of active sequences.

use foil_torch::Numbers;
use foil_torch::ops::{DecodeIndex, FlashSlots, LayerCache, RotaryAngles};
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
    /// 0, 1, …, `[slots]`, int64.
    slot_indices: Tensor,
    /// Set if flash attention supports the cache.
    flash: Option<FlashSlots>,
}

/// Without flash attention, steps read a number of tokens of each slot that is rounded up to a multiple of
/// this, so that they have few shapes.
const READ_BUCKET: u64 = 256;

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
        Self {
            keys: layers(),
            values: layers(),
            lengths: vec![0; slots],
            capacity: tokens,
            own_loops,
            slot_indices: Tensor::arange(slot_count, (Kind::Int64, device)),
            flash: FlashSlots::new((device, precision.kind(), config.head_dim), slot_count, tokens),
        }
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

    /// Frees slots.
    pub fn clear(&mut self, slots: std::ops::Range<usize>) {
        self.lengths[slots].fill(0);
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
            self.clear(slot..slot + 1);
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
    /// `[rows, kv_heads, head_dim]`; none is rotated. Row i belongs to slot i. Returns `[rows, heads,
    /// head_dim]`.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        step: &DecodeStep,
        [q, k, v]: [&Tensor; 3],
        rotation: &RotaryAngles,
    ) -> Result<Tensor, ModelError> {
        match &step.read {
            Read::OwnLoops { slots, lengths } => {
                let cached = LayerCache { keys: &self.keys[layer], values: &self.values[layer] };
                Ok(foil_torch::ops::decode_attention([q, k, v], rotation, cached, slots, lengths)?)
            }
            Read::Flash(index) => {
                let q = self.write_rotated(layer, step, [q, k, v], rotation)?;
                let [keys, values] = [&self.keys, &self.values].map(|layers| layers[layer].transpose(1, 2));
                Ok(foil_torch::ops::decode_by_flash(&q, &keys, &values, index)?)
            }
            Read::Masked { mask, max_len } => {
                let q = self.write_rotated(layer, step, [q, k, v], rotation)?;
                let rows = q.size()[0];
                let [keys, values] = [&self.keys, &self.values]
                    .map(|layers| layers[layer].narrow(0, 0, rows).narrow(2, 0, *max_len));
                Ok(attention::attend_cached(&q, &keys, &values, mask))
            }
        }
    }

    /// Rotates queries and keys, writes the step's keys and values, and returns the rotated queries.
    fn write_rotated(
        &mut self,
        layer: usize,
        step: &DecodeStep,
        [q, k, v]: [&Tensor; 3],
        rotation: &RotaryAngles,
    ) -> Result<Tensor, ModelError> {
        // Together, which takes half the launches.
        let rotated = foil_torch::ops::rotary(&Tensor::cat(&[q, k], 1), rotation)?;
        let (heads, kv_heads) = (q.size()[1], k.size()[1]);
        let (q, k) = (rotated.narrow(1, 0, heads), rotated.narrow(1, heads, kv_heads));
        self.write_rows(layer, [&step.slot_indices, &step.positions], [&k, v])?;
        Ok(q)
    }

    /// Copies `numbers` to the cache's device.
    fn upload<const N: usize>(&self, numbers: [Numbers; N]) -> Result<[Tensor; N], ModelError> {
        let mut tensors = foil_torch::upload(&numbers, self.device())?.into_iter();
        Ok(numbers.map(|_| tensors.next().unwrap_or_default()))
    }

    pub(super) fn set_length(&mut self, slot: usize, length: i64) {
        self.lengths[slot] = length;
    }

    /// Prepares for one more token in each of the first `rows` slots. `positions`: `[padded rows]`, int64, on
    /// the cache's device: the slots' lengths, then a position below the capacity for each row of padding.
    pub(super) fn step(&self, rows: usize, positions: &Tensor) -> Result<DecodeStep, ModelError> {
        let padded = positions.size1()?;
        self.check_step(rows, padded as usize)?;
        let lengths = &self.lengths[..rows];
        let read = match &self.flash {
            Some(slots) => Read::Flash(slots.step(positions)),
            None if self.own_loops => {
                Read::OwnLoops { slots: (0..padded).collect(), lengths: lengths.to_vec() }
            }
            None => {
                let longest = lengths.iter().copied().max().unwrap_or(0) + 1;
                let max_len = self.capacity.min((longest as u64).next_multiple_of(READ_BUCKET) as i64);
                Read::Masked { mask: mask(positions, max_len, self.keys[0].kind()), max_len }
            }
        };
        let slot_indices = self.slot_indices.narrow(0, 0, padded);
        Ok(DecodeStep { slot_indices, positions: positions.shallow_clone(), read })
    }

    /// Checks that each of the first `rows` slots holds a sequence and has room for a token, and that those
    /// of padding rows are free.
    fn check_step(&self, rows: usize, padded: usize) -> Result<(), ModelError> {
        let fail = |message: String| Err(ModelError::Cache(message));
        if rows == 0 || padded < rows || padded > self.slots() || (self.own_loops && padded > rows) {
            return fail(format!("{rows} rows, padded to {padded}, for {} slots", self.slots()));
        }
        for (slot, &length) in self.lengths[..padded].iter().enumerate() {
            if slot >= rows && length > 0 {
                return fail(format!("slot {slot} of a padding row holds a sequence"));
            }
            if slot < rows && length == 0 {
                return fail(format!("slot {slot} holds no sequence to continue"));
            }
            if length >= self.capacity {
                return fail(format!("slot {slot} is full: its capacity is {} tokens", self.capacity));
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

/// The slots and positions of one decoding step; row i continues slot i.
#[derive(Debug)]
pub(super) struct DecodeStep {
    /// `[rows]`, int64, as `positions`.
    slot_indices: Tensor,
    positions: Tensor,
    read: Read,
}

/// How attention reads the cache.
#[derive(Debug)]
enum Read {
    /// This project's own loops, by each row's slot and its length before the step.
    OwnLoops {
        slots: Vec<i64>,
        lengths: Vec<i64>,
    },
    Flash(DecodeIndex),
    /// Scaled dot-product attention over the first `max_len` tokens with a mask, `[rows, 1, 1, max_len]`: 0
    /// at real tokens, −∞ beyond.
    Masked {
        mask: Tensor,
        max_len: i64,
    },
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
