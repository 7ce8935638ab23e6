//! Generate: a policy answers a chunk of prompts.

use foil_common::spec::Sampling;
use foil_proto::v1;
use prost::Message;

use super::answers::{self, Draw};
use super::error::need;
use super::{Bench, Chunk, Outcome, PhaseError, rows};
use crate::evaluate;
use foil_common::failpoint;

pub(super) fn run(bench: &mut Bench, chunk: &Chunk, work: &v1::Generate) -> Result<Outcome, PhaseError> {
    let prompts = rows::read_prompts(&mut bench.cache, &work.prompts, chunk.span)?;
    let sampling = Sampling::try_from(need(&work.sampling, "its sampling")?)?;
    let policy = bench.policy(&work.policy)?;

    failpoint::hit("phase.generate")?;
    let draw = Draw { rows: &prompts, samples: work.samples, sampling: &sampling, purpose: chunk.purpose() };
    let mut samples = answers::draw(bench, &policy, chunk, &draw)?;
    answers::fill_gold(&bench.job, &prompts, &mut samples, work.samples);

    let mut figures = answers::describe(&samples);
    // Answers alike teach nothing: a group of them has no better and no worse.
    for repeated in
        evaluate::repeats(samples.iter().map(|sample| (sample.prompt_id, sample.tokens.as_slice())))
    {
        figures.push("repeat_rate", if repeated { 1.0 } else { 0.0 });
    }
    let batch = v1::SampleBatch {
        phase: chunk.phase.clone(),
        chunk: chunk.number,
        samples,
        tokenizer_blake3: policy.tokenizer.clone(),
    };
    Ok(Outcome { bytes: batch.encode_to_vec(), moments: figures.to_wire(), calibration: None })
}
