//! Prompts shared between a job's data sets, and their effect on the metrics.

use std::collections::HashSet;

use foil_common::data::near::NearDuplicates;
use foil_common::data::rows::{Prompt, PromptKey, Row};
use foil_common::datasets;
use foil_common::plural::{are, counted};
use foil_common::spec::{self, Deduplication};

use super::sets::Sets;

impl Sets {
    /// Warns about data sets that share prompts, and thus about metrics measured on training prompts.
    pub(super) fn report_overlaps(&mut self, job: &spec::Job) {
        if job.data.generator.is_some() {
            let note =
                "the letters task has only 56 sets of five letters, so its data sets share prompts by chance";
            self.warnings.extend(evaluation_overlap(self).map(|overlaps| format!("{note}; {overlaps}")));
            return;
        }
        self.warnings.extend(pair_warnings(self));
        self.warnings.extend(near_warnings(self, job.data.deduplication));
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
    texts(sets).into_iter().map(|(prompts, _)| prompts).collect()
}

/// All data sets, with the prompt of each row.
fn texts(sets: &Sets) -> Vec<(Prompts, Vec<&Prompt>)> {
    use Role::{MeasuresPolicy, MeasuresReward, TrainsPolicy, TrainsReward};
    fn of<'a, T: Row>(name: &'static str, role: Role, rows: &'a [T]) -> (Prompts, Vec<&'a Prompt>) {
        (Prompts::of(name, role, rows), rows.iter().map(Row::prompt).collect())
    }
    vec![
        of(datasets::SFT, TrainsPolicy, &sets.sft),
        of(datasets::PREFERENCES, TrainsReward, &sets.preferences),
        of(datasets::GOLD_PREFERENCE_PROMPTS, TrainsReward, &sets.gold_preference_prompts),
        of(datasets::GOLDEN, TrainsReward, &sets.golden),
        of(datasets::PROMPTS, TrainsPolicy, &sets.prompts),
        of(datasets::EVALUATION_PREFERENCES, MeasuresReward, &sets.evaluation_preferences),
        of(
            datasets::GOLD_PREFERENCE_EVALUATION_PROMPTS,
            MeasuresReward,
            &sets.gold_preference_evaluation_prompts,
        ),
        of(datasets::GOLDEN_HOLDOUT, MeasuresReward, &sets.golden_holdout),
        of(datasets::EVALUATION_PROMPTS, MeasuresPolicy, &sets.evaluation_prompts),
    ]
}

/// One warning for each pair of sets that share prompts.
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
            let (of, rows) = (counted(of, "prompt"), counted(rows, "row"));
            format!("{name}: {shared} of its {of} ({rows}) {} in {} too, {meaning}", are(shared), first.name)
        })
    };
    pairs.filter_map(warning).collect()
}

/// One warning for each evaluation set whose prompts nearly match prompts of a training set whose model it
/// measures.
pub(super) fn near_warnings(sets: &Sets, wanted: Deduplication) -> Vec<String> {
    let threshold = if wanted.threshold > 0.0 { wanted.threshold } else { Deduplication::OVERLAP };
    let near = NearDuplicates::new(threshold, wanted.ngram);
    let all = texts(sets);
    let (measured, training): (Vec<_>, Vec<_>) = all.into_iter().partition(|(set, _)| set.is_measured());
    let mut warnings = Vec::new();
    for (set, prompts) in &measured {
        let mut seen = HashSet::new();
        let distinct: Vec<&Prompt> = prompts
            .iter()
            .zip(&set.row_keys)
            .filter(|(_, key)| seen.insert(**key))
            .map(|(prompt, _)| *prompt)
            .collect();
        for (trained, others) in &training {
            let meaning = meaning(trained, set);
            if distinct.is_empty() || !meaning.starts_with("so ") {
                continue;
            }
            let found = near.of_prompts(&distinct, others.iter().copied());
            let count = found.into_iter().filter(|near| *near).count();
            if count > 0 {
                let equal = if count == 1 { "equals" } else { "equal" };
                warnings.push(format!(
                    "{}: {count} of its {} nearly {equal} others in {} (Jaccard similarity of their word {}-grams of {threshold} \
                     or more), {meaning}",
                    set.name,
                    counted(distinct.len(), "prompt"),
                    trained.name,
                    wanted.ngram
                ));
            }
        }
    }
    warnings
}

/// For a generator, whose sets share prompts by construction: counts the prompts of each evaluation set that
/// are also in a training set, if there are any.
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
