//! SFT: the policy learns to answer from demonstrations, before round 1.

use foil_common::data::rows::DemonstrationRow;
use foil_common::spec::{Init, SaveDtype};
use foil_proto::v1;

use super::support::dialogue::Reader;
use super::support::error::need;
use super::support::gang::{Trained, metric};
use super::support::rows::{Span, encode_each, read};
use super::{PhaseError, TaskContext};
use crate::train::{Demonstration, Demonstrations, TrainConfig};

pub(super) fn run(
    context: &mut TaskContext,
    command: &v1::RunGang,
    work: &v1::Sft,
) -> Result<Trained, PhaseError> {
    let rows: Vec<DemonstrationRow> = read(&mut context.cache, &work.demonstrations, Span::ALL)?;
    let start = need(&work.policy, "a policy")?;
    let mut policy = match context.job.policy.init {
        Init::Weights => context.loader().policy(start)?,
        Init::Random => context.loader().fresh_policy(start)?,
    };
    let text = context.trained_text(start, &policy.encoder)?;
    policy.model.set_token_ids(&text.ids);
    let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &context.job };
    let mut cut = 0;
    let mut demonstrations = encode_each(&context.reports, &rows, |row| {
        let encoded = reader.whole(row.id, &row.prompt, &row.answer)?;
        cut += usize::from(encoded.response_cut > 0);
        Ok(Demonstration { id: row.id, ids: encoded.ids, answer_start: encoded.response_start })
    })?;
    // Nothing to predict in an empty answer.
    demonstrations.retain(|row| row.answer_start < row.ids.len());

    let config = TrainConfig::sft(&context.job, need(&command.task, "a task")?.round);
    let objective = Demonstrations::new(&policy.model, &demonstrations, context.precision());
    let summary = context.train(command, &objective, policy.model.parameters(), &config)?;

    let dir = context.cache.scratch("policy")?;
    let parameters = policy.model.parameters();
    context.save(&start.name, parameters, SaveDtype::Fp32, |dtype| policy.model.save(&dir, dtype))?;
    context.save_text(start, &text, &dir)?;
    let mut metrics = summary.metrics();
    metrics.push(metric("cut_answers", cut as f64));
    Ok(Trained { dir, parameters_blake3: parameters.blake3(), metrics })
}
