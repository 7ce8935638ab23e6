//! Generate: samples completions of a policy for a chunk of prompts.

use foil_common::failpoint;
use prost::Message;

use super::support::completions::{self, GenerationRequest};
use super::support::records::SampleBatch;
use super::support::rows;
use super::{ChunkOutput, PhaseError, TaskContext};
use crate::evaluate;
use crate::task::{ChunkTask, Generate};

pub(super) fn run(
    context: &mut TaskContext,
    task: &ChunkTask,
    work: &Generate,
) -> Result<ChunkOutput, PhaseError> {
    let prompts = rows::read_prompts(&mut context.cache, &work.prompts, task.rows)?;
    let policy = context.policy(&work.policy)?;

    failpoint::hit("phase.generate")?;
    let request = GenerationRequest {
        rows: &prompts,
        samples: work.samples,
        sampling: &work.sampling,
        round: task.phase.round,
        purpose: task.phase.purpose(),
    };
    let mut samples = completions::generate(context, &policy, &request)?;
    completions::fill_gold(&context.job, &prompts, &mut samples, work.samples);

    let mut metrics = completions::metrics(&samples);
    // Equal completions give no training signal: none is better or worse.
    let duplicates =
        evaluate::duplicates(samples.iter().map(|sample| (sample.prompt_id, sample.tokens.as_slice())));
    for is_duplicate in duplicates {
        metrics.push("repeat_rate", if is_duplicate { 1.0 } else { 0.0 });
    }
    let batch = SampleBatch {
        phase: task.phase.name.clone(),
        chunk: task.chunk,
        samples,
        tokenizer_blake3: policy.tokenizer.clone(),
    };
    Ok(ChunkOutput { bytes: batch.encode_to_vec(), moments: metrics.records(), calibration: None })
}
