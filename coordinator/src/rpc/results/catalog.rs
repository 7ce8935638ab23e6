//! The completions that a job's state lists: the rounds that have some, the phases that produced them, and
//! the data sets of their prompts. Built from the state in one short query.

use foil_common::datasets as sets;
use foil_common::spec::Method;
use foil_proto::v1::{self, CompletionSet};
use tonic::Status;

use crate::job::JobState;
use crate::plan::{Phase, Work, chunks_of, segments};

/// Maximum number of rounds shown side by side.
pub(super) const MAX_ROUNDS: usize = 8;

/// The completions of one set.
#[derive(Debug, Clone)]
pub(super) struct Catalog {
    pub(super) job: String,
    pub(super) set: CompletionSet,
    pub(super) seed: u32,
    pub(super) chunk_prompts: u64,
    pub(super) method: Method,
    pub(super) select_worst: bool,
    /// The data sets that the rows come from, in order.
    pub(super) segments: Vec<Segment>,
    /// All rounds with completions, ascending.
    pub(super) available: Vec<u32>,
    /// The rounds that are shown, ascending.
    pub(super) columns: Vec<Column>,
}

/// The rows of one data set.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) object: v1::Object,
    /// Number of the segment's first row among the rows of all segments.
    pub(super) first: u64,
    pub(super) rows: u64,
    pub(super) held_out: bool,
}

/// The completions of one round.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) round: u32,
    pub(super) work: Work,
    pub(super) phase: String,
    pub(super) attempt: u32,
    /// Number of completions per prompt.
    pub(super) samples: u64,
    /// Number of the first chunk of each segment; none if the phase skips the segment.
    pub(super) bases: Vec<Option<u32>>,
    pub(super) policy: Option<v1::Artifact>,
    pub(super) reward: Option<v1::Artifact>,
    pub(super) rewards: Rewards,
}

/// Where the rewards of a round's completions are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rewards {
    /// In the completions themselves.
    Inline,
    /// In the objects of this phase, chunk by chunk.
    Scores(String),
    /// In pairs with golden answers, scored by this phase for the held-out segment.
    Pairs(String),
    /// Not scored yet.
    None,
}

impl Catalog {
    /// The catalog with the rounds that a field requests, or with all rounds; of too many, the first and the
    /// last ones.
    ///
    /// # Errors
    /// Too many rounds are requested, or one that has no completions.
    pub(super) fn of(
        state: &JobState,
        set: CompletionSet,
        field: &str,
        rounds: &[u32],
    ) -> Result<Self, Status> {
        let (work, names) = match set {
            CompletionSet::Unspecified | CompletionSet::Evaluation => {
                (Work::EvaluatePolicy, vec![sets::EVALUATION_PROMPTS])
            }
            CompletionSet::Training => (Work::GeneratePolicy, vec![sets::PROMPTS]),
            CompletionSet::Golden => (Work::GenerateGolden, vec![sets::GOLDEN, sets::GOLDEN_HOLDOUT]),
        };
        let available = rounds_of(state, work);
        let mut shown = shown_rounds(&available, field, rounds)?;
        shown.sort_unstable();
        shown.dedup();
        let mut columns: Vec<Column> =
            shown.into_iter().filter_map(|round| Column::of(state, round, work, &names)).collect();
        let mut segments = Vec::new();
        let mut first = 0;
        for name in &names {
            let covered = columns.iter().any(|column| column.bases[segments.len()].is_some());
            let found = state.dataset(name).filter(|_| covered).and_then(|dataset| {
                Some(Segment {
                    object: dataset.object.clone()?,
                    first,
                    rows: dataset.rows,
                    held_out: *name == sets::GOLDEN_HOLDOUT,
                })
            });
            match found {
                Some(segment) => {
                    first += segment.rows;
                    segments.push(segment);
                }
                None => columns.iter_mut().for_each(|column| {
                    column.bases.remove(segments.len());
                }),
            }
        }
        Ok(Self {
            job: state.id.clone(),
            set,
            seed: state.spec.seed,
            chunk_prompts: state.spec.generation.chunk_prompts.max(1) as u64,
            method: state.spec.policy_step.method,
            select_worst: state.spec.controls.select_worst,
            segments,
            available,
            columns,
        })
    }

    /// Total number of rows in all segments.
    pub(super) fn rows(&self) -> u64 {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// The segment of a row, by index, and the row's number in it.
    pub(super) fn locate(&self, row: u64) -> Option<(usize, u64)> {
        let index = self.segments.iter().position(|segment| row < segment.first + segment.rows)?;
        Some((index, row.checked_sub(self.segments[index].first)?))
    }
}

impl Column {
    fn of(state: &JobState, round: u32, work: Work, names: &[&str]) -> Option<Self> {
        let phase = Phase::id_of(round, work).to_string();
        let done = state.done(&phase)?;
        let mut next = 0;
        let mut bases = vec![None; names.len()];
        for name in segments(&state.spec, round, work) {
            let rows = state.dataset(name).map_or(0, |dataset| dataset.rows);
            if let Some(index) = names.iter().position(|known| *known == name) {
                bases[index] = Some(next);
            }
            next += chunks_of(rows, state.spec.generation.chunk_prompts);
        }
        let before = round.saturating_sub(1);
        let scored =
            |work: Work| Some(Phase::id_of(round, work).to_string()).filter(|id| state.done(id).is_some());
        let (policy, samples, rewards) = match work {
            Work::EvaluatePolicy => (round, 1, Rewards::Inline),
            Work::GeneratePolicy => {
                let rewards = scored(Work::ScorePolicy).map_or(Rewards::None, Rewards::Scores);
                (before, state.spec.policy_step.samples, rewards)
            }
            _ => {
                let rewards = scored(Work::EvaluateRewardFresh).map_or(Rewards::None, Rewards::Pairs);
                (before, state.spec.reward_step.samples, rewards)
            }
        };
        Some(Self {
            round,
            work,
            phase,
            attempt: done.artifact.attempt,
            samples: samples.into(),
            bases,
            policy: policy_of(state, policy).map(model),
            reward: reward_of(state, round).filter(|_| rewards != Rewards::None).map(model),
            rewards,
        })
    }

    /// A permanent name for the completions of this round, because artifacts do not change.
    pub(super) fn key(&self, job: &str) -> String {
        let scored = match &self.rewards {
            Rewards::None => "unscored",
            Rewards::Inline | Rewards::Scores(_) | Rewards::Pairs(_) => "scored",
        };
        format!("{job}/{}/{}/{scored}", self.phase, self.attempt)
    }

    pub(super) fn wire(&self) -> v1::CompletionRound {
        v1::CompletionRound {
            round: self.round,
            phase: self.phase.clone(),
            purpose: self.work.name().to_owned(),
            policy: self.policy.as_ref().map(version),
            reward: self.reward.as_ref().map(version),
            attempt: self.attempt,
        }
    }
}

/// The rounds to show among the existing ones; `field` is where they were requested.
///
/// # Errors
/// Too many rounds are requested, or one that does not exist.
pub(super) fn shown_rounds(all: &[u32], field: &str, wanted: &[u32]) -> Result<Vec<u32>, Status> {
    use crate::rpc::status::bad_field;
    if wanted.len() > MAX_ROUNDS {
        let problem = format!("found {} rounds, expected at most {MAX_ROUNDS}", wanted.len());
        return Err(bad_field(field, &problem));
    }
    if let Some(missing) = wanted.iter().find(|round| !all.contains(round)) {
        let problem = match (all.first(), all.last()) {
            (Some(first), Some(last)) => format!("round {missing} has none; those from {first} to {last} do"),
            _ => format!("round {missing} has none yet, nor has any other"),
        };
        return Err(bad_field(field, &problem));
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let left_out = all.len().saturating_sub(MAX_ROUNDS);
    let shown = all.iter().enumerate().filter(|(index, _)| *index == 0 || *index > left_out);
    Ok(shown.map(|(_, round)| *round).collect())
}

/// The rounds in which a kind of work is committed, ascending.
pub(super) fn rounds_of(state: &JobState, work: Work) -> Vec<u32> {
    let done = state.phases.iter().take(state.committed.len());
    done.filter(|phase| phase.work == work).map(|phase| phase.round).collect()
}

fn made(state: &JobState, round: u32, work: Work) -> Option<&v1::Artifact> {
    state.done(&Phase::id_of(round, work)).map(|done| &done.artifact)
}

/// The policy after a round; none before it is committed.
fn policy_of(state: &JobState, round: u32) -> Option<&v1::Artifact> {
    match round {
        0 if state.spec.has_sft() => made(state, 0, Work::Sft),
        0 => Some(&state.submitted.policy),
        _ => made(state, round, Work::TrainPolicy),
    }
}

/// The reward model of a round: the last one trained.
pub(super) fn reward_of(state: &JobState, round: u32) -> Option<&v1::Artifact> {
    let trained = (1..=round).rev().find(|round| state.spec.trains_reward(*round))?;
    made(state, trained, Work::TrainReward)
}

/// The artifact without the parts that pages do not need.
pub(super) fn model(artifact: &v1::Artifact) -> v1::Artifact {
    v1::Artifact { name: artifact.name.clone(), objects: artifact.objects.clone(), ..Default::default() }
}

/// A model's name, and the hash of the list of its objects' hashes.
pub(super) fn version(artifact: &v1::Artifact) -> v1::ModelVersion {
    let mut objects: Vec<(&str, &str)> =
        artifact.objects.iter().map(|object| (object.path.as_str(), object.blake3.as_str())).collect();
    objects.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for (path, blake3) in objects {
        hasher.update(format!("{blake3}  {path}\n").as_bytes());
    }
    v1::ModelVersion { artifact: artifact.name.clone(), blake3: hasher.finalize().to_hex().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture;

    #[test]
    fn rounds_are_those_whose_phases_are_committed() {
        let phases = fixture::state(&[]).phases;
        let until = |id: &str| 1 + phases.iter().position(|phase| phase.id == id).unwrap();
        let state = fixture::after(&[], until("r02.policy.generate"));
        let of = |set| Catalog::of(&state, set, "rounds", &[]).unwrap();
        let rounds = |set| of(set).columns.iter().map(|column| column.round).collect::<Vec<_>>();
        assert_eq!(rounds(CompletionSet::Evaluation), [0, 1]);
        assert_eq!(rounds(CompletionSet::Training), [1, 2]);
        assert_eq!(rounds(CompletionSet::Golden), [1, 2]);
        let training = of(CompletionSet::Training);
        assert_eq!(training.available, [1, 2]);
        let names: Vec<_> = training
            .columns
            .iter()
            .map(|column| {
                let name = |model: &Option<v1::Artifact>| model.as_ref().map(|model| model.name.clone());
                (name(&column.policy), name(&column.reward), column.rewards.clone())
            })
            .collect();
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(
            names,
            [
                (name("policy@0"), name("reward@1"), Rewards::Scores("r01.policy.score".into())),
                (name("policy@1"), None, Rewards::None),
            ]
        );
        assert_ne!(training.columns[0].key("j"), training.columns[1].key("j"));
    }

    #[test]
    fn golden_rows_go_through_two_sets_unless_only_the_holdout_is_sampled() {
        let state = fixture::after(&[], fixture::state(&[]).phases.len());
        let catalog = Catalog::of(&state, CompletionSet::Golden, "rounds", &[]).unwrap();
        // 9 golden rows in chunks of 4, then 3 held-out rows.
        assert_eq!(catalog.columns[0].bases, [Some(0), Some(3)]);
        assert_eq!((catalog.rows(), catalog.locate(8), catalog.locate(9)), (12, Some((0, 8)), Some((1, 0))));
        assert_eq!(catalog.locate(12), None);
        let human_only: &[fixture::Edit] = &[|spec| {
            let step = spec.reward_step.get_or_insert_default();
            step.apo_weight = Some(0.0);
        }];
        let state = fixture::after(human_only, fixture::state(human_only).phases.len());
        let catalog = Catalog::of(&state, CompletionSet::Golden, "rounds", &[]).unwrap();
        assert_eq!((catalog.segments.len(), catalog.rows()), (1, 3));
        assert!(catalog.segments[0].held_out && catalog.columns[0].bases == [Some(0)]);
    }

    #[test]
    fn of_many_rounds_the_first_and_the_last_are_shown() {
        let all: Vec<u32> = (0..20).collect();
        assert_eq!(shown_rounds(&all, "rounds", &[]).unwrap(), [0, 13, 14, 15, 16, 17, 18, 19]);
        assert_eq!(shown_rounds(&all[..8], "rounds", &[]).unwrap(), all[..8]);
        assert_eq!(shown_rounds(&all, "rounds", &[3, 1]).unwrap(), [3, 1]);
        assert!(shown_rounds(&all, "rounds", &[20]).unwrap_err().message().contains("round 20 has none"));
        assert!(shown_rounds(&all, "rounds", &[0; 9]).unwrap_err().message().contains("at most 8"));
        assert!(shown_rounds(&[], "rounds", &[1]).unwrap_err().message().contains("nor has any other"));
    }

    #[test]
    fn a_models_version_depends_on_its_objects_and_not_on_their_order() {
        let object = |path: &str, blake3: &str| v1::Object {
            path: path.into(),
            blake3: blake3.into(),
            ..Default::default()
        };
        let of = |objects: &[v1::Object]| {
            let artifact = v1::Artifact { objects: objects.to_vec(), ..Default::default() };
            version(&artifact).blake3
        };
        let (a, b) = (object("a", "01"), object("b", "02"));
        assert_eq!(of(&[a.clone(), b.clone()]), of(&[b.clone(), a.clone()]));
        assert_eq!(of(&[a.clone(), b.clone()]), blake3::hash(b"01  a\n02  b\n").to_hex().to_string());
        assert_ne!(of(&[a, b]), of(&[object("a", "02"), object("b", "01")]));
    }
}
