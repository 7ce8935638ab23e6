use foil_common::rpc::{COMMAND_BYTES, REPORT_BYTES};
use foil_proto::v1::policy_step_spec::Method;
use foil_proto::v1::{self, pair_source::Source, task::Work as TaskWork};
use prost::Message;

use crate::job::fixture::{Edit, JOB, after, commit_next, datasets, event, job, state, submitted};
use crate::job::{Change, JobState, rows};
use crate::plan::{Phase, bounded, plan};
use crate::schedule::task::{TaskError, gang_task, lease};

fn ids(edits: &[Edit]) -> Vec<String> {
    plan(&job(edits), &datasets()).into_iter().map(|phase| phase.id.to_string()).collect()
}

fn policy_step(spec: &mut v1::JobSpec) -> &mut v1::PolicyStepSpec {
    spec.policy_step.get_or_insert_default()
}

fn reward_step(spec: &mut v1::JobSpec) -> &mut v1::RewardStepSpec {
    spec.reward_step.get_or_insert_default()
}

/// The state in which `id` is the current phase, and that phase.
fn at(edits: &[Edit], id: &str) -> (JobState, Phase) {
    let index = state(edits).phases.iter().position(|phase| phase.id == id).unwrap();
    let state = after(edits, index);
    let phase = state.phase().unwrap().clone();
    assert_eq!(phase.id, id);
    (state, phase)
}

#[test]
fn a_reward_model_trained_once_is_still_measured_on_fresh_samples() {
    let edits: &[Edit] = &[|spec| reward_step(spec).refresh = "first_round".into()];
    let ids = ids(edits);
    assert!(ids.contains(&"r01.reward.train".into()) && !ids.contains(&"r02.reward.train".into()));
    assert!(ids.contains(&"r02.reward.generate".into()) && ids.contains(&"r02.reward.evaluate_fresh".into()));
    let (state, phase) = at(edits, "r02.policy.score");
    let Some(TaskWork::Score(score)) = lease(&state, &phase, 0).unwrap().task.work else { panic!() };
    assert_eq!(score.reward.unwrap().name, "reward@1");
    let (_, generate) = at(edits, "r02.reward.generate");
    assert_eq!(generate.chunks, 1, "only the holdout");
}

#[test]
fn without_golden_weight_only_the_holdout_is_sampled() {
    let edits: &[Edit] = &[|spec| reward_step(spec).apo_weight = Some(0.0)];
    let (state, phase) = at(edits, "r01.reward.generate");
    assert_eq!(phase.chunks, 1);
    let lease = lease(&state, &phase, 0).unwrap();
    let Some(TaskWork::Generate(generate)) = lease.task.work else { panic!() };
    assert_eq!(generate.prompts.unwrap().name, "golden_holdout");
    let (state, phase) = at(edits, "r01.reward.train");
    let Some(TaskWork::TrainReward(train)) = gang_task(&state, &phase).unwrap().work else { panic!() };
    assert!(train.golden.is_none() && train.human.is_some());
    let (state, phase) = at(edits, "r01.reward.evaluate_fresh");
    let Some(TaskWork::EvaluateReward(fresh)) =
        crate::schedule::task::lease(&state, &phase, 0).unwrap().task.work
    else {
        panic!()
    };
    let Some(Source::Golden(golden)) = fresh.pairs.unwrap().source else { panic!() };
    assert_eq!(golden.samples.unwrap().objects[0].path, "00000");
}

#[test]
fn chunks_cover_every_row_once_and_stay_within_a_set() {
    let edits: &[Edit] = &[|spec| policy_step(spec).method = Some(Method::Dpo(Default::default()))];
    for phase in &state(edits).phases {
        if phase.work.is_gang() {
            continue;
        }
        let (state, phase) = at(edits, &phase.id);
        let mut covered = std::collections::BTreeMap::<String, u64>::new();
        for chunk in 0..phase.chunks {
            let lease = lease(&state, &phase, chunk).unwrap();
            let set = match lease.task.work.unwrap() {
                TaskWork::Generate(task) => task.prompts.unwrap(),
                TaskWork::Score(task) => task.prompts.unwrap(),
                TaskWork::RefLogProbs(task) => task.prompts.unwrap(),
                TaskWork::EvaluatePolicy(task) => task.prompts.unwrap(),
                TaskWork::EvaluateReward(task) => match task.pairs.unwrap().source.unwrap() {
                    Source::Pairs(set) => set,
                    Source::Golden(golden) => golden.golden.unwrap(),
                    Source::GoldLabeled(labeled) => labeled.prompts.unwrap(),
                },
                _ => panic!("a gang task for a chunk"),
            };
            let next = covered.entry(set.name.clone()).or_default();
            assert_eq!(lease.first, *next, "{} chunk {chunk}", phase.id);
            *next += lease.count;
            assert!(*next <= set.rows && lease.count <= 4);
            assert_eq!(rows::of_chunk(&state, &phase, chunk), lease.count);
        }
        assert_eq!(covered.values().sum::<u64>(), rows::total(&state, &phase), "{}", phase.id);
        assert!(matches!(lease(&state, &phase, phase.chunks), Err(TaskError::NoChunk { .. })));
    }
}

#[test]
fn tasks_name_the_right_models_and_samples() {
    let (state, phase) = at(&[], "r02.reward.train");
    let Some(TaskWork::TrainReward(train)) = gang_task(&state, &phase).unwrap().work else { panic!() };
    assert_eq!(
        train.start.unwrap().name,
        "policy@0",
        "base: from the start policy with a fresh head, each round"
    );
    let Some(Source::Golden(golden)) = train.golden.unwrap().source else { panic!() };
    assert_eq!(golden.samples.unwrap().objects.len(), 3, "the golden prompts' batches without the holdout's");
    let (state, phase) = at(&[|spec| reward_step(spec).start = "previous".into()], "r02.reward.train");
    let Some(TaskWork::TrainReward(train)) = gang_task(&state, &phase).unwrap().work else { panic!() };
    assert_eq!(train.start.unwrap().name, "reward@1");

    let (state, phase) = at(&[], "r02.reward.evaluate_fresh");
    let Some(TaskWork::EvaluateReward(fresh)) = lease(&state, &phase, 0).unwrap().task.work else { panic!() };
    let Some(Source::Golden(golden)) = fresh.pairs.unwrap().source else { panic!() };
    let objects = golden.samples.unwrap().objects;
    assert_eq!(objects.len(), 1);
    assert!(objects[0].key.ends_with("r02.reward.generate/00003"), "{}", objects[0].key);

    let (state, phase) = at(&[], "r02.policy.evaluate");
    let Some(TaskWork::EvaluatePolicy(task)) = lease(&state, &phase, 1).unwrap().task.work else { panic!() };
    assert_eq!(task.policy.unwrap().name, "policy@2");
    assert_eq!(task.reference.unwrap().name, "policy@0");
    assert_eq!(task.reward.unwrap().name, "reward@2");
    let objects = |artifact: Option<v1::Artifact>| {
        artifact.map(|artifact| artifact.objects.into_iter().map(|object| object.key).collect::<Vec<_>>())
    };
    let of_chunk = |phase: &str| Some(vec![format!("jobs/{JOB}/phases/{phase}/00001")]);
    assert_eq!(objects(task.start), of_chunk("r00.policy.evaluate"), "the same prompts' answers");
    assert_eq!(objects(task.previous), of_chunk("r01.policy.evaluate"));
    let (state, phase) = at(&[], "r01.policy.evaluate");
    let Some(TaskWork::EvaluatePolicy(task)) = lease(&state, &phase, 1).unwrap().task.work else { panic!() };
    assert!(task.start.is_some() && task.previous.is_none());
    for (phase, first) in
        [("r01.reward.evaluate", None), ("r02.reward.evaluate", of_chunk("r01.reward.evaluate"))]
    {
        let (state, phase) = at(&[], phase);
        let Some(TaskWork::EvaluateReward(task)) = lease(&state, &phase, 1).unwrap().task.work else {
            panic!()
        };
        assert_eq!(objects(task.first), first);
    }
    let (state, phase) = at(&[], "r00.policy.evaluate");
    let Some(TaskWork::EvaluatePolicy(task)) = lease(&state, &phase, 0).unwrap().task.work else { panic!() };
    assert!(task.reference.is_none() && task.reward.is_none() && task.start.is_none());
}

/// The task of round 2's Reference phase, whose result the next training reads.
fn ref_log_probs(edits: &[Edit]) -> v1::RefLogProbs {
    let (state, phase) = at(edits, "r02.policy.ref_log_probs");
    assert_eq!(phase.chunks, 3, "10 prompts by 4");
    let Some(TaskWork::RefLogProbs(task)) = lease(&state, &phase, 1).unwrap().task.work else { panic!() };
    let (state, phase) = at(edits, "r02.policy.train");
    let Some(TaskWork::TrainPolicy(train)) = gang_task(&state, &phase).unwrap().work else { panic!() };
    assert_eq!(train.ref_log_probs.unwrap().name, "ref_log_probs/r02.policy.ref_log_probs");
    task
}

/// Names of the reference policy and of the old policy.
fn names(task: &v1::RefLogProbs) -> (Option<&str>, Option<&str>) {
    fn name(policy: &Option<v1::Artifact>) -> Option<&str> {
        policy.as_ref().map(|policy| policy.name.as_str())
    }
    (name(&task.reference), name(&task.old_policy))
}

#[test]
fn methods_with_a_reference_get_its_log_probs() {
    let dpo: &[Edit] = &[|spec| policy_step(spec).method = Some(Method::Dpo(Default::default()))];
    let task = ref_log_probs(dpo);
    assert_eq!(names(&task), (Some("policy@1"), None), "the policy that the round began with");
    let one = |artifact: Option<v1::Artifact>| {
        let v1::Artifact { name, objects, .. } = artifact.unwrap();
        (name, objects.into_iter().map(|object| object.path).collect::<Vec<_>>())
    };
    assert_eq!(one(task.samples), ("samples/r02.policy.generate".to_owned(), vec!["00001".to_owned()]));
    assert_eq!(one(task.scores), ("scores/r02.policy.score".to_owned(), vec!["00001".to_owned()]));
    let (state, phase) = at(dpo, "r02.policy.score");
    let Some(TaskWork::Score(score)) = lease(&state, &phase, 2).unwrap().task.work else { panic!() };
    assert_eq!(one(score.samples).1, ["00002"], "only the chunk's own");
    let ids: Vec<String> = ids(dpo).into_iter().filter(|id| id.starts_with("r01.policy")).collect();
    let order = ["generate", "score", "ref_log_probs", "train", "evaluate"];
    assert_eq!(ids, order.map(|work| format!("r01.policy.{work}")));

    let initial: &[Edit] = &[|spec| {
        let step = policy_step(spec);
        step.method = Some(Method::Ipo(v1::IpoSpec { reference: "initial".into(), ..Default::default() }));
    }];
    assert_eq!(names(&ref_log_probs(initial)), (Some("policy@0"), None));
    let grpo: &[Edit] = &[|spec| policy_step(spec).method = Some(Method::Grpo(Default::default()))];
    assert_eq!(
        names(&ref_log_probs(grpo)),
        (None, Some("policy@1")),
        "without a KL term, only the old policy"
    );
    let priced: &[Edit] = &[|spec| {
        let step = policy_step(spec);
        let rloo = v1::RlooSpec { reference: "initial".into(), beta: Some(0.1), ..Default::default() };
        step.method = Some(Method::Rloo(rloo));
    }];
    assert_eq!(names(&ref_log_probs(priced)), (Some("policy@0"), Some("policy@1")));

    let rrhf: &[Edit] = &[|spec| policy_step(spec).method = Some(Method::Rrhf(Default::default()))];
    let (state, phase) = at(rrhf, "r01.policy.train");
    let Some(TaskWork::TrainPolicy(train)) = gang_task(&state, &phase).unwrap().work else { panic!() };
    assert!(
        train.ref_log_probs.is_none()
            && !state.phases.iter().any(|phase| phase.id.ends_with("ref_log_probs"))
    );
}

/// A job with the maximum number of chunks in a phase, at the phase `id`.
fn largest(edits: &[Edit], id: &str) -> (JobState, Phase) {
    let mut submitted = submitted(edits);
    for set in submitted.datasets.iter_mut().filter(|set| set.name == "prompts") {
        set.rows = 10_000;
    }
    let phases = bounded(&job(edits), &submitted.datasets).unwrap();
    submitted.plan.phases = phases.iter().map(Into::into).collect();
    let mut state = JobState::submitted(JOB, 1, submitted).unwrap();
    let (phase, world) = (state.phases[0].id.to_string(), state.spec.resources.ranks);
    state.apply(&event(2, Change::AttemptStarted { attempt: 1, phase, world })).unwrap();
    while state.phase().unwrap().id != id {
        commit_next(&mut state);
    }
    let phase = state.phase().unwrap().clone();
    (state, phase)
}

/// Encoded size of an artifact whose objects have the longest possible keys.
fn size_at_most(artifact: Option<&v1::Artifact>) -> usize {
    let number = u64::MAX;
    let key = format!(
        "jobs/{}/phases/r10000.policy.ref_log_probs/09999/{number}-{number}-{number}",
        "j".repeat(26)
    );
    let object = v1::Object { key, size: number, blake3: "0".repeat(64), path: "00000".into() };
    artifact.map_or(0, |artifact| {
        let mut artifact = artifact.clone();
        artifact.objects.fill(object);
        artifact.encoded_len()
    })
}

#[test]
fn a_task_fits_its_message_at_the_largest_plan() {
    let edits: &[Edit] = &[
        |spec| policy_step(spec).method = Some(Method::Dpo(Default::default())),
        |spec| spec.generation = Some(v1::GenerationSpec { chunk_prompts: Some(1), ..Default::default() }),
    ];
    let (state, phase) = largest(edits, "r01.policy.ref_log_probs");
    assert_eq!(phase.chunks, 10_000);
    let task = lease(&state, &phase, 9_999).unwrap().task;
    let Some(TaskWork::RefLogProbs(work)) = &task.work else { panic!() };
    assert_eq!(work.samples.as_ref().unwrap().objects[0].path, "09999");
    assert!(task.encoded_len() < 8192, "{} bytes for each chunk", task.encoded_len());

    let (state, phase) = largest(edits, "r01.policy.train");
    let task = gang_task(&state, &phase).unwrap();
    let Some(TaskWork::TrainPolicy(work)) = &task.work else { panic!() };
    let parts = [work.samples.as_ref(), work.scores.as_ref(), work.ref_log_probs.as_ref()];
    let size: usize = parts.into_iter().map(size_at_most).sum();
    assert!(size > REPORT_BYTES * 2, "larger than workers may send, so it is not repeated");
    assert!(size < COMMAND_BYTES / 4 * 3, "{size} bytes");
}
