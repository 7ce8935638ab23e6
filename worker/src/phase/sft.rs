//! SFT: supervised fine-tuning of the policy on demonstrations, before round 1.

use foil_common::data::rows::DemonstrationRow;
use foil_common::spec::{Init, SaveDtype};

use super::support::dialogue::DialogueEncoder;
use super::support::gang::{Trained, TrainedModel, metric};
use super::support::rows::{encode_each, read};
use super::{PhaseError, TaskContext};
use crate::task::{GangTask, RowRange, Sft};
use crate::train::{Demonstration, Demonstrations, TrainConfig};

pub(super) fn run(
    context: &mut TaskContext,
    task: &GangTask,
    work: &Sft,
) -> Result<TrainedModel, PhaseError> {
    let rows: Vec<DemonstrationRow> = read(&mut context.cache, &work.demonstrations, RowRange::ALL)?;
    let start = &work.policy;
    let mut policy = match context.job.policy.init {
        Init::Weights => context.policy_to_train(task, start)?,
        Init::Random => context.loader(task).fresh_policy(start)?,
    };
    let text = context.trained_text(start, &policy.encoder)?;
    policy.model.set_token_ids(&text.ids);
    let encoder = DialogueEncoder::new(&policy, &context.job);
    let mut truncated = 0;
    let mut demonstrations = encode_each(&context.reports, &rows, |row| {
        let encoded = encoder.encode_full(row.id, &row.prompt, &row.answer)?;
        truncated += usize::from(encoded.response_cut > 0);
        Ok(Demonstration { id: row.id, ids: encoded.ids, response_start: encoded.response_start })
    })?;
    // An empty response has nothing to predict.
    demonstrations.retain(|row| row.response_start < row.ids.len());

    let config = TrainConfig::sft(&context.job, task.phase.round);
    let objective = Demonstrations::new(&policy.model, &demonstrations, context.precision());
    let summary = context.train(task, &objective, policy.model.parameters(), &config)?;

    let dir = context.cache.scratch("policy")?;
    let weights = context.save(task, policy.model.parameters(), SaveDtype::Fp32, |sink, dtype| {
        policy.model.save_to(sink, &dir, dtype)
    })?;
    context.save_text(start, &text, &dir)?;
    let mut metrics = summary.metrics();
    metrics.push(metric("truncated_demonstrations", truncated as f64));
    Ok(TrainedModel { dir, weights, dtype: SaveDtype::Fp32, model: Trained::Policy(policy.model), metrics })
}
