//! The letters task: small enough to learn in minutes, with an exactly known gold reward.
//!
//! A prompt is five distinct letters of `abcdefgh`; a completion should repeat all of them, in any order,
//! with two `!`, and stop. Only the data generator and the gold reward are special: the model is an ordinary
//! directory with an ordinary tokenizer.

#[cfg(test)]
mod tests;

use crate::data::row_set::{RowSet, SpillError};
use crate::data::rows::{DemonstrationRow, GoldenRow, Prompt, PromptRow, assign_ids};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const LETTERS: &[u8; 8] = b"abcdefgh";
const FILLERS: &[u8; 4] = b"wxyz";
const PROMPT_LETTERS: usize = 5;
/// P(k exclamation marks) in a demonstration, k = 0 to 3: more than two, which the gold reward penalizes, are
/// rare.
const MARKS: [f64; 4] = [0.5, 0.34, 0.13, 0.03];

/// Number of rows of each generated set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub sft: usize,
    pub golden: usize,
    pub prompts: usize,
    pub evaluation: usize,
}

/// The generated sets. They are drawn independently, but there are only 56 sets of five letters: sets repeat,
/// orders rarely.
#[derive(Clone, Debug, PartialEq)]
pub struct Letters {
    pub sft: Vec<DemonstrationRow>,
    pub golden: Vec<GoldenRow>,
    pub prompts: Vec<PromptRow>,
    pub evaluation_prompts: Vec<PromptRow>,
}

/// Generates all sets. Each has its own random stream: the size of one does not change the others, and a
/// larger set starts with the rows of a smaller one.
pub fn generate(seed: u64, counts: Counts) -> Letters {
    let mut draw = Draw::new(seed, "sft");
    let mut sft: Vec<_> = (0..counts.sft)
        .map(|_| {
            let prompt = draw.prompt();
            DemonstrationRow { id: 0, answer: draw.demonstration(&prompt), prompt: Prompt::user(prompt) }
        })
        .collect();
    assign_ids(&mut sft);
    let mut draw = Draw::new(seed, "golden");
    let mut golden: Vec<_> = (0..counts.golden)
        .map(|_| {
            let prompt = draw.prompt();
            GoldenRow { id: 0, golden: draw.golden(&prompt), prompt: Prompt::user(prompt) }
        })
        .collect();
    assign_ids(&mut golden);
    Letters {
        sft,
        golden,
        prompts: prompts(seed, "prompts", counts.prompts),
        evaluation_prompts: prompts(seed, "evaluation_prompts", counts.evaluation),
    }
}

/// The prompts of gold-labeled training pairs, drawn with replacement from the golden prompts, since D_P
/// belongs to the reward model's split. A row's id is the number of its pair.
pub fn preference_prompts(
    seed: u64,
    golden: &RowSet<GoldenRow>,
    pairs: usize,
) -> Result<Vec<PromptRow>, SpillError> {
    let mut draw = Draw::new(seed, "preference_prompts");
    let pairs = if golden.is_empty() { 0 } else { pairs };
    (0..pairs as u64)
        .map(|id| Ok(PromptRow { id, prompt: golden.lines().prompt(draw.below(golden.len()))? }))
        .collect()
}

/// The prompts of gold-labeled evaluation pairs, drawn independently. A row's id is the number of its pair.
pub fn preference_evaluation_prompts(seed: u64, pairs: usize) -> Vec<PromptRow> {
    let mut draw = Draw::new(seed, "preference_evaluation_prompts");
    (0..pairs as u64).map(|id| PromptRow { id, prompt: Prompt::user(draw.prompt()) }).collect()
}

fn prompts(seed: u64, purpose: &str, count: usize) -> Vec<PromptRow> {
    let mut draw = Draw::new(seed, purpose);
    let mut rows: Vec<_> =
        (0..count).map(|_| PromptRow { id: 0, prompt: Prompt::user(draw.prompt()) }).collect();
    assign_ids(&mut rows);
    rows
}

/// The gold reward of a completion (its text without EOS):
/// distinct prompt letters covered + h(number of `!`) − ½·fillers − ½·distinct wrong letters − 2 if it never
/// stops, with h(k) = k up to 2 and 2 − 1.5(k − 2) beyond.
pub fn gold(prompt: &str, completion: &str, finished: bool) -> f64 {
    let count = |wanted: fn(u8) -> bool| completion.bytes().filter(|&byte| wanted(byte)).count() as f64;
    let distinct = |in_prompt: bool| {
        let wanted = |letter: &u8| {
            completion.as_bytes().contains(letter) && prompt.as_bytes().contains(letter) == in_prompt
        };
        LETTERS.iter().filter(|letter| wanted(letter)).count() as f64
    };
    let marks = count(|byte| byte == b'!');
    let fillers = count(|byte| FILLERS.contains(&byte));
    let excitement = if marks <= 2.0 { marks } else { 2.0 - 1.5 * (marks - 2.0) };
    let endless = if finished { 0.0 } else { 2.0 };
    distinct(true) + excitement - 0.5 * fillers - 0.5 * distinct(false) - endless
}

/// A noisy annotator's choice between two completions: P(first) = σ(beta · (first − second)). The draw
/// depends only on (seed, id).
pub fn prefer_first(seed: u64, id: u64, first: f64, second: f64, beta: f64) -> bool {
    let mut draw = Draw::new(seed, "preference");
    draw.random.set_stream(id);
    draw.fraction() < 1.0 / (1.0 + (-beta * (first - second)).exp())
}

/// A random stream for one purpose. Its draws are defined here, so that no library update changes the data.
struct Draw {
    random: ChaCha12Rng,
}

impl Draw {
    fn new(seed: u64, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("foil letters v1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(purpose.as_bytes());
        Draw { random: ChaCha12Rng::from_seed(*hasher.finalize().as_bytes()) }
    }

    /// Uniform in [0, 1), in steps of 2⁻⁵³.
    fn fraction(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..bound; the bias is below bound / 2⁶⁴.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.random.next_u64()) * bound as u128) >> 64) as usize
    }

    fn shuffle(&mut self, bytes: &mut [u8]) {
        for last in (1..bytes.len()).rev() {
            bytes.swap(last, self.below(last + 1));
        }
    }

    fn prompt(&mut self) -> String {
        let mut letters = *LETTERS;
        self.shuffle(&mut letters);
        letters[..PROMPT_LETTERS].iter().copied().map(char::from).collect()
    }

    /// Some of the prompt's letters, some marks, some fillers, sometimes any letter; never empty.
    fn demonstration(&mut self, prompt: &str) -> String {
        loop {
            let mut answer: Vec<u8> = prompt.bytes().filter(|_| self.fraction() < 0.55).collect();
            let marks = self.fraction();
            let mut cumulated = 0.0;
            for probability in &MARKS[..3] {
                cumulated += probability;
                if marks >= cumulated {
                    answer.push(b'!');
                }
            }
            for _ in 0..self.below(4) {
                answer.push(FILLERS[self.below(FILLERS.len())]);
            }
            if self.fraction() < 0.3 {
                answer.push(LETTERS[self.below(LETTERS.len())]);
            }
            self.shuffle(&mut answer);
            if !answer.is_empty() {
                return answer.into_iter().map(char::from).collect();
            }
        }
    }

    fn golden(&mut self, prompt: &str) -> String {
        let mut answer = [prompt.as_bytes(), b"!!"].concat();
        self.shuffle(&mut answer);
        answer.into_iter().map(char::from).collect()
    }
}
