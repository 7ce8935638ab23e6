//! The completions of one chunk, joined with their rewards.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use foil_common::selection::{Part, ScoredCompletion, parts};
use foil_common::spec::Method;
use foil_proto::v1::{self, Selection};
use prost::Message;
use tonic::Status;

use super::cache::Size;
use super::read::damaged;

/// Completions by the prompt's id.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) prompts: BTreeMap<u64, Group>,
    bytes: usize,
}

/// The completions of one prompt, ordered by index.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    pub(super) completions: Vec<Sample>,
    pub(super) golden_reward: Option<f64>,
}

#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) sample: v1::Sample,
    pub(super) selection: Selection,
}

/// The encoded parts of a chunk.
#[derive(Debug)]
pub(super) enum Encoded {
    /// Completions, with or without their rewards.
    Samples(Bytes),
    Scored {
        samples: Bytes,
        scores: Bytes,
    },
    Paired {
        samples: Bytes,
        pairs: Bytes,
    },
}

impl Size for Chunk {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Chunk {
    /// Decodes a chunk. `objects` names it in errors.
    pub(super) fn decode(encoded: Encoded, objects: &str) -> Result<Self, Status> {
        let (samples, rest) = match encoded {
            Encoded::Samples(samples) => (samples, None),
            Encoded::Scored { samples, scores } => {
                let scores: v1::RewardScores = decode(scores, objects)?;
                (samples, Some(Rest::Scores(scores)))
            }
            Encoded::Paired { samples, pairs } => {
                let pairs: v1::PairScores = decode(pairs, objects)?;
                (samples, Some(Rest::Pairs(pairs)))
            }
        };
        // Strings and lists have their own allocations.
        let bytes = samples.len().saturating_mul(2);
        let batch: v1::SampleBatch = decode(samples, objects)?;
        let mut chunk = Self { prompts: BTreeMap::new(), bytes };
        for sample in batch.samples {
            chunk.bytes += size_of::<Sample>();
            let group = chunk.prompts.entry(sample.prompt_id).or_default();
            group.completions.push(Sample { sample, selection: Selection::Unspecified });
        }
        for group in chunk.prompts.values_mut() {
            group.completions.sort_by_key(|completion| completion.sample.index);
        }
        match rest {
            None => {}
            Some(Rest::Scores(scores)) => chunk.add_scores(&scores),
            Some(Rest::Pairs(pairs)) => chunk.add_pairs(&pairs),
        }
        Ok(chunk)
    }

    fn add_scores(&mut self, scores: &v1::RewardScores) {
        let scores: HashMap<(u64, u32), f64> =
            scores.scores.iter().map(|score| ((score.prompt_id, score.index), score.reward)).collect();
        for Sample { sample, .. } in self.prompts.values_mut().flat_map(|group| &mut group.completions) {
            sample.reward = scores.get(&(sample.prompt_id, sample.index)).copied().or(sample.reward);
        }
    }

    /// The pairs of a row are in the order of its completions.
    fn add_pairs(&mut self, pairs: &v1::PairScores) {
        let mut taken: HashMap<u64, usize> = HashMap::new();
        for pair in &pairs.pairs {
            let Some(group) = self.prompts.get_mut(&pair.row_id) else { continue };
            group.golden_reward = Some(pair.chosen);
            let next = taken.entry(pair.row_id).or_default();
            if let Some(completion) = group.completions.get_mut(*next) {
                completion.sample.reward = Some(pair.rejected);
            }
            *next += 1;
        }
    }

    /// Records how the policy method used each completion.
    pub(super) fn select(&mut self, method: &Method, select_worst: bool) {
        let sign = if select_worst { -1.0 } else { 1.0 };
        for group in self.prompts.values_mut() {
            let scored = group.completions.iter().map(|Sample { sample, .. }| {
                let reward = sign * sample.reward?;
                Some(ScoredCompletion { text: &sample.text, tokens: sample.tokens.len(), reward })
            });
            let Some(scored) = scored.collect::<Option<Vec<_>>>() else { continue };
            let parts = parts(method, &scored);
            for (completion, part) in group.completions.iter_mut().zip(parts) {
                completion.selection = match part {
                    Part::Unused => Selection::Unused,
                    Part::Used => Selection::Used,
                    Part::Chosen => Selection::Chosen,
                    Part::Rejected => Selection::Rejected,
                };
            }
        }
    }
}

enum Rest {
    Scores(v1::RewardScores),
    Pairs(v1::PairScores),
}

fn decode<T: Message + Default>(bytes: Bytes, objects: &str) -> Result<T, Status> {
    T::decode(bytes).map_err(|error| damaged(objects, &error.to_string()))
}

#[cfg(test)]
mod tests {
    use foil_common::spec::Rejection;

    use super::*;

    fn samples() -> Bytes {
        let sample = |prompt_id, index, text: &str| v1::Sample {
            prompt_id,
            index,
            text: text.into(),
            tokens: vec![1, 2],
            ..Default::default()
        };
        let samples = vec![sample(5, 1, "b"), sample(5, 0, "a"), sample(3, 0, "c"), sample(3, 1, "d")];
        v1::SampleBatch { samples, ..Default::default() }.encode_to_vec().into()
    }

    fn rewards(chunk: &Chunk, prompt: u64) -> Vec<Option<f64>> {
        chunk.prompts[&prompt].completions.iter().map(|completion| completion.sample.reward).collect()
    }

    #[test]
    fn scores_are_joined_by_prompt_and_index_and_the_method_selects() {
        let score = |prompt_id, index, reward| v1::RewardScore { prompt_id, index, reward };
        let scores = vec![score(3, 0, 0.5), score(5, 0, 1.0), score(5, 1, 2.0), score(3, 1, -1.0)];
        let scores = v1::RewardScores { scores, ..Default::default() }.encode_to_vec().into();
        let mut chunk = Chunk::decode(Encoded::Scored { samples: samples(), scores }, "o").unwrap();
        assert_eq!(rewards(&chunk, 5), [Some(1.0), Some(2.0)]);
        assert_eq!(rewards(&chunk, 3), [Some(0.5), Some(-1.0)]);
        let selected = |chunk: &Chunk, prompt: u64| {
            let group = &chunk.prompts[&prompt];
            group.completions.iter().map(|completion| completion.selection).collect::<Vec<_>>()
        };
        chunk.select(&Method::Rejection(Rejection), false);
        assert_eq!(selected(&chunk, 5), [Selection::Unused, Selection::Chosen]);
        chunk.select(&Method::Rejection(Rejection), true);
        assert_eq!(
            selected(&chunk, 5),
            [Selection::Chosen, Selection::Unused],
            "the control selects the worst"
        );
    }

    #[test]
    fn pairs_are_joined_in_the_order_of_completions() {
        let pair = |row_id, chosen, rejected| v1::PairScore { row_id, chosen, rejected };
        let pairs = vec![pair(5, 9.0, 1.0), pair(3, 8.0, 3.0), pair(5, 9.0, 2.0), pair(77, 0.0, 0.0)];
        let pairs = v1::PairScores { pairs, ..Default::default() }.encode_to_vec().into();
        let chunk = Chunk::decode(Encoded::Paired { samples: samples(), pairs }, "o").unwrap();
        assert_eq!(
            (rewards(&chunk, 5), chunk.prompts[&5].golden_reward),
            (vec![Some(1.0), Some(2.0)], Some(9.0))
        );
        assert_eq!((rewards(&chunk, 3), chunk.prompts[&3].golden_reward), (vec![Some(3.0), None], Some(8.0)));
    }

    #[test]
    fn completions_without_rewards_are_not_said_to_be_unused() {
        let mut chunk = Chunk::decode(Encoded::Samples(samples()), "o").unwrap();
        chunk.select(&Method::Rejection(Rejection), false);
        let all = chunk.prompts.values().flat_map(|group| &group.completions);
        assert!(all.into_iter().all(|completion| completion.selection == Selection::Unspecified));
    }

    #[test]
    fn bytes_that_are_no_chunk_are_an_error_that_names_the_object() {
        let error = Chunk::decode(Encoded::Samples(vec![0xff; 9].into()), "jobs/j/x").unwrap_err();
        assert!(error.message().contains("jobs/j/x"), "{error}");
    }
}
