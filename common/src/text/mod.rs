//! From dialogues to tokens and back: the one encoder of training, scoring and sampling.
//!
//! A prompt is rendered by a template and encoded; a response to it is encoded together with the prompt's text, so that it gets the
//! tokens it has in context, and must leave the prompt's own tokens as they are. BOS and EOS are put by the policy here, never by
//! the tokenizer's post-processor.

mod encoder;
mod error;
mod export;
mod files;
pub mod inspect;
mod jinja;

mod special;
mod template;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use encoder::{Encoder, TextStream};
pub use error::TextError;
pub use export::TrainedText;
pub use files::{ModelText, TEXT_FILES};
pub use special::TokenIds;

/// A response: a text that is still to be encoded, or the tokens a model wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// `finished`: the response ends here, so EOS follows it. Golden answers, demonstrations and human pairs are finished.
    Text { text: &'a str, finished: bool },
    /// As sampled, with the EOS that the model wrote, if it did. `finished` without EOS: a stop text ended it.
    Tokens { ids: &'a [u32], finished: bool },
}

impl<'a> Response<'a> {
    /// A text that its author finished.
    pub fn finished(text: &'a str) -> Self {
        Response::Text { text, finished: true }
    }
}

/// The most tokens of each part and of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// BOS counts.
    pub prompt: usize,
    /// EOS counts.
    pub response: usize,
    /// The longest sequence.
    pub total: usize,
}

impl Limits {
    /// Of samples, of golden answers and of all prompts that are sampled from: responses get `max_new_tokens` of the `max_length`,
    /// prompts the rest. Golden answers and samples share this budget, or length alone would tell them apart.
    pub fn new(max_length: usize, max_new_tokens: usize) -> Self {
        let response = max_new_tokens.min(max_length.saturating_sub(1));
        Self::of(max_length - response, response)
    }

    /// Each part has its own.
    pub const fn of(prompt: usize, response: usize) -> Self {
        Limits { prompt, response, total: prompt.saturating_add(response) }
    }

    /// Of human pairs and demonstrations, which compete with no sample: a prompt and its response share the `max_length`. Where
    /// they do not fit, a response keeps what the prompt leaves, and at least half of the whole.
    pub fn shared(max_length: usize) -> Self {
        Limits { prompt: max_length, response: max_length, total: max_length }
    }

    /// What parts of these many tokens get.
    fn fit(self, prompt: usize, response: usize) -> (usize, usize) {
        let (prompt, mut response) = (prompt.min(self.prompt), response.min(self.response));
        if prompt.saturating_add(response) > self.total {
            let half = self.total - self.total / 2;
            response = response.min(half.max(self.total.saturating_sub(prompt)));
        }
        (prompt.min(self.total - response), response)
    }
}

/// A prompt's tokens, ready to sample from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    pub ids: Vec<u32>,
    /// Tokens cut off it.
    pub cut: usize,
}

/// A prompt and its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Where the response's tokens start; the loss is taken on `ids[response_start..]`.
    pub response_start: usize,
    /// Tokens cut off the prompt.
    pub prompt_cut: usize,
    /// Tokens cut off the response, EOS counted.
    pub response_cut: usize,
    /// Whether the response ends with EOS, written by the model or put here: it is finished and not cut.
    pub eos: bool,
}

impl Encoded {
    pub fn response(&self) -> &[u32] {
        &self.ids[self.response_start..]
    }
}
