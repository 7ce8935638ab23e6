//! Decoding on an accelerator, one step ahead of the host.
//!
//! A step takes the tokens of the step before from the device, and the host reads those while the step runs.
//! The end of a sequence is therefore seen one step late: the sequence takes part in one more step, whose
//! token is discarded with it. This holds for every setting, since all that sampling needs (positions, noise,
//! minimum lengths, the tokens to penalize) is on the device and advances there; only stop strings are found
//! on the host, as late as EOS.
//!
//! The state has fixed addresses, and the shapes of a step depend only on the [padded rows](padded_rows) and
//! on the cache's bucket, so that a CUDA graph can record a step. The host copies to the device only when the
//! set of sequences has changed.

use foil_torch::runtime::with_distinct_indices;
use foil_torch::{Downloads, Numbers, host_buffer};
use tch::{Kind, Tensor};

use super::device_sampler::{DeviceSampler, SamplerRows, tokens_of};
use super::noise::step_keys;
use super::runner::Runner;
use super::sequence::Active;
use super::{GenerateError, GenerationConfig, Token};
use crate::model::{Inference, KvCache};

/// Number of rows that a step of `rows` sequences has, at most `max`: a power of two up to 8, or a multiple
/// of 8.
pub(super) fn padded_rows(rows: usize, max: usize) -> usize {
    let padded = if rows < 8 { rows.next_power_of_two() } else { rows.next_multiple_of(8) };
    padded.min(max)
}

pub(super) struct DeviceRunner<'a> {
    model: &'a Inference<'a>,
    sampler: DeviceSampler<'a>,
    max_new_tokens: usize,
    /// Number of active sequences.
    rows: usize,
    max_rows: usize,
    /// Number of tokens of a slot.
    capacity: usize,
    /// Id and log-probability of each sequence's newest token, `[2, max_rows]`, int64; see [`tokens_of`].
    newest: Tensor,
    /// The newest token's position in its sequence, and the number of tokens of its completion, `[2,
    /// max_rows]`, int64.
    counters: Tensor,
    /// 1 for a sequence, 0 for padding, whose counters stand still, `[max_rows]`, int64.
    live: Tensor,
    /// The key of the noise of each token, `[max_rows, max_new_tokens + 1]`, int64; the last one is for
    /// tokens that are discarded.
    noise_keys: Tensor,
    /// With a repetition penalty, each sequence's tokens by position, `[max_rows, capacity]`, int64. Beyond
    /// its end are ids that are not sampled.
    seen: Option<Tensor>,
    /// Whether the set of sequences has changed since the last step.
    changed: bool,
    downloads: Downloads,
    /// Pinned memory for the newest tokens, `[2 · max_rows]`, int64.
    host: Tensor,
}

/// The first `count` entries of a dimension.
fn first(tensor: &Tensor, dim: i64, count: usize) -> Tensor {
    tensor.narrow(dim, 0, count as i64)
}

impl<'a> DeviceRunner<'a> {
    pub(super) fn new(
        model: &'a Inference<'a>,
        config: &'a GenerationConfig<'a>,
        capacity: usize,
    ) -> Result<Self, GenerateError> {
        let (device, max_rows) = (model.device(), config.max_num_seqs);
        let max_new_tokens = config.sampling.max_new_tokens;
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Int64, device));
        let rows = max_rows as i64;
        let penalizes = config.sampling.repetition_penalty != 1.0;
        Ok(Self {
            model,
            sampler: DeviceSampler::new(config, model.config().vocab_size as usize, device)?,
            max_new_tokens,
            rows: 0,
            max_rows,
            capacity,
            newest: zeros(&[2, rows]),
            counters: zeros(&[2, rows]),
            live: zeros(&[rows]),
            noise_keys: zeros(&[rows, max_new_tokens as i64 + 1]),
            seen: penalizes.then(|| zeros(&[rows, capacity as i64])),
            changed: false,
            downloads: Downloads::new(device)?,
            // Two numbers of four bytes for each of eight.
            host: host_buffer(2 * 2 * rows, device)?.view_dtype(Kind::Int64),
        })
    }

    /// Starts to copy the newest tokens to the host.
    fn start_reading(&self) -> Result<Tensor, GenerateError> {
        let rows = self.rows;
        let host = first(&self.host, 0, 2 * rows).view([2, rows as i64]);
        // From a copy, since the next step overwrites them.
        let newest = first(&self.newest, 1, rows);
        let mut copied = newest.empty_like();
        copied.copy_(&newest);
        self.downloads.copy(&copied, &host)?;
        Ok(host)
    }

    /// Copies to the device what the host knows of the sequences; their newest tokens are already there.
    fn upload(&mut self, active: &[Active<'_>], cache: &KvCache) -> Result<(), GenerateError> {
        let padded = |numbers: &mut dyn Iterator<Item = i64>| -> Vec<i64> {
            numbers.chain(std::iter::repeat(0)).take(self.max_rows).collect()
        };
        let positions = padded(&mut (0..active.len()).map(|slot| cache.length(slot) as i64));
        let counts = padded(&mut active.iter().map(|active| active.tokens.len() as i64 + 1));
        let live = padded(&mut active.iter().map(|_| 1));
        let keys = padded(&mut active.iter().map(|active| active.noise.key().cast_signed()));
        let mut numbers: Vec<_> = [positions, counts, live, keys].map(Numbers::Int64).into();
        if self.seen.is_some() {
            numbers.push(self.sampler.padded_ids(active, [self.max_rows, self.capacity]));
        }
        let uploaded = foil_torch::upload(&numbers, self.model.device())?;
        self.counters.copy_(&Tensor::stack(&uploaded[..2], 0));
        self.live.copy_(&uploaded[2]);
        self.noise_keys.copy_(&step_keys(&uploaded[3], self.max_new_tokens as i64 + 1));
        if let Some(seen) = &mut self.seen {
            seen.copy_(&uploaded[4].view_as(seen));
        }
        self.changed = false;
        Ok(())
    }

    /// Runs a step, on the device alone.
    fn launch(&mut self, cache: &mut KvCache) -> Result<(), GenerateError> {
        let padded = padded_rows(self.rows, self.max_rows);
        let [mut newest, mut counters] = [&self.newest, &self.counters].map(|all| first(all, 1, padded));
        let (ids, positions, counts) = (newest.get(0), counters.get(0), counters.get(1));
        let seen = self.seen.as_ref().map(|seen| first(seen, 0, padded));
        if let Some(seen) = &seen {
            let (mut seen, at) = (seen.shallow_clone(), positions.unsqueeze(1));
            let _ = with_distinct_indices(|| seen.scatter_(1, &at, &ids.unsqueeze(1)))?;
        }
        let hidden = self.model.decode_rows([&ids, &positions], cache, self.rows)?;
        let noise_keys = first(&self.noise_keys, 0, padded);
        let noise_keys = noise_keys.gather(1, &counts.unsqueeze(1), false).squeeze_dim(1);
        let rows = SamplerRows { noise_keys: &noise_keys, counts: &counts, seen: seen.as_ref() };
        newest.copy_(&self.sampler.sample(&self.model.logits(&hidden), &rows)?);
        let _ = counters.g_add_(&first(&self.live, 0, padded));
        Ok(())
    }
}

impl Runner for DeviceRunner<'_> {
    fn start(&mut self, new: &[Active<'_>], hidden: &Tensor) -> Result<Vec<Token>, GenerateError> {
        let keys = new.iter().map(|active| active.noise.step(0).key().cast_signed()).collect();
        let mut numbers = vec![Numbers::Int64(keys), Numbers::Int64(vec![0; new.len()])];
        if self.seen.is_some() {
            let longest = new.iter().map(|active| active.prompt.len()).max().unwrap_or(0);
            numbers.push(self.sampler.padded_ids(new, [new.len(), longest]));
        }
        let uploaded = foil_torch::upload(&numbers, self.model.device())?;
        let seen = uploaded.get(2).map(|ids| ids.view([new.len() as i64, -1]));
        let rows = SamplerRows { noise_keys: &uploaded[0], counts: &uploaded[1], seen: seen.as_ref() };
        let sampled = self.sampler.sample(&self.model.logits(hidden), &rows)?;
        self.newest.narrow(1, self.rows as i64, new.len() as i64).copy_(&sampled);
        self.rows += new.len();
        self.changed = true;
        Ok(Vec::new())
    }

    fn step(&mut self, active: &[Active<'_>], cache: &mut KvCache) -> Result<Vec<Token>, GenerateError> {
        // Each sequence has a token that the host has not read.
        let continues = active.iter().any(|active| active.tokens.len() + 1 < self.max_new_tokens);
        if continues && self.changed {
            self.upload(active, cache)?;
        }
        let host = self.start_reading()?;
        if continues {
            self.launch(cache)?;
        }
        self.downloads.wait()?;
        tokens_of(&host)
    }

    fn keep(&mut self, kept: &[usize]) -> Result<(), GenerateError> {
        if !kept.is_empty() {
            let rows = Numbers::Int64(kept.iter().map(|&row| row as i64).collect());
            let rows = foil_torch::upload(&[rows], self.model.device())?;
            first(&self.newest, 1, kept.len()).copy_(&self.newest.index_select(1, &rows[0]));
        }
        self.rows = kept.len();
        self.changed = true;
        Ok(())
    }
}
