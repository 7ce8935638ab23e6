//! Policy training on scored completions with the job's method.

use foil_common::datasets;

use super::support::gang::{Trained, TrainedModel, metric, model_error};
use super::support::policy_batch::PolicyBatch;
use super::support::policy_rows::{LogProbs, PolicyRows};
use super::{PhaseError, TaskContext};
use crate::model::HeadKind;
use crate::objective::policy::objective_of;
use crate::task::{GangTask, RowRange, TrainPolicy};
use crate::train::{PolicyGroups, TrainConfig};

pub(super) fn run(
    context: &mut TaskContext,
    task: &GangTask,
    work: &TrainPolicy,
) -> Result<TrainedModel, PhaseError> {
    let rows = PolicyRows::read(context, &work.prompts, RowRange::ALL, &work.completions, &work.scores)?;
    let log_probs = LogProbs::read(&mut context.cache, work.log_probs.as_ref())?;
    let start = &work.policy;
    let mut policy = context.policy_to_train(task, start)?;
    let text = context.trained_text(start, &policy.encoder)?;
    policy.model.set_token_ids(&text.ids);

    let groups = rows.groups()?;
    let batch = PolicyBatch::encode(context, &policy, &groups, &log_probs)?;
    if batch.groups.is_empty() {
        let reason = if groups.iter().all(|group| all_equal(group.completions, |one| &one.sample.tokens)) {
            "all completions of a prompt are the same; raise sampling.temperature"
        } else if groups.iter().all(|group| all_equal(&group.rewards, |reward| reward)) {
            "the reward model gives all completions of a prompt the same reward"
        } else {
            "every completion of them is blank, or no better than another"
        };
        return Err(PhaseError::NothingLeft { set: datasets::PROMPTS, rows: rows.prompts.len(), reason });
    }
    let step = context.job.policy_step.clone();
    if let Some(lora) = &step.lora {
        let seed_and_round = context.seed_and_round(task);
        policy.model.add_lora(lora, seed_and_round).map_err(model_error(start))?;
    }
    let config = TrainConfig::policy(&context.job, task.phase.round);
    let objective = PolicyGroups {
        model: &policy.model,
        groups: &batch.groups,
        losses: &batch.losses,
        metrics: objective_of(&step.method).metrics(),
        precision: context.precision(),
    };
    let summary = context.train(task, &objective, policy.model.trainable(), &config)?;
    let adapter = policy.model.merge().map_err(model_error(start))?;

    let dir = context.cache.scratch("policy")?;
    let weights = context.save(task, policy.model.parameters(), step.save_dtype, |sink, dtype| {
        policy.model.save_to(sink, &dir, dtype)
    })?;
    context.save_text(start, &text, &dir)?;
    if let Some(adapter) = adapter {
        context.save_adapter(start, policy.model.config(), HeadKind::LanguageModel, adapter, &dir)?;
    }
    let mut metrics = summary.metrics();
    let completions = batch.rewards.len() as f64;
    metrics.push(metric("selected_reward_mean", batch.rewards.iter().sum::<f64>() / completions));
    metrics.push(metric("num_completions", completions));
    metrics.push(metric("dropped_prompts", (rows.prompts.len() - batch.groups.len()) as f64));
    Ok(TrainedModel { dir, weights, dtype: step.save_dtype, model: Trained::Policy(policy.model), metrics })
}

/// Whether all items have the same value of `of`.
fn all_equal<T, P: PartialEq>(items: &[T], of: impl Fn(&T) -> &P) -> bool {
    items.windows(2).all(|two| of(&two[0]) == of(&two[1]))
}
