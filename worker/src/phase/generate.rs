//! Generate: samples completions of a policy for a chunk of prompts.

use foil_common::spec::Sampling;
use foil_proto::v1;
use prost::Message;

use super::support::answers::{self, Draw};
use super::support::error::need;
use super::support::rows;
use super::{Chunk, ChunkOutput, PhaseError, TaskContext};
use crate::evaluate;
use foil_common::failpoint;

pub(super) fn run(
    context: &mut TaskContext,
    chunk: &Chunk,
    work: &v1::Generate,
) -> Result<ChunkOutput, PhaseError> {
    let prompts = rows::read_prompts(&mut context.cache, &work.prompts, chunk.span)?;
    let sampling = Sampling::try_from(need(&work.sampling, "its sampling")?)?;
    let policy = context.policy(&work.policy)?;

    failpoint::hit("phase.generate")?;
    let draw = Draw { rows: &prompts, samples: work.samples, sampling: &sampling, purpose: chunk.purpose() };
    let mut samples = answers::draw(context, &policy, chunk, &draw)?;
    answers::fill_gold(&context.job, &prompts, &mut samples, work.samples);

    let mut figures = answers::describe(&samples);
    // Equal completions give no training signal: none of them is better or worse.
    for is_duplicate in
        evaluate::duplicates(samples.iter().map(|sample| (sample.prompt_id, sample.tokens.as_slice())))
    {
        figures.push("repeat_rate", if is_duplicate { 1.0 } else { 0.0 });
    }
    let batch = v1::SampleBatch {
        phase: chunk.phase.clone(),
        chunk: chunk.number,
        samples,
        tokenizer_blake3: policy.tokenizer.clone(),
    };
    Ok(ChunkOutput { bytes: batch.encode_to_vec(), moments: figures.to_wire(), calibration: None })
}
