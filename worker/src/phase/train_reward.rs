//! Train the reward model: human pairs, and golden answers against the policy's own samples.

use foil_proto::v1;

use super::error::need;
use super::gang::{Course, Trained, metric};
use super::models::Judge;
use super::pairs::{self, TokenPair};
use super::rows::Span;
use super::{Bench, PhaseError};
use crate::train::{Pair, PairRanking};

pub(super) fn run(
    bench: &mut Bench,
    command: &v1::RunGang,
    work: &v1::TrainReward,
) -> Result<Trained, PhaseError> {
    let start = need(&work.start, "a start model")?;
    let judge = bench.loader().judge(start)?;
    let step = bench.job.reward_step.clone();
    let human = read(bench, &judge, &work.human, step.human_weight)?;
    // w_APO is shared by a golden answer's samples.
    let golden = read(bench, &judge, &work.golden, step.apo_weight / f64::from(step.samples.max(1)))?;

    let objective = PairRanking::new(&judge.model, &human, &golden, bench.precision(), step.normalisation);
    let course = Course {
        epochs: step.epochs,
        batch: step.batch_pairs,
        learning_rate: step.learning_rate,
        optimizer: &step.optimizer,
        schedule: &step.schedule,
    };
    let summary = bench.train(command, &objective, judge.model.parameters(), &course)?;

    let dir = bench.cache.scratch("reward")?;
    let pad =
        judge.encoder.pad_id().map_err(|source| PhaseError::Text { artifact: start.name.clone(), source })?;
    let parameters = judge.model.parameters();
    bench.save(&start.name, parameters, step.save_dtype, |dtype| judge.model.save(&dir, dtype, pad))?;
    let mut metrics = summary.metrics();
    metrics.push(metric("human_pairs", human.len() as f64));
    metrics.push(metric("golden_pairs", golden.len() as f64));
    Ok(Trained { dir, parameters_blake3: parameters.blake3(), metrics })
}

/// All pairs of a source, each of `weight`; none where the task names no source.
fn read(
    bench: &mut Bench,
    judge: &Judge,
    source: &Option<v1::PairSource>,
    weight: f64,
) -> Result<Vec<Pair>, PhaseError> {
    if source.is_none() {
        return Ok(Vec::new());
    }
    let swap = bench.job.controls.swap_preferences;
    let pairs = pairs::encode(bench, judge, source, Span::ALL)?;
    Ok(pairs.into_iter().map(|pair| weighted(pair, weight, swap)).collect())
}

/// `swap` is a negative control: a reward model that learns from it must be worse than chance.
fn weighted(pair: TokenPair, weight: f64, swap: bool) -> Pair {
    let (chosen, rejected) = if swap { (pair.rejected, pair.chosen) } else { (pair.chosen, pair.rejected) };
    Pair { id: pair.row, chosen: chosen.ids, rejected: rejected.ids, weight }
}
