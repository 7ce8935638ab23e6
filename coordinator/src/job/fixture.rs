//! A small job for tests: the letters task with made-up data sets.

use foil_common::spec;
use foil_proto::v1;

use super::event::{Change, Event, Submitted};
use super::state::JobState;
use crate::plan;

pub(crate) const JOB: &str = "j1";

/// A change to the job file.
pub(crate) type Edit = fn(&mut v1::JobSpec);

pub(crate) fn spec(edits: &[Edit]) -> v1::JobSpec {
    let hash = "ab".repeat(32);
    let mut spec = v1::JobSpec {
        name: "tiny".into(),
        rounds: Some(2),
        policy: Some(v1::PolicySpec { model: format!("model:{hash}:letters"), init: "random".into() }),
        data: Some(v1::DataSpec {
            generator: Some(v1::GeneratorSpec { name: "letters".into(), ..Default::default() }),
            gold_preferences: Some(v1::GoldPreferencesSpec::default()),
            ..Default::default()
        }),
        generation: Some(v1::GenerationSpec { chunk_prompts: Some(4), max_num_seqs: Some(4) }),
        evaluation: Some(v1::EvaluationSpec { gold: "letters".into(), ..Default::default() }),
        resources: Some(v1::ResourceSpec { ranks: Some(2), ..Default::default() }),
        ..Default::default()
    };
    edits.iter().for_each(|edit| edit(&mut spec));
    spec
}

pub(crate) fn job(edits: &[Edit]) -> spec::Job {
    spec::Job::try_from(spec(edits)).expect("the fixture is valid")
}

pub(crate) fn object(key: &str) -> v1::Object {
    let blake3 = blake3::hash(key.as_bytes()).to_hex().to_string();
    v1::Object { key: key.into(), size: 1, blake3, path: key.rsplit('/').next().unwrap_or_default().into() }
}

pub(crate) fn datasets() -> Vec<v1::Dataset> {
    let rows = [
        ("sft", 130),
        ("preferences", 70),
        ("evaluation_preferences", 5),
        ("golden", 9),
        ("golden_holdout", 3),
        ("prompts", 10),
        ("evaluation_prompts", 5),
        ("gold_preference_prompts", 70),
        ("gold_preference_evaluation_prompts", 6),
    ];
    rows.into_iter()
        .map(|(name, rows)| v1::Dataset {
            name: name.into(),
            object: Some(object(&format!("jobs/{JOB}/data/{name}.jsonl"))),
            rows,
        })
        .collect()
}

pub(crate) fn submitted(edits: &[Edit]) -> Submitted {
    let job = job(edits);
    let files = ["config.json", "tokenizer.json", "model.safetensors"];
    Submitted {
        request_id: "r1".into(),
        spec_hash: "h".into(),
        spec: Some(Box::new((&job).into())),
        plan: v1::Plan {
            phases: plan::plan(&job, &datasets()).iter().map(Into::into).collect(),
            datasets: vec![],
        },
        datasets: datasets(),
        policy: v1::Artifact {
            name: "policy@input".into(),
            kind: "policy".into(),
            objects: files.map(|file| object(&format!("inputs/{file}"))).into(),
            ..Default::default()
        },
        reward: None,
        tenant: String::new(),
        owner: String::new(),
        traceparent: String::new(),
        received_at: 0,
        warnings: Vec::new(),
    }
}

pub(crate) fn event(at: u64, change: Change) -> Event {
    Event::new(JOB, at, change)
}

pub(crate) fn state(edits: &[Edit]) -> JobState {
    JobState::submitted(JOB, 1, submitted(edits)).expect("the fixture is valid")
}

/// The state with the next `count` phases committed by made-up artifacts.
pub(crate) fn after(edits: &[Edit], count: usize) -> JobState {
    let mut state = state(edits);
    let world = state.spec.resources.ranks;
    let phase = state.phases[0].id.to_string();
    state.apply(&event(2, Change::AttemptStarted { attempt: 1, phase, world })).expect("it can start");
    for _ in 0..count {
        commit_next(&mut state);
    }
    state
}

pub(crate) fn commit_next(state: &mut JobState) {
    commit_next_with(state, |phase| {
        vec![v1::Metric { name: "gold_mean".into(), value: f64::from(phase.round), se: None }]
    });
}

/// Commits the next phase with the given metrics.
pub(crate) fn commit_next_with(state: &mut JobState, metrics: impl Fn(&plan::Phase) -> Vec<v1::Metric>) {
    let phase = state.phase().expect("a phase is left").clone();
    let (name, kind) = plan::artifact_name(&phase);
    let files: Vec<String> = match phase.work.is_gang() {
        true => ["config.json", "model.safetensors", "tokenizer.json"].map(str::to_owned).into(),
        false => (0..phase.chunks).map(|chunk| format!("{chunk:05}")).collect(),
    };
    let objects =
        files.iter().map(|file| object(&format!("jobs/{JOB}/phases/{}/{file}", phase.id))).collect();
    let artifact = v1::Artifact {
        name,
        kind: kind.into(),
        job_id: JOB.into(),
        phase: phase.id.to_string(),
        round: phase.round,
        attempt: 1,
        objects,
    };
    let metrics = metrics(&phase);
    let done = super::Committed { phase: phase.id.into(), artifact, metrics, seconds: 1.0, steps: None };
    state.apply(&event(3, Change::PhaseCommitted(Box::new(done)))).expect("it can be committed");
}
