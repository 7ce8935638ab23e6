//! Prompts shared between a job's data sets, and their effect on the metrics.

use std::collections::HashSet;

use foil_common::data::near::NearDuplicates;
use foil_common::data::row_set::{Lines, SpillError};
use foil_common::data::rows::PromptKey;
use foil_common::datasets;
use foil_common::plural::{are, counted};
use foil_common::spec::{self, Deduplication};

use super::sets::Sets;

impl Sets {
    /// Warns about data sets that share prompts, and thus about metrics measured on training prompts.
    pub(super) fn report_overlaps(&mut self, job: &spec::Job) -> Result<(), SpillError> {
        if job.data.generator.is_some() {
            let note =
                "the letters task has only 56 sets of five letters, so its data sets share prompts by chance";
            let overlaps = evaluation_overlap(self).map(|overlaps| format!("{note}; {overlaps}"));
            self.warnings.extend(overlaps);
            return Ok(());
        }
        let shared = pair_warnings(self);
        let near = near_warnings(self, job.data.deduplication)?;
        self.warnings.extend(shared.into_iter().chain(near));
        if self.golden_holdout.is_empty() && !self.golden.is_empty() {
            self.warnings.push(
                "golden_holdout: no golden prompt is held out, so accuracy on fresh samples is not measured"
                    .to_owned(),
            );
        }
        Ok(())
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
struct Prompts<'a> {
    name: &'static str,
    role: Role,
    lines: &'a Lines,
    distinct: HashSet<&'a PromptKey>,
}

impl<'a> Prompts<'a> {
    fn new((name, lines): (&'static str, &'a Lines)) -> Self {
        let role = match name {
            datasets::SFT | datasets::PROMPTS => Role::TrainsPolicy,
            datasets::PREFERENCES | datasets::GOLD_PREFERENCE_PROMPTS | datasets::GOLDEN => {
                Role::TrainsReward
            }
            datasets::EVALUATION_PROMPTS => Role::MeasuresPolicy,
            _ => Role::MeasuresReward,
        };
        Self { name, role, lines, distinct: lines.keys().collect() }
    }

    fn is_measured(&self) -> bool {
        matches!(self.role, Role::MeasuresPolicy | Role::MeasuresReward)
    }
}

/// All data sets: those for training, and those for evaluation.
fn all(sets: &Sets) -> (Vec<Prompts<'_>>, Vec<Prompts<'_>>) {
    sets.all().map(Prompts::new).into_iter().partition(|set| !set.is_measured())
}

/// One warning for each pair of sets that share prompts.
pub(super) fn pair_warnings(sets: &Sets) -> Vec<String> {
    let (training, measured) = all(sets);
    let all: Vec<_> = training.iter().chain(&measured).collect();
    let pairs = all
        .iter()
        .enumerate()
        .flat_map(|(index, first)| all[index + 1..].iter().map(move |second| (*first, *second)));
    let warning = |(first, second): (&Prompts<'_>, &Prompts<'_>)| {
        let shared = second.distinct.intersection(&first.distinct).count();
        let rows = second.lines.keys().filter(|key| first.distinct.contains(key)).count();
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
pub(super) fn near_warnings(sets: &Sets, wanted: Deduplication) -> Result<Vec<String>, SpillError> {
    let threshold = if wanted.threshold > 0.0 { wanted.threshold } else { Deduplication::OVERLAP };
    let near = NearDuplicates::new(threshold, wanted.ngram);
    let (training, measured) = all(sets);
    let mut warnings = Vec::new();
    for set in &measured {
        for trained in &training {
            let meaning = meaning(trained, set);
            if set.lines.is_empty() || !meaning.starts_with("so ") {
                continue;
            }
            let found = near.of_prompts(set.lines, trained.lines)?;
            let count = found.into_iter().filter(|near| *near).count();
            if count > 0 {
                let equal = if count == 1 { "equals" } else { "equal" };
                warnings.push(format!(
                    "{}: {count} of its {} nearly {equal} others in {} (Jaccard similarity of their word {}-grams of {threshold} \
                     or more), {meaning}",
                    set.name,
                    counted(set.distinct.len(), "prompt"),
                    trained.name,
                    wanted.ngram
                ));
            }
        }
    }
    Ok(warnings)
}

/// For a generator, whose sets share prompts by construction: counts the prompts of each evaluation set that
/// are also in a training set, if there are any.
pub(super) fn evaluation_overlap(sets: &Sets) -> Option<String> {
    let (training, measured) = all(sets);
    let trained: HashSet<&PromptKey> = training.into_iter().flat_map(|set| set.distinct).collect();
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

fn meaning(first: &Prompts<'_>, second: &Prompts<'_>) -> &'static str {
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
