//! Reward training: on human pairs, and on golden answers against the policy's own completions.

use super::support::gang::{Trained, TrainedModel, metric, model_error};
use super::support::models::RewardModel;
use super::support::pairs::{self, EncodedComparison};
use super::{PhaseError, TaskContext};
use crate::model::HeadKind;
use crate::task::{GangTask, PairSource, RowRange, TrainReward};
use crate::train::{Comparison, PairRanking, TrainConfig};

pub(super) fn run(
    context: &mut TaskContext,
    task: &GangTask,
    work: &TrainReward,
) -> Result<TrainedModel, PhaseError> {
    let start = &work.start;
    let mut reward_model = context.reward_model_to_train(task, start)?;
    let text = context.trained_text(start, &reward_model.encoder)?;
    reward_model.model.set_token_ids(&text.ids);
    let pad = reward_model
        .encoder
        .pad_id()
        .map_err(|source| PhaseError::Text { artifact: start.name.clone(), source })?;
    reward_model
        .model
        .config()
        .check_pad(pad)
        .map_err(|error| PhaseError::Model { artifact: start.name.clone(), source: error.into() })?;
    let step = context.job.reward_step.clone();
    let human = read(context, &reward_model, work.human.as_ref(), step.human_weight)?;
    // w_APO is divided among the completions that a golden answer is compared with.
    let apo_weight = step.apo_weight / f64::from(step.samples.max(1));
    let golden = read(context, &reward_model, work.golden.as_ref(), apo_weight)?;

    if let Some(lora) = &step.lora {
        let seed_and_round = context.seed_and_round(task);
        reward_model.model.add_lora(lora, seed_and_round).map_err(model_error(start))?;
    }
    let objective =
        PairRanking::new(&reward_model.model, &human, &golden, context.precision(), step.normalization)
            .with_loss(step.loss);
    let config = TrainConfig::reward(&context.job, task.phase.round);
    let summary = context.train(task, &objective, reward_model.model.trainable(), &config)?;

    let dir = context.cache.scratch("reward")?;
    let adapter = reward_model.model.merge().map_err(model_error(start))?;
    let weights = context.save(task, reward_model.model.parameters(), step.save_dtype, |sink, dtype| {
        reward_model.model.save_to(sink, &dir, dtype, pad)
    })?;
    context.save_text(start, &text, &dir)?;
    if let Some(adapter) = adapter {
        context.save_adapter(start, reward_model.model.config(), HeadKind::Reward, adapter, &dir)?;
    }
    let mut metrics = summary.metrics();
    let pairs =
        |set: &[Comparison]| set.iter().map(|comparison| comparison.rejected.len()).sum::<usize>() as f64;
    metrics.push(metric("human_pairs", pairs(&human)));
    metrics.push(metric("golden_pairs", pairs(&golden)));
    let model = Trained::RewardModel(reward_model.model);
    Ok(TrainedModel { dir, weights, dtype: step.save_dtype, model, metrics })
}

/// All rows of a source, with `weight` for each pair. Empty without a source.
fn read(
    context: &mut TaskContext,
    reward_model: &RewardModel,
    source: Option<&PairSource>,
    weight: f64,
) -> Result<Vec<Comparison>, PhaseError> {
    let Some(source) = source else { return Ok(Vec::new()) };
    let swap = context.job.controls.swap_preferences;
    let encoded = pairs::encode(context, reward_model, source, RowRange::ALL)?;
    Ok(encoded.into_iter().flat_map(|encoded| comparisons(encoded, weight, swap)).collect())
}

/// One comparison, or with `swap`, one for each pair with chosen and rejected swapped. This is a negative
/// control: a reward model must learn from it to be worse than chance.
fn comparisons(encoded: EncodedComparison, weight: f64, swap: bool) -> Vec<Comparison> {
    let EncodedComparison { row: id, chosen, rejected, margin, .. } = encoded;
    let rejected = rejected.into_iter().map(|dialogue| dialogue.ids);
    if swap {
        let swapped = |rejected| Comparison {
            id,
            chosen: rejected,
            rejected: vec![chosen.ids.clone()],
            weight,
            margin,
        };
        return rejected.map(swapped).collect();
    }
    vec![Comparison { id, chosen: chosen.ids, rejected: rejected.collect(), weight, margin }]
}
