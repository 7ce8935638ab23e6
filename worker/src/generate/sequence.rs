//! The sequences of a generation.

use super::Token;
use super::noise::CompletionNoise;
use super::sampler::Context;

/// A sequence in the queue.
#[derive(Clone, Copy)]
pub(super) struct Queued {
    pub(super) request: usize,
    pub(super) index: u32,
    /// Position of its completion in the result.
    pub(super) output_index: usize,
}

/// A sequence being decoded.
pub(super) struct Active<'a> {
    pub(super) sequence: Queued,
    pub(super) prompt: &'a [u32],
    pub(super) noise: CompletionNoise,
    /// The tokens generated so far, as far as the host has read them.
    pub(super) tokens: Vec<u32>,
    pub(super) log_probs: Vec<f32>,
}

impl<'a> Active<'a> {
    pub(super) fn new(sequence: Queued, prompt: &'a [u32], noise: CompletionNoise) -> Self {
        Self { sequence, prompt, noise, tokens: Vec::new(), log_probs: Vec::new() }
    }

    pub(super) fn push(&mut self, token: Token) {
        self.tokens.push(token.id);
        self.log_probs.push(token.log_prob);
    }

    pub(super) fn context<'c>(&'c self, eos: &'c [u32]) -> Context<'c> {
        Context { prompt: self.prompt, completion: &self.tokens, eos }
    }
}
