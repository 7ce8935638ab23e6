//! A model's figures with their 95 % confidence intervals.

use std::fmt::Write as _;

use foil_common::datasets;
use foil_common::spec;
use foil_common::stats::REWARD_GAIN;
use foil_proto::v1;

use super::provenance::Provenance;
use crate::report::fixed;

/// 97.5 % quantile of the normal distribution.
const Z: f64 = 1.96;

/// A metric that a card shows.
struct Shown {
    metric: &'static str,
    what: &'static str,
    digits: usize,
}

const fn shown(metric: &'static str, what: &'static str, digits: usize) -> Shown {
    Shown { metric, what, digits }
}

const POLICY: [Shown; 9] = [
    shown(REWARD_GAIN, "Reward over the start policy's, in its standard deviations", 3),
    shown("gold_mean", "Gold reward", 3),
    shown("reward_mean", "Reward by this round's reward model", 3),
    shown("kl", "KL(policy ‖ reference), nats per completion", 3),
    shown("length_mean", "Tokens of a completion", 1),
    shown("truncated_rate", "Completions cut at the token limit", 3),
    shown("duplicate_rate", "Completions that repeat another prompt's", 3),
    shown("distinct_1", "Distinct tokens over all completions (distinct-1)", 3),
    shown("distinct_2", "Distinct token pairs over all completions (distinct-2)", 3),
];

const REWARD: [Shown; 6] = [
    shown("accuracy", "Accuracy on held-out preference pairs", 3),
    shown("fresh_accuracy", "Accuracy on held-out golden answers against fresh completions", 3),
    shown("loss", "Loss on held-out preference pairs", 3),
    shown("ece", "Expected calibration error", 3),
    shown("ace", "Adaptive calibration error", 3),
    shown("mce", "Maximum calibration error", 3),
];

/// A figure and its error.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) metric: &'static str,
    pub(super) what: &'static str,
    digits: usize,
    pub(super) value: f64,
    pub(super) se: Option<f64>,
    /// The 95 % interval.
    pub(super) interval: Option<(f64, f64)>,
}

fn figures(metrics: &[v1::Metric], shown: &'static [Shown]) -> Vec<Figure> {
    let find = |name: &str| metrics.iter().find(|metric| metric.name == name && metric.value.is_finite());
    let figure = |shown: &'static Shown| {
        let found = find(shown.metric)?;
        let end = |end: &str| find(&format!("{}_{end}", shown.metric)).map(|metric| metric.value);
        let se = found.se.filter(|se| se.is_finite());
        // Rates have Wilson's interval; the others the normal approximation.
        let interval = end("low").zip(end("high"));
        let interval = interval.or(se.map(|se| (found.value - Z * se, found.value + Z * se)));
        let Shown { metric, what, digits } = *shown;
        Some(Figure { metric, what, digits, value: found.value, se, interval })
    };
    shown.iter().filter_map(figure).collect()
}

/// The figures of the model itself.
pub(super) fn of_model(made: &Provenance) -> Vec<Figure> {
    let (job, round) = (&made.job, made.artifact.round);
    let result = job.rounds.iter().find(|result| result.round == round);
    match (made.is_reward(), result) {
        (true, Some(result)) => figures(&result.reward, &REWARD),
        (false, Some(result)) => figures(&result.policy, &POLICY),
        (false, None) if round == 0 => figures(&job.start, &POLICY),
        _ => Vec::new(),
    }
}

/// The sets that a model is measured on, with their rows.
pub(super) fn measured_on(made: &Provenance) -> Vec<(String, u64)> {
    let names: &[&str] = match made.is_reward() {
        true => &[
            datasets::EVALUATION_PREFERENCES,
            datasets::GOLD_PREFERENCE_EVALUATION_PROMPTS,
            datasets::GOLDEN_HOLDOUT,
        ],
        false => &[datasets::EVALUATION_PROMPTS],
    };
    let sets = made.job.plan.iter().flat_map(|plan| &plan.datasets);
    sets.filter(|set| names.contains(&set.name.as_str()) && set.rows > 0)
        .map(|set| (set.name.clone(), set.rows))
        .collect()
}

/// Whether a warning of the submission is about one of these sets: prompts that it shares with another, or
/// texts of it that are cut.
pub(super) fn is_about(warning: &str, sets: &[(String, u64)]) -> bool {
    let mut words = warning.split(|character: char| !(character.is_alphanumeric() || character == '_'));
    words.any(|word| sets.iter().any(|(set, _)| set == word))
}

/// The training set that an evaluation set was split off, prompt by prompt; `None` if it was given.
pub(super) fn held_out_of(set: &str, job: &spec::Job) -> Option<&'static str> {
    let data = &job.data;
    match set {
        datasets::EVALUATION_PREFERENCES if data.evaluation.preferences.is_empty() => {
            Some(datasets::PREFERENCES)
        }
        datasets::EVALUATION_PROMPTS if data.evaluation.prompts.is_empty() && data.generator.is_none() => {
            Some(datasets::PROMPTS)
        }
        datasets::GOLDEN_HOLDOUT => Some(datasets::GOLDEN),
        _ => None,
    }
}

/// The most rows that a policy's KL is measured on; `None` if the card does not show it.
pub(super) fn kl_rows(made: &Provenance, job: Option<&spec::Job>) -> Option<u64> {
    let is_shown = !made.is_reward() && of_model(made).iter().any(|figure| figure.metric == "kl");
    job.filter(|_| is_shown).map(|job| job.evaluation.kl_prompts as u64)
}

/// The table of the model's figures; a policy's are next to those of the start policy.
pub(super) fn table(made: &Provenance) -> String {
    let own = of_model(made);
    if own.is_empty() {
        return "This model was not measured: the job had not evaluated it when this card was written.\n"
            .to_owned();
    }
    let start = match made.is_reward() || made.artifact.round == 0 {
        true => Vec::new(),
        false => figures(&made.job.start, &POLICY),
    };
    let mut text = String::from("| figure | this model | 95 % interval |");
    text += if start.is_empty() {
        "\n|---|---:|---:|\n"
    } else {
        " start policy | 95 % interval |\n|---|---:|---:|---:|---:|\n"
    };
    for figure in &own {
        let _ = write!(text, "| {} | {} | {} |", figure.what, figure.number(), figure.bounds());
        if !start.is_empty() {
            let other = start.iter().find(|other| other.metric == figure.metric);
            let number = other.map_or_else(|| "–".to_owned(), Figure::number);
            let _ = write!(text, " {number} | {} |", other.map_or_else(|| "–".to_owned(), Figure::bounds));
        }
        text.push('\n');
    }
    text
}

impl Figure {
    fn number(&self) -> String {
        fixed(self.value, self.digits)
    }

    fn bounds(&self) -> String {
        match self.interval {
            Some((low, high)) => format!("{} to {}", fixed(low, self.digits), fixed(high, self.digits)),
            None => "–".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{finished_job, metric};

    fn made(kind: &str, round: u32) -> Provenance {
        let artifact = v1::Artifact { kind: kind.to_owned(), round, ..Default::default() };
        Provenance::new(&finished_job(), &artifact, &[])
    }

    #[test]
    fn figures_have_the_interval_of_their_error() {
        let metrics = [metric("accuracy", 0.75, Some(0.02)), metric("accuracy_low", 0.7, None)];
        let found = figures(&metrics, &REWARD);
        // Wilson's interval needs both ends.
        assert!((found[0].interval.unwrap().0 - (0.75 - 1.96 * 0.02)).abs() < 1e-12);
        let rate = [
            metric("accuracy", 1.0, None),
            metric("accuracy_low", 0.9, None),
            metric("accuracy_high", 1.0, None),
        ];
        assert_eq!(figures(&rate, &REWARD)[0].interval, Some((0.9, 1.0)));
        assert!(figures(&[metric("ece", f64::NAN, None)], &REWARD).is_empty());
    }

    #[test]
    fn a_policys_figures_stand_beside_the_start_policys() {
        let table = table(&made("policy", 2));
        assert!(
            table.contains("| Gold reward | 4.250 | 4.132 to 4.368 | 2.600 | 2.482 to 2.718 |"),
            "{table}"
        );
        assert!(table.contains("nats per completion | 3.250 | 3.054 to 3.446 | – | – |"), "{table}");
        assert!(super::table(&made("reward", 1)).contains("pairs | 0.750 | 0.711 to 0.789 |"));
        assert!(super::table(&made("policy", 0)).contains("| Gold reward | 2.600 | 2.482 to 2.718 |\n"));
        assert!(super::table(&made("policy", 9)).contains("not measured"));
    }
}
