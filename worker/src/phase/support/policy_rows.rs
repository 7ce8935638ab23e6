//! Scored answers as a policy reads them: what its Reference and its training phase have in common.

use std::collections::BTreeMap;

use foil_common::data::rows::{Prompt, PromptRow};
use foil_common::spec;
use foil_proto::v1;
use prost::Message;

use super::dialogue::Reader;
use super::error::samples_error;
use super::rows::{Sampled, Samples, Span, read_prompts, read_scores};
use crate::objective::group::{Compared, Judged, answers_read};
use crate::phase::{PhaseError, TaskContext};
use crate::task_io::artifact_cache::ArtifactCache;
use crate::train::AnswerGroup;

/// The answers to one prompt, with their rewards.
pub(in crate::phase) struct ScoredAnswers<'a> {
    row: u64,
    prompt: &'a Prompt,
    pub(in crate::phase) answers: &'a [Sampled],
    /// In the answers' order, as the reward model gave them.
    pub(in crate::phase) rewards: Vec<f64>,
}

impl ScoredAnswers<'_> {
    /// As the policy's method judges them. Under `select_worst` every reward has its sign turned: a negative control, under
    /// which an honest experiment must fail.
    pub(in crate::phase) fn judged(&self, job: &spec::Job) -> Vec<Judged<'_>> {
        let sign = if job.controls.select_worst { -1.0 } else { 1.0 };
        let answers = self.answers.iter().zip(&self.rewards);
        answers
            .map(|(answer, reward)| Judged {
                text: &answer.sample.text,
                tokens: answer.sample.tokens.len(),
                reward: sign * reward,
            })
            .collect()
    }

    /// The indices of the answers that the job's method reads.
    pub(in crate::phase) fn read(&self, job: &spec::Job) -> Vec<usize> {
        answers_read(&job.policy_step.method, &self.judged(job))
    }

    /// The answers `read` in the very tokens that were sampled.
    pub(in crate::phase) fn group(
        &self,
        reader: &Reader<'_>,
        read: &[usize],
    ) -> Result<AnswerGroup, PhaseError> {
        Ok(AnswerGroup {
            id: self.row,
            prompt: reader.prompt(self.row, self.prompt, reader.job.sampling.max_new_tokens)?,
            answers: read.iter().map(|&answer| self.answers[answer].sample.tokens.clone()).collect(),
        })
    }
}

/// Prompts with their samples and scores.
pub(in crate::phase) struct PolicyRows {
    pub(in crate::phase) prompts: Vec<PromptRow>,
    samples: Samples,
    scores: Scores,
}

/// By prompt and index.
type Scores = BTreeMap<(u64, u32), f64>;

impl PolicyRows {
    /// Rows `span` of the prompts. `samples` and `scores` hold theirs at least.
    pub(in crate::phase) fn read(
        context: &mut TaskContext,
        prompts: &Option<v1::Dataset>,
        span: Span,
        samples: &Option<v1::Artifact>,
        scores: &Option<v1::Artifact>,
    ) -> Result<Self, PhaseError> {
        Ok(Self {
            prompts: read_prompts(&mut context.cache, prompts, span)?,
            samples: Samples::read(&mut context.cache, samples)?,
            scores: read_scores(&mut context.cache, scores)?,
        })
    }

    /// Every prompt's answers, in the order of rows.
    ///
    /// # Errors
    /// A prompt without samples, or a sample without a score.
    pub(in crate::phase) fn scored(&self) -> Result<Vec<ScoredAnswers<'_>>, PhaseError> {
        let scored = self.prompts.iter().map(|row| {
            let answers = self.samples.of(row.id)?;
            let rewards = rewards_of(answers, &self.scores)?;
            Ok(ScoredAnswers { row: row.id, prompt: &row.prompt, answers, rewards })
        });
        scored.collect()
    }
}

fn rewards_of(answers: &[Sampled], scores: &Scores) -> Result<Vec<f64>, PhaseError> {
    let rewards = answers.iter().map(|answer| {
        let key = (answer.sample.prompt_id, answer.sample.index);
        scores.get(&key).copied().ok_or_else(|| missing("scores", key))
    });
    rewards.collect()
}

fn missing(object: &str, (row, index): (u64, u32)) -> PhaseError {
    PhaseError::Samples { object: object.to_owned(), what: format!("they lack sample {index} of row {row}") }
}

/// What samples are compared with in training, by prompt and index.
#[derive(Debug, Default)]
pub(in crate::phase) struct Comparisons(BTreeMap<(u64, u32), Compared>);

impl Comparisons {
    /// Of a Reference phase; empty where the task names none.
    pub(in crate::phase) fn read(
        cache: &mut ArtifactCache,
        artifact: &Option<v1::Artifact>,
    ) -> Result<Self, PhaseError> {
        let mut comparisons = BTreeMap::new();
        for object in artifact.iter().flat_map(|artifact| &artifact.objects) {
            let bytes = cache.read(object)?;
            let batch = v1::ReferenceLogProbs::decode(bytes.as_slice())
                .map_err(|error| samples_error(object, error.to_string()))?;
            comparisons.extend(batch.samples.into_iter().map(|sample| {
                let compared = Compared { reference: sample.reference, sampler: sample.sampler };
                ((sample.prompt_id, sample.index), compared)
            }));
        }
        Ok(Self(comparisons))
    }

    /// Of one sample, as many numbers as `method` needs of it; empty ones for a method that compares with nothing.
    ///
    /// # Errors
    /// Numbers that are not there, or not one for each of the sample's tokens.
    pub(in crate::phase) fn of(
        &self,
        sample: &v1::Sample,
        method: &spec::Method,
    ) -> Result<Compared, PhaseError> {
        let compared = self.0.get(&(sample.prompt_id, sample.index)).cloned().unwrap_or_default();
        let expected = |needed: bool| if needed { sample.tokens.len() } else { 0 };
        let complete = compared.reference.len() == expected(method.reference().is_some())
            && compared.sampler.len() == expected(method.needs_sampler());
        if complete { Ok(compared) } else { Err(missing("reference", (sample.prompt_id, sample.index))) }
    }
}
