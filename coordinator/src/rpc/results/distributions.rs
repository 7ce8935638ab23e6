//! Histograms of rewards, and the calibration of reward models.

use foil_common::stats::{CALIBRATION_BINS, Calibration, Moments};
use foil_proto::v1::{self, CalibrationSource, CompletionSet, RewardSource};
use futures::{Stream, TryStreamExt, pin_mut};
use tonic::Status;

use super::cache::{Cache, Size};
use super::catalog::{model, reward_of, rounds_of, shown_rounds, version};
use super::completions::{Completions, catalog};
use super::index;
use crate::driver::UserHandle;
use crate::job::JobState;
use crate::plan::{Phase, Work};
use crate::rpc::status::{bad_field, no_job, stopped};

const DEFAULT_BINS: u32 = 40;
const BINS: std::ops::RangeInclusive<u32> = 5..=200;
/// Maximum number of rewards that a histogram counts.
const MAX_VALUES: usize = 1_000_000;
const CACHE_BYTES: usize = 16 << 20;

/// The kinds of work whose results provide the distributions.
const WORKS: [Work; 4] =
    [Work::EvaluateReward, Work::EvaluateRewardFresh, Work::ScorePolicy, Work::EvaluatePolicy];

/// Reads distributions. Cheap to clone; clones share their cache.
#[derive(Debug, Clone)]
pub(super) struct Distributions {
    completions: Completions,
    rounds: Cache<v1::RoundDistributions>,
}

impl Size for v1::RoundDistributions {
    fn bytes(&self) -> usize {
        prost::Message::encoded_len(self) * 2
    }
}

/// The committed artifacts of a round.
struct Round {
    round: u32,
    reward: Option<v1::Artifact>,
    human: Vec<v1::Object>,
    fresh: Vec<v1::Object>,
    scores: Vec<v1::Object>,
    evaluated: bool,
    /// A permanent name for the artifacts.
    key: String,
}

impl Round {
    fn of(state: &JobState, round: u32) -> Self {
        let objects = |work: Work| {
            let done = state.done(&Phase::id_of(round, work));
            done.map(|done| done.artifact.objects.clone()).unwrap_or_default()
        };
        let done = WORKS.map(|work| state.done(&Phase::id_of(round, work)));
        let attempts = done.map(|done| done.map_or(0, |done| done.artifact.attempt).to_string());
        Self {
            round,
            reward: reward_of(state, round).map(model),
            human: objects(Work::EvaluateReward),
            fresh: objects(Work::EvaluateRewardFresh),
            scores: objects(Work::ScorePolicy),
            evaluated: done[3].is_some(),
            key: format!("{}/{round}/{}", state.id, attempts.join("-")),
        }
    }
}

impl Distributions {
    pub(super) fn new(completions: Completions) -> Self {
        Self { completions, rounds: Cache::new(CACHE_BYTES) }
    }

    pub(super) async fn get(
        &self,
        driver: &UserHandle,
        request: v1::GetDistributionsRequest,
    ) -> Result<v1::GetDistributionsResponse, Status> {
        let v1::GetDistributionsRequest { job_id, rounds, bins } = request;
        let bins = if bins == 0 { DEFAULT_BINS } else { bins };
        if !BINS.contains(&bins) {
            let (min, max) = (BINS.start(), BINS.end());
            return Err(bad_field("bins", &format!("found {bins}, expected {min} to {max}")));
        }
        let look = move |state: &JobState| {
            let mut available: Vec<u32> = WORKS.iter().flat_map(|work| rounds_of(state, *work)).collect();
            available.sort_unstable();
            available.dedup();
            let shown = shown_rounds(&available, "rounds", &rounds)?;
            let shown: Vec<Round> = shown.into_iter().map(|round| Round::of(state, round)).collect();
            Ok::<_, Status>((available, shown))
        };
        let found = driver.inspect(&job_id, look).await.map_err(stopped)?;
        let (available_rounds, shown) = found.ok_or_else(|| no_job(&job_id))??;
        let mut response = v1::GetDistributionsResponse { available_rounds, ..Default::default() };
        for round in shown {
            let key = format!("{}/{bins}", round.key);
            let read = self.read(driver, &job_id, &round, bins as usize);
            let distributions = self.rounds.get(&key, read).await?;
            response.rounds.push(v1::RoundDistributions::clone(&distributions));
        }
        Ok(response)
    }

    async fn read(
        &self,
        driver: &UserHandle,
        job: &str,
        round: &Round,
        bins: usize,
    ) -> Result<v1::RoundDistributions, Status> {
        let reader = &self.completions.reader;
        let fresh = Pairs::read(reader.messages(round.fresh.clone())).await?;
        let human = Pairs::read(reader.messages(round.human.clone())).await?;
        let mut training = Values::default();
        let scores = reader.messages::<v1::RewardScores>(round.scores.clone());
        pin_mut!(scores);
        while !training.is_full()
            && let Some(batch) = scores.try_next().await?
        {
            batch.scores.iter().for_each(|score| training.push(score.reward));
        }
        let (evaluation, gold) = match round.evaluated {
            true => self.evaluation(driver, job, round.round).await?,
            false => Default::default(),
        };
        let reliability =
            [fresh.reliability(CalibrationSource::Fresh), human.reliability(CalibrationSource::Human)]
                .into_iter()
                .flatten();
        let reliability = reliability.collect();
        let histograms = [
            (RewardSource::Golden, fresh.chosen),
            (RewardSource::GoldenCompletions, fresh.rejected),
            (RewardSource::Chosen, human.chosen),
            (RewardSource::Rejected, human.rejected),
            (RewardSource::Training, training),
            (RewardSource::Evaluation, evaluation),
        ];
        let edges = edges(histograms.iter().map(|(_, values)| values), bins);
        let mut histograms: Vec<_> =
            histograms.iter().filter_map(|(source, values)| values.histogram(*source, &edges)).collect();
        let gold_edges = self::edges([&gold].into_iter(), bins);
        histograms.extend(gold.histogram(RewardSource::EvaluationGold, &gold_edges));
        Ok(v1::RoundDistributions {
            round: round.round,
            reward: round.reward.as_ref().map(version),
            edges,
            histograms,
            reliability,
            gold_edges,
        })
    }

    /// Rewards and gold rewards of the evaluation completions of a round.
    async fn evaluation(
        &self,
        driver: &UserHandle,
        job: &str,
        round: u32,
    ) -> Result<(Values, Values), Status> {
        let catalog = catalog(driver, job, CompletionSet::Evaluation, "rounds", &[round]).await?;
        index::check_size(&catalog)?;
        let (mut rewards, mut gold) = (Values::default(), Values::default());
        if let Some(column) = catalog.columns.first() {
            let index = self.completions.index(driver, &catalog, column).await?;
            for fact in &index.facts {
                rewards.push(fact.reward);
                gold.push(fact.gold);
            }
        }
        Ok((rewards, gold))
    }
}

/// Finite rewards; if there are very many, only the first ones.
#[derive(Debug, Default)]
struct Values(Vec<f64>);

impl Values {
    fn is_full(&self) -> bool {
        self.0.len() >= MAX_VALUES
    }

    fn push(&mut self, value: f64) {
        if value.is_finite() && !self.is_full() {
            self.0.push(value);
        }
    }

    /// None if there are no values.
    fn histogram(&self, source: RewardSource, edges: &[f64]) -> Option<v1::RewardHistogram> {
        let mut counts = vec![0; edges.len().checked_sub(1)?];
        let last = counts.len().checked_sub(1)?;
        for value in &self.0 {
            let above = edges.partition_point(|edge| edge <= value);
            counts[above.saturating_sub(1).min(last)] += 1;
        }
        let moments: Moments = self.0.iter().copied().collect();
        Some(v1::RewardHistogram {
            source: source.into(),
            counts,
            count: self.0.len() as u64,
            mean: moments.mean()?,
            standard_deviation: moments.standard_deviation(),
            min: self.0.iter().copied().fold(f64::INFINITY, f64::min),
            max: self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// Edges of equal bins from the lowest to the highest of all values; none without values.
fn edges<'a>(values: impl Iterator<Item = &'a Values>, bins: usize) -> Vec<f64> {
    let bounds = values.flat_map(|values| &values.0).fold(None, |bounds: Option<(f64, f64)>, value| {
        let (low, high) = bounds.unwrap_or((*value, *value));
        Some((low.min(*value), high.max(*value)))
    });
    let Some((mut low, mut high)) = bounds else { return Vec::new() };
    if low == high {
        // A single value is shown in the middle.
        let half = (low.abs() * 0.01).max(0.5);
        (low, high) = (low - half, high + half);
    }
    let at = |edge: usize| {
        let part = edge as f64 / bins as f64;
        low * (1.0 - part) + high * part
    };
    (0..=bins).map(at).collect()
}

/// Scores of pairs.
#[derive(Debug, Default)]
struct Pairs {
    chosen: Values,
    rejected: Values,
    calibration: Calibration,
}

impl Pairs {
    async fn read(batches: impl Stream<Item = Result<v1::PairScores, Status>>) -> Result<Self, Status> {
        let mut pairs = Self::default();
        pin_mut!(batches);
        while !pairs.rejected.is_full()
            && let Some(batch) = batches.try_next().await?
        {
            pairs.add(&batch);
        }
        Ok(pairs)
    }

    fn add(&mut self, batch: &v1::PairScores) {
        // A golden answer forms a pair with each completion, in sequence.
        for row in batch.pairs.chunk_by(|a, b| a.row_id == b.row_id) {
            self.chosen.push(row[0].chosen);
            for pair in row {
                self.rejected.push(pair.rejected);
                self.calibration.push_difference(pair.chosen - pair.rejected);
            }
        }
    }

    /// None if there are no pairs.
    fn reliability(&self, source: CalibrationSource) -> Option<v1::Reliability> {
        let ece = self.calibration.ece()?;
        let v1::Calibration { count, confidence_sum, correct } = self.calibration.to_wire();
        let bins = (0..CALIBRATION_BINS).map(|bin| {
            let mean = |sum: f64| (count[bin] > 0).then(|| sum / count[bin] as f64);
            v1::ReliabilityBin {
                lower: bin as f64 / CALIBRATION_BINS as f64,
                upper: (bin + 1) as f64 / CALIBRATION_BINS as f64,
                count: count[bin],
                confidence: mean(confidence_sum[bin]),
                accuracy: mean(correct[bin] as f64),
            }
        });
        Some(v1::Reliability { source: source.into(), bins: bins.collect(), ece })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bin_between_its_edges() {
        let values = Values((0..1000).map(|at| f64::from(at * 7919 % 1009) / 37.0 - 9.0).collect());
        for bins in [5, 40, 200] {
            let edges = edges([&values].into_iter(), bins);
            let histogram = values.histogram(RewardSource::Training, &edges).unwrap();
            assert_eq!((edges.len(), histogram.counts.len()), (bins + 1, bins));
            assert!(edges.is_sorted() && edges[0] == histogram.min && edges[bins] == histogram.max);
            for (bin, count) in histogram.counts.iter().enumerate() {
                let is_last = bin + 1 == bins;
                let within =
                    |v: &&f64| edges[bin] <= **v && (**v < edges[bin + 1] || is_last && **v == edges[bins]);
                assert_eq!(*count as usize, values.0.iter().filter(within).count());
            }
        }
        let histogram = values.histogram(RewardSource::Training, &[-9.0, 20.0]).unwrap();
        let mean = values.0.iter().sum::<f64>() / 1000.0;
        let squares: f64 = values.0.iter().map(|value| (value - mean).powi(2)).sum();
        assert!((histogram.mean - mean).abs() < 1e-12);
        assert!((histogram.standard_deviation.unwrap() - (squares / 999.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn equal_values_and_none_have_edges_too() {
        let same = Values(vec![3.0; 4]);
        let edges_of = |values: &Values| edges([values].into_iter(), 5);
        let histogram = same.histogram(RewardSource::Golden, &edges_of(&same)).unwrap();
        assert_eq!(histogram.counts, [0, 0, 4, 0, 0]);
        let huge = Values(vec![1e300, -1e300, 1e308, -1e308]);
        assert!(edges_of(&huge).iter().all(|edge| edge.is_finite()) && edges_of(&huge).is_sorted());
        let none = Values::default();
        assert!(edges_of(&none).is_empty() && none.histogram(RewardSource::Golden, &[]).is_none());
        let mut mixed = Values::default();
        [f64::NAN, f64::INFINITY, 1.0].into_iter().for_each(|value| mixed.push(value));
        assert_eq!(mixed.0, [1.0]);
    }

    #[test]
    fn a_golden_answer_counts_once_and_each_pair_in_both_orders() {
        let pair = |row_id, chosen, rejected| v1::PairScore { row_id, chosen, rejected };
        let mut pairs = Pairs::default();
        let batch = vec![pair(1, 2.0, 0.0), pair(1, 2.0, 1.0), pair(2, 0.0, 0.0)];
        pairs.add(&v1::PairScores { pairs: batch, ..Default::default() });
        assert_eq!((&pairs.chosen.0, &pairs.rejected.0), (&vec![2.0, 0.0], &vec![0.0, 1.0, 0.0]));
        let reliability = pairs.reliability(CalibrationSource::Fresh).unwrap();
        let filled: Vec<_> =
            reliability.bins.iter().map(|bin| (bin.count, bin.accuracy)).filter(|bin| bin.0 > 0).collect();
        // σ(2) = 0.88 and σ(1) = 0.73 were correct, σ(−1) = 0.27 and σ(−2) = 0.12 were not, and σ(0) = 0.5
        // was correct once out of twice.
        assert_eq!(filled, [(1, Some(0.0)), (1, Some(0.0)), (2, Some(0.5)), (1, Some(1.0)), (1, Some(1.0))]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let gaps = 2.0 * (1.0 - sigmoid(2.0)) + 2.0 * (1.0 - sigmoid(1.0));
        assert!((reliability.ece - gaps / 6.0).abs() < 1e-12, "{}", reliability.ece);
        assert_eq!((reliability.bins[9].lower, reliability.bins[9].upper), (0.9, 1.0));
        assert!(Pairs::default().reliability(CalibrationSource::Human).is_none());
    }
}
