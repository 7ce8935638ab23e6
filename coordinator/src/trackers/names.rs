//! Names of metrics in trackers: the model and its activity, then the metric. Metrics that TRL also logs use
//! TRL's names.

use crate::plan::Work;

/// Size limit of a metric's name: MLflow accepts 250 bytes.
const NAME_BYTES: usize = 160;

/// Maps Foil's metrics to their names in TRL's GRPO and RLOO trainers. There, `kl` is per token and
/// `objective/kl` per completion.
const TRL: [(&str, &str); 7] = [
    ("reward_mean", "reward"),
    ("reward_sd", "reward_std"),
    ("length_mean", "completions/mean_length"),
    ("length_max", "completions/max_length"),
    ("truncated_rate", "completions/clipped_ratio"),
    ("kl_per_token", "kl"),
    ("kl", "objective/kl"),
];

/// The name of a training-step metric; its axis is the optimizer steps of all rounds.
pub(super) fn of_step(work: Work, metric: &str) -> String {
    format!("{}/train/{}", model(work), allowed(metric))
}

/// The name of a phase metric; its axis is the rounds.
pub(super) fn of_phase(work: Work, metric: &str) -> String {
    let known = TRL.iter().find(|(own, _)| *own == metric && !work.is_gang());
    let metric = known.map_or_else(|| allowed(metric), |(_, name)| (*name).to_owned());
    format!("{}/{}/{metric}", model(work), part(work))
}

fn model(work: Work) -> &'static str {
    match work {
        Work::Sft => "sft",
        Work::GeneratePreferences | Work::GenerateEvaluationPreferences => "preferences",
        Work::GenerateGolden | Work::TrainReward | Work::EvaluateReward | Work::EvaluateRewardFresh => {
            "reward"
        }
        Work::GeneratePolicy
        | Work::ScorePolicy
        | Work::RefLogProbs
        | Work::TrainPolicy
        | Work::EvaluatePolicy => "policy",
    }
}

fn part(work: Work) -> &'static str {
    match work {
        Work::Sft | Work::TrainReward | Work::TrainPolicy => "summary",
        Work::GeneratePreferences | Work::GenerateGolden | Work::GeneratePolicy => "generate",
        Work::GenerateEvaluationPreferences => "generate_evaluation",
        Work::ScorePolicy => "score",
        Work::RefLogProbs => "ref_log_probs",
        Work::EvaluateReward | Work::EvaluatePolicy => "eval",
        Work::EvaluateRewardFresh => "eval_fresh",
    }
}

/// A rank's metric name in a form that every tracker accepts: letters, digits, '_', '-', '.' and single
/// slashes between parts that are neither '.' nor '..'.
fn allowed(metric: &str) -> String {
    let letter = |letter: char| match letter {
        _ if letter.is_ascii_alphanumeric() || "_-.".contains(letter) => letter,
        _ => '_',
    };
    let part = |part: &str| -> String {
        match part {
            "" | "." | ".." => "_".to_owned(),
            part => part.chars().map(letter).collect(),
        }
    };
    let mut name = metric.split('/').map(part).collect::<Vec<_>>().join("/");
    name.truncate(NAME_BYTES);
    if name.ends_with('/') { name + "_" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_compares_every_name_of_trl() {
        let readme = include_str!("../../README.md");
        let (_, table) = readme.split_once("\n### Metrics beside TRL's\n").unwrap();
        let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
        for (own, name) in TRL {
            let told = rows.iter().filter_map(|row| row.strip_prefix("| ")?.split_once(" | "));
            let told = told.filter(|(foil, _)| {
                foil.contains(&format!("/{name}`")) && foil.contains(&format!("`{own}`"))
            });
            assert_eq!(told.count(), 1, "{own} as {name}");
        }
    }

    #[test]
    fn a_name_has_the_model_and_the_metric_as_trl_calls_it() {
        for (work, metric, name) in [
            (Work::Sft, "loss", "sft/train/loss"),
            (Work::TrainPolicy, "rewards/accuracies", "policy/train/rewards/accuracies"),
            (Work::TrainPolicy, "kl", "policy/train/kl"),
        ] {
            assert_eq!(of_step(work, metric), name);
        }
        for (work, metric, name) in [
            (Work::EvaluatePolicy, "reward_mean", "policy/eval/reward"),
            (Work::EvaluatePolicy, "truncated_rate", "policy/eval/completions/clipped_ratio"),
            (Work::EvaluatePolicy, "kl", "policy/eval/objective/kl"),
            (Work::EvaluatePolicy, "kl_per_token", "policy/eval/kl"),
            (Work::EvaluatePolicy, "reward_gain", "policy/eval/reward_gain"),
            (Work::EvaluateRewardFresh, "accuracy", "reward/eval_fresh/accuracy"),
            (Work::TrainPolicy, "kl", "policy/summary/kl"),
        ] {
            assert_eq!(of_phase(work, metric), name);
        }
    }

    #[test]
    fn no_name_leads_out_of_its_place_or_is_refused() {
        let long = "é/".repeat(400);
        for metric in ["../../x", "a//b", "", "a b\n", "x/.", &long] {
            let name = of_step(Work::Sft, metric);
            assert!(name.len() <= NAME_BYTES + 12, "{name}");
            let parts: Vec<&str> = name.split('/').collect();
            assert!(parts.iter().all(|part| !["", ".", ".."].contains(part)), "{name}");
            assert!(name.is_ascii() && !name.contains([' ', '\n']), "{name}");
        }
    }

    #[test]
    fn no_two_metrics_of_a_phase_share_a_name() {
        let names = ["kl", "kl_per_token", "reward_mean", "reward_sd", "length_mean", "reward", "length_max"];
        let mut named: Vec<String> = names.iter().map(|name| of_phase(Work::EvaluatePolicy, name)).collect();
        named.sort();
        named.dedup();
        // No phase of Foil has a metric `reward`.
        assert_eq!(named.len(), names.len() - 1);
    }
}
