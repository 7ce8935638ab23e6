//! The generation engine: a KV cache with one slot per sequence, a queue of sequences, and a loop of decoding
//! steps.

use std::collections::VecDeque;

use foil_common::spec::Sampling;
use foil_torch::Numbers;
use tch::Tensor;

use super::error::GenerateError;
use super::noise::{CompletionNoise, NoiseKey, StepNoise, StepNoises, noise_keys};
use super::sample::sample;
use super::sampler::{Context, Sampler};
use crate::model::{Inference, KvCache, PackedBatch};

/// Maximum number of tokens in one prefill; bounds its memory.
const MAX_PREFILL_TOKENS: usize = 8192;

/// A prompt and the number of completions to sample for it.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub prompt_id: u64,
    /// At least one token.
    pub prompt: Vec<u32>,
    pub samples: u32,
}

/// A text that the policy generated for a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub prompt_id: u64,
    pub index: u32,
    /// The tokens, including EOS if the model generated it; truncated before a stop string.
    pub tokens: Vec<u32>,
    /// Log-probability of each token in nats under the policy itself: at temperature 1, before penalties and
    /// filters.
    pub log_probs: Vec<f32>,
    /// Whether EOS or a stop string ended the completion, rather than `max_new_tokens`.
    pub finished: bool,
}

/// Settings of a generation.
pub struct GenerationConfig<'a> {
    pub sampling: &'a Sampling,
    /// The tokens that end a completion.
    pub eos: &'a [u32],
    /// Number of ids in the tokenizer. Only these are sampled, since a model may have more embeddings.
    /// Log-probabilities are still those of the whole softmax, as in training.
    pub vocab_size: usize,
    pub noise: &'a NoiseKey,
    /// Number of sequences decoded together; changing it may change the last bits.
    pub max_num_seqs: usize,
    /// Converts a completion's tokens to text, to find stop strings.
    pub detokenize: &'a dyn Fn(&[u32]) -> String,
}

/// The work of a generation, in rows that went through the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationStats {
    pub prompt_tokens: usize,
    /// Rows of all decoding steps: one for each token of a completion after the first.
    pub decoded_rows: usize,
    pub steps: usize,
}

/// All completions, in the order of the requests and their indices.
#[derive(Debug)]
pub struct Generation {
    pub completions: Vec<Completion>,
    pub stats: GenerationStats,
}

/// Samples `samples` completions for each request; `progress` is called with the number finished and the
/// total.
///
/// # Errors
/// Prompts that are empty or do not fit the model, and what libtorch reports.
pub fn generate(
    model: &Inference<'_>,
    requests: &[GenerateRequest],
    config: &GenerationConfig<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Generation, GenerateError> {
    let capacity = capacity(model, requests, config)?;
    let mut engine = Engine::new(model, requests, config, capacity);
    while engine.admit()? {
        progress(engine.done, engine.completions.len());
        engine.decode()?;
    }
    progress(engine.done, engine.completions.len());
    let completions = engine.completions.into_iter().flatten().collect();
    Ok(Generation { completions, stats: engine.stats })
}

/// Number of tokens that a slot must hold.
fn capacity(
    model: &Inference<'_>,
    requests: &[GenerateRequest],
    config: &GenerationConfig<'_>,
) -> Result<usize, GenerateError> {
    if config.max_num_seqs == 0 {
        return Err(GenerateError::NoSlots);
    }
    let new = config.sampling.max_new_tokens;
    let limit = model.config().max_positions as usize;
    for request in requests {
        let (prompt_id, prompt) = (request.prompt_id, request.prompt.len());
        if prompt == 0 {
            return Err(GenerateError::EmptyPrompt { prompt_id });
        }
        if prompt + new > limit {
            return Err(GenerateError::TooLong { prompt_id, prompt, new, limit });
        }
    }
    Ok(requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0) + new)
}

/// A sequence in the queue.
#[derive(Clone, Copy)]
struct Queued {
    request: usize,
    index: u32,
    /// Position of its completion in the result.
    output_index: usize,
}

/// A sequence being decoded; its position in [`Engine::active`] is its slot.
struct Active {
    sequence: Queued,
    noise: CompletionNoise,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
}

/// A prompt with sequences still in the queue. The last slot of the cache keeps its keys and values.
struct PrefixSlot {
    request: usize,
    /// Hidden state of its last token, `[1, hidden]`.
    hidden: Tensor,
}

/// A sequence that starts from a prompt's keys and values.
struct Start {
    sequence: Queued,
    /// The slot of the prompt's keys and values.
    prompt_slot: usize,
}

/// The noise of each sequence's next token.
fn step_noise(sequences: &[Active]) -> Vec<StepNoise> {
    sequences.iter().map(|active| active.noise.step(active.tokens.len())).collect()
}

struct Engine<'a> {
    model: &'a Inference<'a>,
    requests: &'a [GenerateRequest],
    config: &'a GenerationConfig<'a>,
    sampler: Sampler<'a>,
    cache: KvCache,
    queue: VecDeque<Queued>,
    /// The active sequences, which occupy slots 0 .. active.len() without gaps.
    active: Vec<Active>,
    prefix: Option<PrefixSlot>,
    completions: Vec<Option<Completion>>,
    done: usize,
    stats: GenerationStats,
}

impl<'a> Engine<'a> {
    fn new(
        model: &'a Inference<'a>,
        requests: &'a [GenerateRequest],
        config: &'a GenerationConfig<'a>,
        capacity: usize,
    ) -> Self {
        let sequences = requests
            .iter()
            .enumerate()
            .flat_map(|(request, r)| (0..r.samples).map(move |index| (request, index)));
        let queue: VecDeque<_> = sequences
            .enumerate()
            .map(|(output_index, (request, index))| Queued { request, index, output_index })
            .collect();
        Self {
            model,
            requests,
            config,
            sampler: Sampler::new(config.sampling).with_vocab_size(config.vocab_size),
            // One extra slot for the prefix.
            cache: model.new_cache(config.max_num_seqs + 1, capacity),
            active: Vec::with_capacity(config.max_num_seqs),
            prefix: None,
            completions: vec![None; queue.len()],
            queue,
            done: 0,
            stats: GenerationStats::default(),
        }
    }

    /// Fills free slots from the queue; false when no sequence is active or queued.
    fn admit(&mut self) -> Result<bool, GenerateError> {
        // Loops because a completion may end with its first token and free its slot again.
        while self.active.len() < self.config.max_num_seqs && !self.queue.is_empty() {
            self.admit_group()?;
        }
        Ok(!self.active.is_empty())
    }

    /// Admits sequences of the prefix's prompt, or of as many prompts as fit in one prefill.
    fn admit_group(&mut self) -> Result<(), GenerateError> {
        let free = self.config.max_num_seqs - self.active.len();
        if let Some(prefix) = self.prefix.take() {
            let sequences = self.take_sequences(prefix.request, free);
            let hidden = prefix.hidden.expand([sequences.len() as i64, -1], false);
            let starts: Vec<Start> = sequences
                .into_iter()
                .map(|sequence| Start { sequence, prompt_slot: self.config.max_num_seqs })
                .collect();
            self.start(&starts, &hidden)?;
            if self.is_queued(prefix.request) {
                self.prefix = Some(prefix);
            }
            return Ok(());
        }
        let groups = self.next_prompts(free);
        let prompts: Vec<&[u32]> = groups.iter().map(|group| self.prompt(group[0].request)).collect();
        let batch = PackedBatch::from_sequences(&prompts, self.model.device())?;
        self.stats.prompt_tokens += batch.rows();
        let first = self.config.max_num_seqs - groups.len();
        let slots: Vec<usize> = (first..self.config.max_num_seqs).collect();
        let hidden = self.model.prefill(&batch, &mut self.cache, &slots)?; // [prompts, hidden]
        let last = groups.len() as i64 - 1;
        if let Some(request) = groups.last().map(|group| group[0].request)
            && self.is_queued(request)
        {
            self.cache.copy_slots(&[(self.config.max_num_seqs - 1, self.config.max_num_seqs)])?;
            self.prefix = Some(PrefixSlot { request, hidden: hidden.narrow(0, last, 1) });
        }
        let (mut starts, mut rows) = (Vec::new(), Vec::new());
        for (prompt, (group, slot)) in groups.into_iter().zip(slots).enumerate() {
            rows.extend(std::iter::repeat_n(prompt as i64, group.len()));
            starts.extend(group.into_iter().map(|sequence| Start { sequence, prompt_slot: slot }));
        }
        let rows = foil_torch::upload(&[Numbers::Int64(rows)], self.model.device())?;
        self.start(&starts, &hidden.index_select(0, &rows[0]))
    }

    /// Whether the queue still holds sequences of a request.
    fn is_queued(&self, request: usize) -> bool {
        self.queue.front().is_some_and(|next| next.request == request)
    }

    /// The queued sequences of the next prompts: at most `free`, with prompts of at most
    /// [`MAX_PREFILL_TOKENS`] in total unless a single prompt is longer.
    fn next_prompts(&mut self, free: usize) -> Vec<Vec<Queued>> {
        let (mut groups, mut left, mut tokens) = (Vec::new(), free, 0);
        while let Some(next) = self.queue.front().copied()
            && left > 0
        {
            tokens += self.prompt(next.request).len();
            if !groups.is_empty() && tokens > MAX_PREFILL_TOKENS {
                break;
            }
            let group = self.take_sequences(next.request, left);
            left -= group.len();
            groups.push(group);
        }
        groups
    }

    fn take_sequences(&mut self, request: usize, max: usize) -> Vec<Queued> {
        let count = self.queue.iter().take(max).take_while(|next| next.request == request).count();
        self.queue.drain(..count).collect()
    }

    /// Samples the first token of each sequence and assigns a slot to each sequence that continues. `hidden`:
    /// `[sequences, hidden]`.
    fn start(&mut self, starts: &[Start], hidden: &Tensor) -> Result<(), GenerateError> {
        let new = starts.iter().map(|start| {
            let request = &self.requests[start.sequence.request];
            let noise = self.config.noise.completion(request.prompt_id, start.sequence.index);
            Active { sequence: start.sequence, noise, tokens: Vec::new(), log_probs: Vec::new() }
        });
        let mut new: Vec<Active> = new.collect();
        let noise = step_noise(&new);
        let keys = foil_torch::upload(&[noise_keys(&noise)], self.model.device())?;
        let ended = self.extend(&mut new, hidden, &StepNoises { rows: &noise, keys: &keys[0] })?;
        let mut copies = Vec::new();
        for ((active, ended), start) in new.into_iter().zip(ended).zip(starts) {
            if ended {
                self.finish(active);
                continue;
            }
            let slot = self.active.len();
            if slot != start.prompt_slot {
                copies.push((start.prompt_slot, slot));
            }
            self.active.push(active);
        }
        // Copies all together: a sequence may take the slot of a prompt from which others still start.
        self.cache.copy_slots(&copies)?;
        Ok(())
    }

    /// Samples one token for every active sequence and retires those that end.
    fn decode(&mut self) -> Result<(), GenerateError> {
        let ids: Vec<u32> = self.active.iter().filter_map(|active| active.tokens.last().copied()).collect();
        let mut slots: Vec<usize> = (0..ids.len()).collect();
        let noise = step_noise(&self.active);
        // The noise is needed only after the model, but a separate transfer would make the device wait.
        let (hidden, keys) =
            self.model.decode_with_numbers(&ids, &mut self.cache, &slots, vec![noise_keys(&noise)])?;
        self.stats.decoded_rows += ids.len();
        self.stats.steps += 1;
        let mut active = std::mem::take(&mut self.active);
        let ended = self.extend(&mut active, &hidden, &StepNoises { rows: &noise, keys: &keys[0] })?;
        // Goes from the last slot down, so that a sequence that moves into a gap has already been checked.
        for slot in (0..active.len()).rev().filter(|slot| ended[*slot]) {
            slots.swap_remove(slot);
            let ended = active.swap_remove(slot);
            self.finish(ended);
        }
        let moves: Vec<(usize, usize)> = slots
            .into_iter()
            .enumerate()
            .map(|(to, from)| (from, to))
            .filter(|(from, to)| from != to)
            .collect();
        self.cache.move_slots(&moves)?;
        for slot in active.len()..ended.len() {
            self.cache.clear(slot);
        }
        self.active = active;
        Ok(())
    }

    /// Samples the next token of each sequence and returns which sequences end with it. `hidden`:
    /// `[sequences, hidden]`.
    fn extend(
        &mut self,
        sequences: &mut [Active],
        hidden: &Tensor,
        noise: &StepNoises<'_>,
    ) -> Result<Vec<bool>, GenerateError> {
        let requests = self.requests;
        let eos = self.config.eos;
        let contexts: Vec<Context<'_>> = sequences
            .iter()
            .map(|active| Context {
                prompt: &requests[active.sequence.request].prompt,
                completion: &active.tokens,
                eos,
            })
            .collect();
        let tokens = sample(self.model, hidden, &mut self.sampler, &contexts, noise)?;
        for (active, token) in sequences.iter_mut().zip(&tokens) {
            active.tokens.push(token.id);
            active.log_probs.push(token.log_prob);
        }
        Ok(sequences.iter().map(|active| self.has_ended(active)).collect())
    }

    /// Whether a sequence ends with its latest token.
    fn has_ended(&self, active: &Active) -> bool {
        active.tokens.last().is_some_and(|token| self.config.eos.contains(token))
            || active.tokens.len() >= self.config.sampling.max_new_tokens
            || self.find_stop(&active.tokens).is_some()
    }

    /// Byte offset of the first stop string in a completion's text.
    fn find_stop(&self, tokens: &[u32]) -> Option<usize> {
        if self.config.sampling.stop.is_empty() || tokens.len() < self.config.sampling.min_new_tokens {
            return None;
        }
        let text = (self.config.detokenize)(tokens);
        self.config.sampling.stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
    }

    fn finish(&mut self, active: Active) {
        let Active { sequence, mut tokens, mut log_probs, .. } = active;
        let eos = tokens.last().is_some_and(|token| self.config.eos.contains(token));
        let stop = if eos { None } else { self.find_stop(&tokens) };
        if let Some(at) = stop {
            // Keep the longest run of tokens whose text does not overlap the stop string.
            while !tokens.is_empty() && (self.config.detokenize)(&tokens).len() > at {
                tokens.pop();
            }
            log_probs.truncate(tokens.len());
        }
        let prompt_id = self.requests[sequence.request].prompt_id;
        let finished = eos || stop.is_some();
        let completion = Completion { prompt_id, index: sequence.index, tokens, log_probs, finished };
        self.completions[sequence.output_index] = Some(completion);
        self.done += 1;
    }

    fn prompt(&self, request: usize) -> &'a [u32] {
        &self.requests[request].prompt
    }
}
