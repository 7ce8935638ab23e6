//! The engine: slots of a KV cache, a queue of samples, and one decoding step after another.

use std::collections::VecDeque;

use foil_common::spec::Sampling;
use tch::Tensor;
use thiserror::Error;

use super::NoiseKey;
use super::draw::draw;
use super::noise::{SampleNoise, StepNoise};
use super::sampler::{Context, Sampler};
use crate::model::{Inference, KvCache, ModelError, PackedBatch};

/// Most tokens of one prefill; bounds its memory.
const PREFILL_TOKENS: usize = 8192;

/// A prompt and how many answers to draw.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub prompt_id: u64,
    /// At least one token.
    pub prompt: Vec<u32>,
    pub samples: u32,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    pub prompt_id: u64,
    pub index: u32,
    /// The answer's tokens; EOS included where the model wrote it, a stop text and what follows cut off.
    pub tokens: Vec<u32>,
    /// Of each token, in nats, under the policy itself: at temperature 1, before penalties and filters.
    pub log_probs: Vec<f32>,
    /// EOS or a stop text ended it.
    pub finished: bool,
}

/// How answers are drawn.
pub struct Answering<'a> {
    pub sampling: &'a Sampling,
    /// The tokens that end an answer.
    pub eos: &'a [u32],
    /// Ids of the tokenizer, the only ones that are drawn: a model may have more embeddings. Log-probabilities are still
    /// those of the whole softmax, as in training.
    pub vocabulary: usize,
    pub noise: &'a NoiseKey,
    /// Sequences decoded together; part of what fixes the bits.
    pub slots: usize,
    /// From an answer's tokens to its text, for stop texts.
    pub text: &'a dyn Fn(&[u32]) -> String,
}

/// What a generation cost, in rows through the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub prompt_tokens: usize,
    /// Rows of all decoding steps: one for each token after an answer's first.
    pub decoded_rows: usize,
    pub steps: usize,
}

/// All answers, in the order of the requests and of their samples.
#[derive(Debug)]
pub struct Generation {
    pub answers: Vec<Generated>,
    pub work: Work,
}

/// Why no answers came.
#[derive(Debug, Error)]
pub enum GenerateError {
    #[error("prompt {prompt_id} has no tokens; a prompt needs at least one, such as BOS")]
    EmptyPrompt { prompt_id: u64 },
    #[error(
        "prompt {prompt_id} of {prompt} tokens and {new} new ones exceed the model's {limit} positions; \
         lower text.max_length or sampling.max_new_tokens"
    )]
    TooLong { prompt_id: u64, prompt: usize, new: usize, limit: usize },
    #[error("no slot to decode in; generation.max_num_seqs must be at least 1")]
    NoSlots,
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Draw(#[from] foil_torch::Error),
    #[error("reading logits: {0}")]
    Tensor(#[from] tch::TchError),
}

/// Draws `samples` answers for each request; `progress` hears (answers done, answers in all).
///
/// # Errors
/// Prompts that are empty or do not fit the model, and what libtorch reports.
pub fn generate(
    model: &Inference<'_>,
    requests: &[GenerateRequest],
    how: &Answering<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Generation, GenerateError> {
    let capacity = capacity(model, requests, how)?;
    let mut engine = Engine::new(model, requests, how, capacity);
    while engine.admit()? {
        progress(engine.done, engine.answers.len());
        engine.decode()?;
    }
    progress(engine.done, engine.answers.len());
    let answers = engine.answers.into_iter().flatten().collect();
    Ok(Generation { answers, work: engine.work })
}

/// Tokens that a slot must hold.
fn capacity(
    model: &Inference<'_>,
    requests: &[GenerateRequest],
    how: &Answering<'_>,
) -> Result<usize, GenerateError> {
    if how.slots == 0 {
        return Err(GenerateError::NoSlots);
    }
    let new = how.sampling.max_new_tokens;
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

/// A sample that waits: request and its answer's place in the result.
#[derive(Clone, Copy)]
struct Waiting {
    request: usize,
    index: u32,
    place: usize,
}

/// A sample that runs, in the slot of its position.
struct Running {
    sample: Waiting,
    noise: SampleNoise,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
}

/// A prompt some of whose samples still wait: its keys and values lie in the staging slot.
struct Staged {
    request: usize,
    /// Of its last token, `[1, hidden]`.
    hidden: Tensor,
}

/// A sample that is about to start from a prompt's keys and values.
struct Start {
    sample: Waiting,
    /// Where those lie.
    slot: usize,
}

struct Engine<'a> {
    model: &'a Inference<'a>,
    requests: &'a [GenerateRequest],
    how: &'a Answering<'a>,
    sampler: Sampler<'a>,
    cache: KvCache,
    queue: VecDeque<Waiting>,
    /// Slots 0 .. running.len() are taken, without a gap.
    running: Vec<Running>,
    staged: Option<Staged>,
    answers: Vec<Option<Generated>>,
    done: usize,
    work: Work,
}

impl<'a> Engine<'a> {
    fn new(
        model: &'a Inference<'a>,
        requests: &'a [GenerateRequest],
        how: &'a Answering<'a>,
        capacity: usize,
    ) -> Self {
        let samples = requests
            .iter()
            .enumerate()
            .flat_map(|(request, r)| (0..r.samples).map(move |index| (request, index)));
        let queue: VecDeque<_> =
            samples.enumerate().map(|(place, (request, index))| Waiting { request, index, place }).collect();
        Self {
            model,
            requests,
            how,
            sampler: Sampler::new(how.sampling).within(how.vocabulary),
            // One slot more: the staging slot.
            cache: model.new_cache(how.slots + 1, capacity),
            running: Vec::with_capacity(how.slots),
            staged: None,
            answers: vec![None; queue.len()],
            queue,
            done: 0,
            work: Work::default(),
        }
    }

    /// Fills free slots from the queue; false when nothing runs and nothing waits.
    fn admit(&mut self) -> Result<bool, GenerateError> {
        // An answer may end with its first token and leave its slot free again.
        while self.running.len() < self.how.slots && !self.queue.is_empty() {
            self.admit_group()?;
        }
        Ok(!self.running.is_empty())
    }

    /// Admits the staged prompt's samples, or those of as many prompts as one prefill takes.
    fn admit_group(&mut self) -> Result<(), GenerateError> {
        let free = self.how.slots - self.running.len();
        if let Some(staged) = self.staged.take() {
            let samples = self.take_samples(staged.request, free);
            let hidden = staged.hidden.expand([samples.len() as i64, -1], false);
            let starts: Vec<Start> =
                samples.into_iter().map(|sample| Start { sample, slot: self.how.slots }).collect();
            self.start(&starts, &hidden)?;
            if self.waits(staged.request) {
                self.staged = Some(staged);
            }
            return Ok(());
        }
        let groups = self.next_prompts(free);
        let prompts: Vec<&[u32]> = groups.iter().map(|group| self.prompt(group[0].request)).collect();
        let batch = PackedBatch::of_sequences(&prompts, self.model.device())?;
        self.work.prompt_tokens += batch.rows();
        let first = self.how.slots - groups.len();
        let slots: Vec<usize> = (first..self.how.slots).collect();
        let hidden = self.model.prefill(&batch, &mut self.cache, &slots)?; // [prompts, hidden]
        let last = groups.len() as i64 - 1;
        if let Some(request) = groups.last().map(|group| group[0].request)
            && self.waits(request)
        {
            self.cache.copy_slots(&[(self.how.slots - 1, self.how.slots)])?;
            self.staged = Some(Staged { request, hidden: hidden.narrow(0, last, 1) });
        }
        let (mut starts, mut rows) = (Vec::new(), Vec::new());
        for (prompt, (group, slot)) in groups.into_iter().zip(slots).enumerate() {
            rows.extend(std::iter::repeat_n(prompt as i64, group.len()));
            starts.extend(group.into_iter().map(|sample| Start { sample, slot }));
        }
        let rows = Tensor::from_slice(&rows).to_device(self.model.device());
        self.start(&starts, &hidden.index_select(0, &rows))
    }

    /// Whether samples of a request are still in the queue.
    fn waits(&self, request: usize) -> bool {
        self.queue.front().is_some_and(|next| next.request == request)
    }

    /// The waiting samples of the next prompts, at most `free` samples, within a prefill's bound.
    fn next_prompts(&mut self, free: usize) -> Vec<Vec<Waiting>> {
        let (mut groups, mut left, mut tokens) = (Vec::new(), free, 0);
        while let Some(next) = self.queue.front().copied()
            && left > 0
        {
            tokens += self.prompt(next.request).len();
            if !groups.is_empty() && tokens > PREFILL_TOKENS {
                break;
            }
            let group = self.take_samples(next.request, left);
            left -= group.len();
            groups.push(group);
        }
        groups
    }

    fn take_samples(&mut self, request: usize, most: usize) -> Vec<Waiting> {
        let count = self.queue.iter().take(most).take_while(|next| next.request == request).count();
        self.queue.drain(..count).collect()
    }

    /// Draws the first token of each sample and gives those that go on a slot. `hidden`: `[samples, hidden]`.
    fn start(&mut self, starts: &[Start], hidden: &Tensor) -> Result<(), GenerateError> {
        let new = starts.iter().map(|start| {
            let request = &self.requests[start.sample.request];
            let noise = self.how.noise.sample(request.prompt_id, start.sample.index);
            Running { sample: start.sample, noise, tokens: Vec::new(), log_probs: Vec::new() }
        });
        let mut new: Vec<Running> = new.collect();
        let ended = self.extend(&mut new, hidden)?;
        let mut copies = Vec::new();
        for ((running, ended), start) in new.into_iter().zip(ended).zip(starts) {
            if ended {
                self.finish(running);
                continue;
            }
            let to = self.running.len();
            if to != start.slot {
                copies.push((start.slot, to));
            }
            self.running.push(running);
        }
        // All at once: a prompt's slot may be one that a sample takes.
        self.cache.copy_slots(&copies)?;
        Ok(())
    }

    /// One token for every running sample; finished ones leave.
    fn decode(&mut self) -> Result<(), GenerateError> {
        let ids: Vec<u32> =
            self.running.iter().filter_map(|running| running.tokens.last().copied()).collect();
        let slots: Vec<usize> = (0..ids.len()).collect();
        let hidden = self.model.decode(&ids, &mut self.cache, &slots)?;
        self.work.decoded_rows += ids.len();
        self.work.steps += 1;
        let mut running = std::mem::take(&mut self.running);
        let ended = self.extend(&mut running, &hidden)?;
        // From the last slot down, so that what moves into a gap has been looked at already.
        for slot in (0..running.len()).rev().filter(|slot| ended[*slot]) {
            let last = running.len() - 1;
            self.cache.move_slot(last, slot)?;
            let ended = running.swap_remove(slot);
            self.finish(ended);
        }
        self.running = running;
        Ok(())
    }

    /// Draws the next token of each; true where its answer ends with it. `hidden`: `[samples, hidden]`.
    fn extend(&mut self, samples: &mut [Running], hidden: &Tensor) -> Result<Vec<bool>, GenerateError> {
        let requests = self.requests;
        let eos = self.how.eos;
        let noise: Vec<StepNoise> =
            samples.iter().map(|running| running.noise.step(running.tokens.len())).collect();
        let contexts: Vec<Context<'_>> = samples
            .iter()
            .map(|running| Context {
                prompt: &requests[running.sample.request].prompt,
                answer: &running.tokens,
                eos,
            })
            .collect();
        let tokens = draw(self.model, hidden, &mut self.sampler, &contexts, &noise)?;
        for (running, token) in samples.iter_mut().zip(&tokens) {
            running.tokens.push(token.id);
            running.log_probs.push(token.log_prob);
        }
        Ok(samples.iter().map(|running| self.ends(running)).collect())
    }

    /// Whether an answer ends with its latest token.
    fn ends(&self, running: &Running) -> bool {
        running.tokens.last().is_some_and(|token| self.how.eos.contains(token))
            || running.tokens.len() >= self.how.sampling.max_new_tokens
            || self.stop(&running.tokens).is_some()
    }

    /// Where the first stop text begins in an answer's text.
    fn stop(&self, tokens: &[u32]) -> Option<usize> {
        if self.how.sampling.stop.is_empty() || tokens.len() < self.how.sampling.min_new_tokens {
            return None;
        }
        let text = (self.how.text)(tokens);
        self.how.sampling.stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
    }

    fn finish(&mut self, running: Running) {
        let Running { sample, mut tokens, mut log_probs, .. } = running;
        let eos = tokens.last().is_some_and(|token| self.how.eos.contains(token));
        let stop = if eos { None } else { self.stop(&tokens) };
        if let Some(at) = stop {
            // The longest run of tokens whose text does not reach into the stop text.
            while !tokens.is_empty() && (self.how.text)(&tokens).len() > at {
                tokens.pop();
            }
            log_probs.truncate(tokens.len());
        }
        let prompt_id = self.requests[sample.request].prompt_id;
        let finished = eos || stop.is_some();
        let answer = Generated { prompt_id, index: sample.index, tokens, log_probs, finished };
        self.answers[sample.place] = Some(answer);
        self.done += 1;
    }

    fn prompt(&self, request: usize) -> &'a [u32] {
        &self.requests[request].prompt
    }
}
