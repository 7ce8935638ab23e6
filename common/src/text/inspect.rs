//! A view of data as the models read it: every token, where loss and reward are read, and what is truncated.

use super::{Encoded, Encoder, Limits, Response, TextError};
use crate::data::rows::Prompt;
use crate::plural::{agreeing, counted};
use crate::stats::{Moments, wilson_interval};
use serde::Serialize;
use std::fmt;

/// Number of tokens shown at a row's start, on each side of the response's start, and at the end.
const SHOWN: usize = 8;

/// One token of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenView {
    pub id: u32,
    /// Text in the vocabulary; empty for an id that the tokenizer does not have.
    pub text: String,
    pub read: Read,
}

/// The use of a token's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    /// Part of the prompt: context only.
    Nothing,
    /// Part of a response that is scored at its end.
    Response,
    /// The policy is trained to predict this token.
    Loss,
    /// The last token of a response: the reward model's score is read here.
    Reward,
}

/// The model that reads a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Supervised fine-tuning of the policy.
    Policy,
    /// The reward model, in training and in scoring.
    Reward,
}

/// One sequence as the models read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowView {
    pub tokens: Vec<TokenView>,
    pub response_start: usize,
    pub prompt_cut: usize,
    pub response_cut: usize,
    pub eos: bool,
}

/// The view of a prompt with a response, or of a prompt alone, as completions are sampled from it.
pub fn row(
    encoder: &Encoder,
    prompt: &Prompt,
    response: Option<(Reader, &str)>,
    limits: Limits,
) -> Result<RowView, TextError> {
    let Some((reader, response)) = response else {
        let prompt = encoder.prompt(prompt, limits.prompt)?;
        let tokens = views(encoder, &prompt.ids, prompt.ids.len(), Reader::Policy);
        let response_start = tokens.len();
        return Ok(RowView { tokens, response_start, prompt_cut: prompt.cut, response_cut: 0, eos: false });
    };
    let encoded = encoder.dialogue(prompt, Response::finished(response), limits)?;
    let Encoded { ids, response_start, prompt_cut, response_cut, eos } = encoded;
    Ok(RowView {
        tokens: views(encoder, &ids, response_start, reader),
        response_start,
        prompt_cut,
        response_cut,
        eos,
    })
}

fn views(encoder: &Encoder, ids: &[u32], response_start: usize, reader: Reader) -> Vec<TokenView> {
    let read = |position: usize| match reader {
        _ if position < response_start => Read::Nothing,
        Reader::Policy => Read::Loss,
        Reader::Reward if position + 1 == ids.len() => Read::Reward,
        Reader::Reward => Read::Response,
    };
    let view = |(position, id): (usize, &u32)| TokenView {
        id: *id,
        text: encoder.token(*id).unwrap_or_default(),
        read: read(position),
    };
    ids.iter().enumerate().map(view).collect()
}

impl fmt::Display for RowView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.tokens.len();
        let mut hidden = 0;
        for (position, token) in self.tokens.iter().enumerate() {
            let near_response =
                position + SHOWN >= self.response_start && position < self.response_start + SHOWN;
            if position >= SHOWN && position + SHOWN < count && !near_response {
                hidden += 1;
                continue;
            }
            if hidden > 0 {
                writeln!(f, "      … {} …", counted(hidden, "token"))?;
                hidden = 0;
            }
            let read = match token.read {
                Read::Nothing => "",
                Read::Response => "response",
                Read::Loss => "loss",
                Read::Reward => "reward",
            };
            writeln!(
                f,
                "{}",
                format!("{position:>5} {:>7} {:<24} {read}", token.id, format!("{:?}", token.text))
                    .trim_end()
            )?;
        }
        write!(
            f,
            "      {}: prompt {}, response {}",
            counted(count, "token"),
            self.response_start,
            count - self.response_start
        )?;
        if self.eos {
            f.write_str(" with EOS")?;
        }
        for (cut, what) in [(self.prompt_cut, "prompt"), (self.response_cut, "response (unfinished: no EOS)")]
        {
            if cut > 0 {
                write!(f, "; {} cut off the {what}", counted(cut, "token"))?;
            }
        }
        Ok(())
    }
}

/// Statistics of the lengths of texts in tokens, before truncation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    pub rows: usize,
    /// Rows that fit their budget.
    pub fit: usize,
    pub budget: usize,
    /// Whether the budget is for the text and the other part of its row together.
    pub is_shared: bool,
    pub shortest: usize,
    pub median: usize,
    /// The 90th percentile.
    pub ninth_decile: usize,
    pub longest: usize,
}

impl Lengths {
    /// Lengths of texts with a budget each.
    pub fn of(mut lengths: Vec<usize>, budget: usize) -> Self {
        lengths.sort_unstable();
        let at = |tenths: usize| {
            lengths.get((lengths.len().saturating_sub(1)) * tenths / 10).copied().unwrap_or(0)
        };
        Lengths {
            rows: lengths.len(),
            fit: lengths.iter().filter(|&&length| length <= budget).count(),
            budget,
            is_shared: false,
            shortest: at(0),
            median: at(5),
            ninth_decile: at(9),
            longest: at(10),
        }
    }

    /// Lengths of texts that share `budget` with the other part of their row, and the number of those that
    /// are not cut.
    pub fn sharing(lengths: Vec<usize>, budget: usize, fit: usize) -> Self {
        Lengths { fit, is_shared: true, ..Self::of(lengths, budget) }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lengths { rows, fit, budget, is_shared, shortest, median, ninth_decile, longest } = self;
        let shared = if *is_shared { ", with the other part" } else { "" };
        let fits = agreeing(*fit, "fits", "fit");
        write!(
            f,
            "{fit} of {rows} {fits} {budget} tokens{shared}; shortest {shortest}, median {median}, nine in ten ≤ {ninth_decile}, longest {longest}"
        )
    }
}

/// Tokens of a prompt, before truncation.
pub fn prompt_length(encoder: &Encoder, prompt: &Prompt) -> Result<usize, TextError> {
    Ok(encoder.prompt(prompt, usize::MAX)?.ids.len())
}

/// Tokens of a response, before truncation, EOS included.
pub fn response_length(encoder: &Encoder, prompt: &Prompt, response: &str) -> Result<usize, TextError> {
    let all = Limits::of(usize::MAX, usize::MAX);
    Ok(encoder.dialogue(prompt, Response::finished(response), all)?.response().len())
}

/// How well length alone predicts which response of a pair is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LengthAccuracy {
    pub pairs: usize,
    /// Fraction of pairs whose chosen response is the longer one, ties counted half; both truncated to the
    /// space that their prompt leaves.
    pub longer_chosen: f64,
    /// Mean tokens, after truncation.
    pub mean_chosen: f64,
    pub mean_rejected: f64,
}

impl LengthAccuracy {
    /// Computes the statistics from pairs of lengths, chosen first.
    pub fn of(lengths: &[(usize, usize)]) -> Self {
        let count = lengths.len().max(1) as f64;
        let wins: f64 = lengths
            .iter()
            .map(|(chosen, rejected)| match chosen.cmp(rejected) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            })
            .sum();
        LengthAccuracy {
            pairs: lengths.len(),
            longer_chosen: wins / count,
            mean_chosen: lengths.iter().map(|(chosen, _)| *chosen as f64).sum::<f64>() / count,
            mean_rejected: lengths.iter().map(|(_, rejected)| *rejected as f64).sum::<f64>() / count,
        }
    }

    /// Accuracy of the better of the rules "longer is better" and "shorter is better".
    pub fn accuracy(&self) -> f64 {
        self.longer_chosen.max(1.0 - self.longer_chosen)
    }

    /// The standard error of [`Self::accuracy`].
    pub fn standard_error(&self) -> f64 {
        let accuracy = self.accuracy();
        (accuracy * (1.0 - accuracy) / self.pairs.max(1) as f64).sqrt()
    }

    /// [`Self::accuracy`] with its error, in percent; with its 95 % interval if no pair goes against the
    /// rule.
    fn percent(&self) -> String {
        let (accuracy, pairs) = (self.accuracy(), self.pairs as f64);
        let all =
            Moments { count: self.pairs as u64, sum: pairs, sum_of_squares: pairs, ..Moments::default() };
        match wilson_interval(&all).filter(|_| accuracy >= 1.0) {
            Some((low, high)) => format!("100.0 [{:.1}, {:.1}]", 100.0 * low, 100.0 * high),
            None => format!("{:.1} ± {:.1}", 100.0 * accuracy, 100.0 * self.standard_error()),
        }
    }
}

impl fmt::Display for LengthAccuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = if self.longer_chosen >= 0.5 { "longer" } else { "shorter" };
        write!(
            f,
            "length alone (the {rule} response) predicts {} % of {}; mean tokens {:.1} chosen, {:.1} rejected",
            self.percent(),
            counted(self.pairs, "pair"),
            self.mean_chosen,
            self.mean_rejected
        )
    }
}
