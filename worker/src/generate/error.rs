use thiserror::Error;

use crate::model::ModelError;

/// Why generation failed.
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
    Sampling(#[from] foil_torch::Error),
    #[error("reading logits: {0}")]
    Tensor(#[from] tch::TchError),
}
