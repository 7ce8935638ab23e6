//! The generation engine: a KV cache with one slot per sequence, a queue of sequences, and a loop of decoding
//! steps.

use std::collections::VecDeque;

use foil_torch::Numbers;
use tch::Tensor;

use super::error::GenerateError;
use super::request::{Completion, GenerateRequest, Generation, GenerationConfig, GenerationStats, capacity};
use super::runner::{Runner, runner};
use super::sequence::{Active, Queued};
use crate::model::{Inference, KvCache, PackedBatch};

/// Maximum number of tokens in one prefill; bounds its memory.
const MAX_PREFILL_TOKENS: usize = 8192;

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
    let mut engine = Engine::new(model, requests, config, capacity)?;
    while engine.admit()? {
        progress(engine.done, engine.completions.len());
        engine.decode()?;
    }
    progress(engine.done, engine.completions.len());
    let completions = engine.completions.into_iter().flatten().collect();
    Ok(Generation { completions, stats: engine.stats })
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

struct Engine<'a> {
    model: &'a Inference<'a>,
    requests: &'a [GenerateRequest],
    config: &'a GenerationConfig<'a>,
    runner: Box<dyn Runner + 'a>,
    cache: KvCache,
    queue: VecDeque<Queued>,
    /// The active sequences, which occupy slots 0 .. active.len() without gaps.
    active: Vec<Active<'a>>,
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
    ) -> Result<Self, GenerateError> {
        let sequences = requests
            .iter()
            .enumerate()
            .flat_map(|(request, r)| (0..r.samples).map(move |index| (request, index)));
        let queue: VecDeque<_> = sequences
            .enumerate()
            .map(|(output_index, (request, index))| Queued { request, index, output_index })
            .collect();
        Ok(Self {
            model,
            requests,
            config,
            runner: runner(model, config, capacity)?,
            // One extra slot for the prefix.
            cache: model.new_cache(config.max_num_seqs + 1, capacity),
            active: Vec::with_capacity(config.max_num_seqs),
            prefix: None,
            completions: vec![None; queue.len()],
            queue,
            done: 0,
            stats: GenerationStats::default(),
        })
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

    /// Samples the first token of each sequence and assigns a slot to each sequence that is not known to end
    /// with it. `hidden`: `[sequences, hidden]`.
    fn start(&mut self, starts: &[Start], hidden: &Tensor) -> Result<(), GenerateError> {
        let new = starts.iter().map(|start| {
            let request = &self.requests[start.sequence.request];
            let noise = self.config.noise.completion(request.prompt_id, start.sequence.index);
            Active::new(start.sequence, &request.prompt, noise)
        });
        let mut new: Vec<Active<'a>> = new.collect();
        for (active, token) in self.runner.start(&new, hidden)?.into_iter().enumerate() {
            new[active].push(token);
        }
        let mut copies = Vec::new();
        for (active, start) in new.into_iter().zip(starts) {
            if self.has_ended(&active) {
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
        self.cache.clear(self.active.len()..self.config.max_num_seqs);
        Ok(())
    }

    /// Runs a decoding step, adds the tokens that are known after it, and retires the sequences that end.
    fn decode(&mut self) -> Result<(), GenerateError> {
        let tokens = self.runner.step(&self.active, &mut self.cache)?;
        let decoded = self.active.iter().filter(|active| !active.tokens.is_empty()).count();
        self.stats.decoded_rows += decoded;
        self.stats.steps += usize::from(decoded > 0);
        for (active, token) in self.active.iter_mut().zip(tokens) {
            active.push(token);
        }
        self.retire()
    }

    /// Finishes the sequences that have ended, and moves others into the gaps.
    fn retire(&mut self) -> Result<(), GenerateError> {
        let before = self.active.len();
        let mut kept: Vec<usize> = (0..before).collect();
        // Goes from the last slot down, so that a sequence that moves into a gap has already been checked.
        for slot in (0..before).rev() {
            if self.has_ended(&self.active[slot]) {
                kept.swap_remove(slot);
                let ended = self.active.swap_remove(slot);
                self.finish(ended);
            }
        }
        if kept.len() == before {
            return Ok(());
        }
        self.runner.keep(&kept)?;
        let moves = kept.into_iter().enumerate().map(|(to, from)| (from, to));
        let moves: Vec<(usize, usize)> = moves.filter(|(from, to)| from != to).collect();
        self.cache.move_slots(&moves)?;
        self.cache.clear(self.active.len()..self.config.max_num_seqs);
        Ok(())
    }

    /// Whether a sequence ends with its latest token.
    fn has_ended(&self, active: &Active<'_>) -> bool {
        active.tokens.last().is_some_and(|token| {
            self.config.eos.contains(token)
                || active.tokens.len() >= self.config.sampling.max_new_tokens
                || self.find_stop(&active.tokens).is_some()
        })
    }

    /// Byte offset of the first stop string in a completion's text.
    fn find_stop(&self, tokens: &[u32]) -> Option<usize> {
        if self.config.sampling.stop.is_empty() || tokens.len() < self.config.sampling.min_new_tokens {
            return None;
        }
        let text = (self.config.detokenize)(tokens);
        self.config.sampling.stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
    }

    fn finish(&mut self, active: Active<'_>) {
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
