//! Warnings from the metrics of a job. Differences are paired by row and compared with their standard errors.

use foil_common::stats::{ACCURACY_CHANGE, GOLD_STEP, REWARD_DIFFERENCE, REWARD_GAIN, REWARD_STEP};
use foil_proto::v1;

use super::results;
use super::state::JobState;
use crate::plan::Work;

/// Number of standard errors that a difference must exceed to be significant.
const ERRORS: f64 = 2.0;
/// Maximum loss of accuracy on human pairs since round 1.
const ACCURACY_LOSS: f64 = 0.03;
/// Maximum ratio of mean length to the start policy's, or its inverse.
const LENGTH_RATIO: f64 = 1.5;
/// Minimum ratio of `distinct_2` to the start policy's.
const MIN_DISTINCT_RATIO: f64 = 0.5;
/// Maximum increase in the rate of duplicate completions relative to the start policy.
const MAX_DUPLICATE_INCREASE: f64 = 0.25;

/// Maximum fraction of completions that reach the length limit without ending.
const MAX_TRUNCATED: f64 = 0.5;
const GOLD_DIFFERENCE: &str = "gold_difference_mean";

/// Number of most recent rounds that [`recent_alarms`] considers.
const RECENT_ROUNDS: u32 = 100;

/// All warnings, in the order of rounds.
pub fn alarms(job: &v1::Job) -> Vec<String> {
    of_rounds(&job.start, &job.rounds)
}

/// The warnings about a job's most recent rounds.
pub fn recent_alarms(state: &JobState) -> Vec<String> {
    let last = state.committed.last().map_or(0, |done| done.artifact.round);
    let rounds =
        (last.saturating_sub(RECENT_ROUNDS) + 1..=last).filter_map(|round| results::round(state, round));
    of_rounds(results::metrics_of(state, 0, Work::EvaluatePolicy), &rounds.collect::<Vec<_>>())
}

fn of_rounds(start: &[v1::Metric], rounds: &[v1::RoundResult]) -> Vec<String> {
    let of_round = |round: &v1::RoundResult| {
        let found = [
            exploits(round).or_else(|| worsens(&round.policy)),
            forgets(round),
            is_cut(&round.policy),
            drifts_in_length(start, &round.policy),
            collapses(start, &round.policy),
        ];
        let number = round.round;
        found.into_iter().flatten().map(move |text| format!("round {number}: {text}"))
    };
    rounds.iter().flat_map(of_round).collect()
}

fn find<'a>(metrics: &'a [v1::Metric], name: &str) -> Option<&'a v1::Metric> {
    metrics.iter().find(|metric| metric.name == name)
}

fn value(metrics: &[v1::Metric], name: &str) -> Option<f64> {
    find(metrics, name).map(|metric| metric.value)
}

/// Whether a metric is significantly below 0.
fn falls(metric: &v1::Metric) -> bool {
    metric.se.is_some_and(|se| metric.value < -ERRORS * se)
}

fn rises(metric: &v1::Metric) -> bool {
    metric.se.is_some_and(|se| metric.value > ERRORS * se)
}

fn shown(metric: &v1::Metric) -> String {
    let se = metric.se.map(|se| format!(" ± {se:.3}")).unwrap_or_default();
    format!("{:.3}{se}", metric.value.abs())
}

/// Reward hacking: since the previous round, the reward rose and the gold reward fell on the same prompts
/// under the same reward model.
fn exploits(round: &v1::RoundResult) -> Option<String> {
    let names = match round.round {
        1 => (REWARD_DIFFERENCE, GOLD_DIFFERENCE),
        _ => (REWARD_STEP, GOLD_STEP),
    };
    let (reward, gold) = (find(&round.policy, names.0)?, find(&round.policy, names.1)?);
    (rises(reward) && falls(gold)).then(|| {
        format!(
            "the reward rose by {} and the gold reward fell by {} on the same prompts: the policy exploits its reward model",
            shown(reward),
            shown(gold)
        )
    })
}

/// The policy is worse than the one that it started from, by the reward that it is trained to raise or by the
/// gold reward.
fn worsens(policy: &[v1::Metric]) -> Option<String> {
    let told =
        [(REWARD_GAIN, "the reward", " standard deviations"), (GOLD_DIFFERENCE, "the gold reward", "")];
    let texts: Vec<String> = told
        .into_iter()
        .filter_map(|(name, what, unit)| {
            let metric = find(policy, name).filter(|metric| falls(metric))?;
            Some(format!("{what} is {}{unit} below the start policy's", shown(metric)))
        })
        .collect();
    (!texts.is_empty()).then(|| {
        let drift = value(policy, "kl").map(|kl| format!(" at a KL of {kl:.1}")).unwrap_or_default();
        format!(
            "{} on the same prompts{drift}: training makes the policy worse; a lower policy_step.learning_rate, fewer epochs or \
             a stronger KL penalty keep it closer to its start",
            texts.join(", and ")
        )
    })
}

/// Most completions end at the token limit, so that rewards judge texts without their ends.
fn is_cut(policy: &[v1::Metric]) -> Option<String> {
    let rate = value(policy, "truncated_rate").filter(|rate| *rate > MAX_TRUNCATED)?;
    Some(format!(
        "{:.0} % of completions are cut at sampling.max_new_tokens and scored without their ends; raise it, or check that \
         the start policy ends its answers with EOS (text.eos_token)",
        100.0 * rate
    ))
}

fn forgets(round: &v1::RoundResult) -> Option<String> {
    let change = find(&round.reward, ACCURACY_CHANGE)?;
    (change.value < -ACCURACY_LOSS && falls(change)).then(|| {
        format!(
            "accuracy on human pairs is {} below round 1's on the same pairs: the reward model forgets the human preferences",
            shown(change)
        )
    })
}

fn drifts_in_length(start: &[v1::Metric], policy: &[v1::Metric]) -> Option<String> {
    let (before, now) = (find(start, "length_mean")?, find(policy, "length_mean")?);
    let error = before.se.unwrap_or(0.0).hypot(now.se.unwrap_or(0.0));
    let (longer, shorter) =
        (now.value > before.value * LENGTH_RATIO, now.value * LENGTH_RATIO < before.value);
    let stands_out = (now.value - before.value).abs() > ERRORS * error;
    ((longer || shorter) && stands_out).then(|| {
        let how = if longer { "longer" } else { "shorter" };
        format!(
            "completions have become {how}: {:.1} tokens, the start policy's {:.1}; check whether the reward depends on length \
             (length_accuracy)",
            now.value, before.value
        )
    })
}

fn collapses(start: &[v1::Metric], policy: &[v1::Metric]) -> Option<String> {
    let both = |name: &str| value(start, name).zip(value(policy, name));
    let distinct = both("distinct_2").filter(|(before, now)| *now < before * MIN_DISTINCT_RATIO);
    let duplicates = both("duplicate_rate").filter(|(before, now)| *now > before + MAX_DUPLICATE_INCREASE);
    let texts = [
        distinct.map(|(before, now)| format!("distinct_2 is {now:.3}, the start policy's {before:.3}")),
        duplicates.map(|(before, now)| {
            format!(
                "{:.0} % of completions repeat another one, of the start policy's {:.0} %",
                100.0 * now,
                100.0 * before
            )
        }),
    ];
    let texts: Vec<String> = texts.into_iter().flatten().collect();
    (!texts.is_empty())
        .then(|| format!("completions of different prompts have become similar: {}", texts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture;

    fn metric(name: &str, value: f64, se: Option<f64>) -> v1::Metric {
        v1::Metric { name: name.to_owned(), value, se }
    }

    fn job(rounds: &[(Vec<v1::Metric>, Vec<v1::Metric>)]) -> v1::Job {
        let rounds = (1..).zip(rounds).map(|(round, (reward, policy))| v1::RoundResult {
            round,
            reward: reward.clone(),
            policy: policy.clone(),
        });
        let start = vec![
            metric("length_mean", 8.0, Some(0.1)),
            metric("duplicate_rate", 0.05, None),
            metric("distinct_2", 0.4, None),
        ];
        v1::Job { rounds: rounds.collect(), start, ..Default::default() }
    }

    #[test]
    fn only_significant_changes_are_reported() {
        let quiet = vec![
            metric("reward_step_mean", 0.5, Some(0.1)),
            metric("gold_step_mean", -0.1, Some(0.06)),
            metric("length_mean", 11.0, Some(0.1)),
            metric("duplicate_rate", 0.2, None),
            metric("distinct_2", 0.25, None),
        ];
        let loud = vec![
            metric("reward_step_mean", 0.5, Some(0.1)),
            metric("gold_step_mean", -0.2, Some(0.06)),
            metric("length_mean", 16.0, Some(0.1)),
            metric("duplicate_rate", 0.31, None),
            metric("distinct_2", 0.1, None),
        ];
        let human = |change| vec![metric("accuracy_change", change, Some(0.012))];
        assert_eq!(alarms(&job(&[(human(0.0), vec![]), (human(-0.029), quiet)])), [] as [String; 0]);
        let told = alarms(&job(&[(vec![], vec![]), (human(-0.042), loud)]));
        let expected = [
            "round 2: the reward rose by 0.500 ± 0.100 and the gold reward fell by 0.200 ± 0.060 on the same prompts",
            "round 2: accuracy on human pairs is 0.042 ± 0.012 below round 1's",
            "round 2: completions have become longer: 16.0 tokens, the start policy's 8.0",
            "round 2: completions of different prompts have become similar: distinct_2 is 0.100, the start policy's 0.400; 31 % of",
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        assert!(told.iter().zip(expected).all(|(told, expected)| told.starts_with(expected)), "{told:?}");
    }

    #[test]
    fn round_1_is_compared_with_the_start_policy() {
        let figures = vec![
            metric("reward_difference_mean", 0.5, Some(0.1)),
            metric("gold_difference_mean", -0.5, Some(0.1)),
        ];
        assert!(alarms(&job(&[(vec![], figures)]))[0].contains("exploits its reward model"));
        // A large loss that is not significant, or has no standard error, is not reported.
        let unsure = vec![metric("accuracy_change", -0.1, Some(0.06))];
        let bare = vec![metric("accuracy_change", -0.1, None)];
        assert_eq!(alarms(&job(&[(unsure, vec![]), (bare, vec![])])), [] as [String; 0]);
    }

    #[test]
    fn a_policy_below_its_start_is_reported() {
        let of = |metrics: &[v1::Metric]| alarms(&job(&[(vec![], metrics.to_vec())]));
        let (gain, gold) =
            (metric("reward_gain", -0.8, Some(0.1)), metric("gold_difference_mean", -0.3, Some(0.1)));
        let kl = metric("kl", 300.0, None);
        let told = of(&[gain.clone(), kl]);
        assert!(
            told[0].starts_with(
                "round 1: the reward is 0.800 ± 0.100 standard deviations below the start policy's on the same prompts \
                 at a KL of 300.0:"
            ),
            "{told:?}"
        );
        assert!(of(&[gain, gold.clone()])[0].contains(", and the gold reward is 0.300 ± 0.100 below"));
        assert_eq!(of(&[metric("reward_gain", -0.19, Some(0.1))]), [] as [String; 0]);
        // An exploited reward model is the better explanation.
        let reward = metric("reward_difference_mean", 0.5, Some(0.1));
        let told = of(&[reward, gold]);
        assert!(told.len() == 1 && told[0].contains("exploits"), "{told:?}");
    }

    #[test]
    fn completions_cut_at_the_limit_are_reported() {
        let of = |rate| alarms(&job(&[(vec![], vec![metric("truncated_rate", rate, Some(0.01))])]));
        assert_eq!(of(0.5), [] as [String; 0]);
        let told = of(0.97);
        assert!(
            told.len() == 1 && told[0].contains("97 % of completions are cut at sampling.max_new_tokens")
        );
    }

    #[test]
    fn a_running_job_has_those_of_its_rounds_so_far() {
        let mut state = fixture::after(&[], 0);
        while state.phase().is_some() {
            fixture::commit_next_with(&mut state, |phase| {
                let length = if phase.round == 2 { 20.0 } else { 8.0 };
                vec![metric("length_mean", length, Some(0.1))]
            });
        }
        let told = recent_alarms(&state);
        assert!(
            told.len() == 1 && told[0].starts_with("round 2: completions have become longer"),
            "{told:?}"
        );
        assert_eq!(told, alarms(&crate::job::view::job(&state)));
    }
}
