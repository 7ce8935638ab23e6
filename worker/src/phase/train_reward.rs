//! Train the reward model: human pairs, and golden answers against the policy's own samples.

use foil_proto::v1;

use super::support::error::need;
use super::support::gang::{Trained, metric};
use super::support::models::Judge;
use super::support::pairs::{self, Contest};
use super::support::rows::Span;
use super::{PhaseError, TaskContext};
use crate::model::HeadKind;
use crate::train::{Comparison, PairRanking, TrainConfig};

pub(super) fn run(
    context: &mut TaskContext,
    command: &v1::RunGang,
    work: &v1::TrainReward,
) -> Result<Trained, PhaseError> {
    let start = need(&work.start, "a start model")?;
    let mut judge = context.loader().judge(start)?;
    let text = context.trained_text(start, &judge.encoder)?;
    judge.model.set_token_ids(&text.ids);
    let pad =
        judge.encoder.pad_id().map_err(|source| PhaseError::Text { artifact: start.name.clone(), source })?;
    judge
        .model
        .config()
        .check_pad(pad)
        .map_err(|fault| PhaseError::Model { artifact: start.name.clone(), source: fault.into() })?;
    let step = context.job.reward_step.clone();
    let human = read(context, &judge, &work.human, step.human_weight)?;
    // w_APO is shared by a golden answer's samples.
    let golden = read(context, &judge, &work.golden, step.apo_weight / f64::from(step.samples.max(1)))?;

    if let Some(lora) = &step.lora {
        judge.model.add_lora(lora, context.draw(command)?);
    }
    let objective = PairRanking::new(&judge.model, &human, &golden, context.precision(), step.normalization)
        .with_loss(step.loss);
    let config = TrainConfig::reward(&context.job, need(&command.task, "a task")?.round);
    let summary = context.train(command, &objective, judge.model.trainable(), &config)?;

    let dir = context.cache.scratch("reward")?;
    let adapter = judge.model.merge();
    let parameters = judge.model.parameters();
    context.save(&start.name, parameters, step.save_dtype, |dtype| judge.model.save(&dir, dtype, pad))?;
    context.save_text(start, &text, &dir)?;
    if let Some(adapter) = adapter {
        context.save_adapter(start, judge.model.config(), HeadKind::Reward, adapter, &dir)?;
    }
    let mut metrics = summary.metrics();
    let pairs =
        |set: &[Comparison]| set.iter().map(|comparison| comparison.rejected.len()).sum::<usize>() as f64;
    metrics.push(metric("human_pairs", pairs(&human)));
    metrics.push(metric("golden_pairs", pairs(&golden)));
    Ok(Trained { dir, parameters_blake3: parameters.blake3(), metrics })
}

/// All rows of a source, each pair of `weight`; none where the task names no source.
fn read(
    context: &mut TaskContext,
    judge: &Judge,
    source: &Option<v1::PairSource>,
    weight: f64,
) -> Result<Vec<Comparison>, PhaseError> {
    if source.is_none() {
        return Ok(Vec::new());
    }
    let swap = context.job.controls.swap_preferences;
    let contests = pairs::encode(context, judge, source, Span::ALL)?;
    Ok(contests.into_iter().flat_map(|contest| comparisons(contest, weight, swap)).collect())
}

/// One comparison, or under `swap` one for each pair, its answers exchanged: a negative control, from which a reward model
/// must learn to be worse than chance.
fn comparisons(contest: Contest, weight: f64, swap: bool) -> Vec<Comparison> {
    let Contest { row: id, chosen, rejected, margin, .. } = contest;
    let rejected = rejected.into_iter().map(|answer| answer.ids);
    if swap {
        let exchanged =
            |answer| Comparison { id, chosen: answer, rejected: vec![chosen.ids.clone()], weight, margin };
        return rejected.map(exchanged).collect();
    }
    vec![Comparison { id, chosen: chosen.ids, rejected: rejected.collect(), weight, margin }]
}
