//! Keys and values of running sequences, preallocated.

use tch::{Device, Kind, Tensor};

use super::{DecoderConfig, ModelError, Precision};

/// Keys and values of up to `slots` sequences of up to `capacity` tokens.
///
/// A slot is free when its length is 0; what stands beyond a slot's length is never read.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer `[slots, kv_heads, capacity, head_dim]`.
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
        // Zeros, not uninitialised memory: a masked NaN would still poison the product with the values.
        let empty = || Tensor::zeros(shape, (precision.kind(), device));
        let layers = || (0..config.layers).map(|_| empty()).collect();
        Self { keys: layers(), values: layers(), lengths: vec![0; slots], capacity: capacity as i64 }
    }

    /// Bytes that a cache of this size takes.
    pub fn bytes(config: &DecoderConfig, slots: usize, capacity: usize, precision: Precision) -> usize {
        let per_token = config.layers * config.kv_width() * 2;
        slots * capacity * per_token as usize * precision.kind().elt_size_in_bytes()
    }

    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Most tokens a slot can hold.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Tokens in a slot.
    pub fn length(&self, slot: usize) -> usize {
        self.lengths[slot] as usize
    }

    /// Forgets a slot's tokens.
    pub fn clear(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }

    /// Copies sequences between slots: `(from, to)` pairs, all read before any is written. One prompt's prefill serves
    /// all its samples this way, and a finished row's place is taken by a running one.
    ///
    /// # Errors
    /// A slot that does not exist, or one written twice.
    pub fn copy_slots(&mut self, pairs: &[(usize, usize)]) -> Result<(), ModelError> {
        let from: Vec<usize> = pairs.iter().map(|pair| pair.0).collect();
        let to: Vec<usize> = pairs.iter().map(|pair| pair.1).collect();
        self.check(&from)?;
        self.check_distinct(&to)?;
        let lengths: Vec<i64> = from.iter().map(|&slot| self.lengths[slot]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest > 0 {
            let (from, to) = (self.indices(&from), self.indices(&to));
            tch::no_grad(|| {
                for tensor in self.keys.iter().chain(&self.values) {
                    let mut used = tensor.narrow(2, 0, longest);
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

    /// Writes whole sequences: `k`, `v` are `[rows, kv_heads, seq, head_dim]`, row i for `slots[i]`.
    pub(super) fn write_sequences(&mut self, layer: usize, slots: &Tensor, k: &Tensor, v: &Tensor) {
        let seq = k.size()[2];
        let _ = self.keys[layer].narrow(2, 0, seq).index_copy_(0, slots, k);
        let _ = self.values[layer].narrow(2, 0, seq).index_copy_(0, slots, v);
    }

    /// Writes one token per row: `k`, `v` are `[rows, kv_heads, 1, head_dim]`, row i at `positions[i]` of `slots[i]`.
    pub(super) fn write_tokens(&mut self, layer: usize, step: &Step, k: &Tensor, v: &Tensor) {
        let at = [Some(&step.slots), Some(&step.positions)];
        let _ = self.keys[layer].transpose(1, 2).index_put_(&at, &k.squeeze_dim(2), false);
        let _ = self.values[layer].transpose(1, 2).index_put_(&at, &v.squeeze_dim(2), false);
    }

    /// The step's rows of a layer: keys and values, `[rows, kv_heads, longest, head_dim]`.
    pub(super) fn rows(&self, layer: usize, step: &Step) -> (Tensor, Tensor) {
        let pick = |tensor: &Tensor| {
            let used = tensor.narrow(2, 0, step.longest);
            match step.first_slot {
                Some(first) => used.narrow(0, first, step.rows),
                None => used.index_select(0, &step.slots),
            }
        };
        (pick(&self.keys[layer]), pick(&self.values[layer]))
    }

    pub(super) fn indices(&self, slots: &[usize]) -> Tensor {
        let slots: Vec<i64> = slots.iter().map(|&slot| slot as i64).collect();
        Tensor::from_slice(&slots).to_device(self.device())
    }

    pub(super) fn set_length(&mut self, slot: usize, length: i64) {
        self.lengths[slot] = length;
    }

    /// Prepares for one more token in each of `slots`.
    pub(super) fn step(&self, slots: &[usize]) -> Result<Step, ModelError> {
        self.check_distinct(slots)?;
        let lengths: Vec<i64> = slots.iter().map(|&slot| self.lengths[slot]).collect();
        for (&slot, &length) in slots.iter().zip(&lengths) {
            if length == 0 {
                return Err(ModelError::Cache(format!("slot {slot} holds no sequence to go on with")));
            }
            if length >= self.capacity {
                return Err(ModelError::Cache(format!(
                    "slot {slot} is full: its capacity is {} tokens",
                    self.capacity
                )));
            }
        }
        let longest = lengths.iter().copied().max().unwrap_or(0) + 1;
        let device = self.device();
        let positions = Tensor::from_slice(&lengths).to_device(device);
        let hidden =
            Tensor::arange(longest, (Kind::Int64, device)).unsqueeze(0).gt_tensor(&positions.unsqueeze(1));
        let mask = Tensor::zeros([slots.len() as i64, longest], (self.keys[0].kind(), device))
            .masked_fill(&hidden, f64::NEG_INFINITY)
            .unsqueeze(1)
            .unsqueeze(1);
        let ascending = slots.windows(2).all(|pair| pair[1] == pair[0] + 1);
        Ok(Step {
            first_slot: slots.first().filter(|_| ascending).map(|&first| first as i64),
            rows: slots.len() as i64,
            slots: self.indices(slots),
            positions,
            longest,
            mask,
        })
    }

    pub(super) fn check_distinct(&self, slots: &[usize]) -> Result<(), ModelError> {
        self.check(slots)?;
        let mut seen = vec![false; self.slots()];
        for &slot in slots {
            if std::mem::replace(&mut seen[slot], true) {
                return Err(ModelError::Cache(format!("slot {slot} is named twice")));
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

/// Which rows a decoding step works on.
#[derive(Debug)]
pub(super) struct Step {
    /// Set where the slots are consecutive: rows are then a view of the cache, not a copy.
    first_slot: Option<i64>,
    rows: i64,
    slots: Tensor,
    /// Where each row's new token goes: its length before the step.
    pub(super) positions: Tensor,
    /// Length of the longest row after the step.
    pub(super) longest: i64,
    /// `[rows, 1, 1, longest]`: 0 at real tokens, −∞ beyond.
    pub(super) mask: Tensor,
}
