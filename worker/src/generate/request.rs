//! Requests and results of generation.

use foil_common::spec::Sampling;

use super::NoiseKey;
use super::error::GenerateError;
use crate::model::Inference;

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

/// The work of a generation, in rows that went through the model. Rows whose token was discarded do not
/// count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationStats {
    pub prompt_tokens: usize,
    /// Rows of all decoding steps: one for each token of a completion after the first.
    pub decoded_rows: usize,
    /// Decoding steps of which a token was kept.
    pub steps: usize,
}

/// All completions, in the order of the requests and their indices.
#[derive(Debug)]
pub struct Generation {
    pub completions: Vec<Completion>,
    pub stats: GenerationStats,
}

/// Number of tokens that a slot must hold.
pub(super) fn capacity(
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
