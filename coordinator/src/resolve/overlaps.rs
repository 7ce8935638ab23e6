//! Prompts shared by two of a job's data sets, and their effect on the metrics.

use std::collections::HashSet;

use foil_common::data::rows::{PromptKey, Row};
use foil_common::datasets;
use foil_common::spec;

use super::sets::Sets;

impl Sets {
    /// Warns about data sets that share prompts, and so about metrics measured on training prompts.
    pub(super) fn report_overlaps(&mut self, job: &spec::Job) {
        if job.data.generator.is_some() {
            let note =
                "the letters task has only 56 sets of five letters, so its data sets share prompts by chance";
            self.warnings.extend(evaluation_overlap(self).map(|overlaps| format!("{note}; {overlaps}")));
            return;
        }
        self.warnings.extend(pair_warnings(self));
        if self.golden_holdout.is_empty() && !self.golden.is_empty() {
            self.warnings.push(
                "golden_holdout: no golden prompt is held out, so accuracy on fresh samples is not measured"
                    .to_owned(),
            );
        }
    }
}

/// The use of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    TrainsPolicy,
    TrainsReward,
    MeasuresPolicy,
    MeasuresReward,
}

/// The prompts of a data set.
#[derive(Debug)]
struct Prompts {
    name: &'static str,
    role: Role,
    row_keys: Vec<PromptKey>,
    distinct: HashSet<PromptKey>,
}

impl Prompts {
    fn of<T: Row>(name: &'static str, role: Role, rows: &[T]) -> Self {
        let row_keys: Vec<PromptKey> = rows.iter().map(|row| row.prompt().key()).collect();
        Self { name, role, distinct: row_keys.iter().copied().collect(), row_keys }
    }

    fn is_measured(&self) -> bool {
        matches!(self.role, Role::MeasuresPolicy | Role::MeasuresReward)
    }
}

/// All data sets, training sets before evaluation sets.
fn all(sets: &Sets) -> Vec<Prompts> {
    use Role::{MeasuresPolicy, MeasuresReward, TrainsPolicy, TrainsReward};
    vec![
        Prompts::of(datasets::SFT, TrainsPolicy, &sets.sft),
        Prompts::of(datasets::PREFERENCES, TrainsReward, &sets.preferences),
        Prompts::of(datasets::GOLD_PREFERENCE_PROMPTS, TrainsReward, &sets.gold_preference_prompts),
        Prompts::of(datasets::GOLDEN, TrainsReward, &sets.golden),
        Prompts::of(datasets::PROMPTS, TrainsPolicy, &sets.prompts),
        Prompts::of(datasets::EVALUATION_PREFERENCES, MeasuresReward, &sets.evaluation_preferences),
        Prompts::of(
            datasets::GOLD_PREFERENCE_EVALUATION_PROMPTS,
            MeasuresReward,
            &sets.gold_preference_evaluation_prompts,
        ),
        Prompts::of(datasets::GOLDEN_HOLDOUT, MeasuresReward, &sets.golden_holdout),
        Prompts::of(datasets::EVALUATION_PROMPTS, MeasuresPolicy, &sets.evaluation_prompts),
    ]
}

/// A warning for each two sets that share prompts.
pub(super) fn pair_warnings(sets: &Sets) -> Vec<String> {
    let all = all(sets);
    let pairs = all
        .iter()
        .enumerate()
        .flat_map(|(index, first)| all[index + 1..].iter().map(move |second| (first, second)));
    let warning = |(first, second): (&Prompts, &Prompts)| {
        let shared = second.distinct.intersection(&first.distinct).count();
        let rows = second.row_keys.iter().filter(|key| first.distinct.contains(key)).count();
        let (name, of) = (second.name, second.distinct.len());
        let meaning = meaning(first, second);
        (shared > 0).then(|| {
            format!("{name}: {shared} of its {of} prompts ({rows} rows) are in {} too, {meaning}", first.name)
        })
    };
    pairs.filter_map(warning).collect()
}

/// Counts for a generator whose sets share prompts by construction: prompts of each evaluation set that are
/// in a training set, if any are.
pub(super) fn evaluation_overlap(sets: &Sets) -> Option<String> {
    let (measured, training): (Vec<Prompts>, Vec<Prompts>) =
        all(sets).into_iter().partition(Prompts::is_measured);
    let trained: HashSet<PromptKey> = training.into_iter().flat_map(|set| set.distinct).collect();
    let overlaps: Vec<String> = measured
        .iter()
        .filter_map(|set| {
            let shared = set.distinct.intersection(&trained).count();
            (shared > 0).then(|| format!("{} {shared} of {}", set.name, set.distinct.len()))
        })
        .collect();
    let warning = || format!("evaluation prompts that are in a training set too: {}", overlaps.join(", "));
    (!overlaps.is_empty()).then(warning)
}

fn meaning(first: &Prompts, second: &Prompts) -> &'static str {
    use Role::{MeasuresPolicy, MeasuresReward, TrainsPolicy, TrainsReward};
    match (first.role, second.role) {
        (TrainsPolicy, MeasuresPolicy) | (TrainsReward, MeasuresReward) => {
            "so the figures measured there flatter"
        }
        (TrainsReward, MeasuresPolicy) => {
            "so the reward measured there flatters: the reward model was trained on these prompts"
        }
        (TrainsPolicy, MeasuresReward) if second.name == datasets::GOLDEN_HOLDOUT => {
            "so the samples it is measured against are those of a policy trained on these prompts"
        }
        (TrainsPolicy, MeasuresReward) => "which flatters no figure: the policy alone is trained on them",
        (TrainsReward, TrainsPolicy) if first.name == datasets::GOLDEN => {
            "though golden answers should belong to the reward model's own prompts"
        }
        (TrainsReward, TrainsPolicy) | (TrainsPolicy, TrainsReward) => {
            "so the policy and the reward model that scores it are trained on the same prompts"
        }
        (TrainsPolicy, TrainsPolicy) | (TrainsReward, TrainsReward) => {
            "which flatters no figure: both train one model"
        }
        _ => "which flatters no figure, though those of the two sets are not independent",
    }
}
