//! Models that stay resident from one phase to the next are equal to their files.

use super::*;
use crate::model::{Head, Model};
use crate::task::Object;

fn demonstrations(test: &TestRank) -> Option<v1::Dataset> {
    let sets = letters::generate(17, Counts { sft: 70, golden: 0, prompts: 0, evaluation: 0 });
    test.dataset("sft", &sets.sft)
}

fn sft(test: &mut TestRank) -> v1::Artifact {
    let (start, demonstrations) = (test.start_model(), demonstrations(test));
    test.gang("r00.sft", Work::Sft(v1::Sft { policy: Some(start.clone()), demonstrations }), &start).0
}

fn generate(test: &mut TestRank, policy: &v1::Artifact) -> v1::Artifact {
    let sets = letters::generate(17, Counts { sft: 0, golden: 0, prompts: 8, evaluation: 0 });
    let prompts = test.dataset("prompts", &sets.prompts);
    let sampling = Some(v1::SamplingSpec::from(&test.context.job.sampling));
    let (generated, _) = test.map("r01.policy.generate", 8, |_| {
        let (policy, prompts, sampling) = (Some(policy.clone()), prompts.clone(), sampling.clone());
        Work::Generate(v1::Generate { policy, prompts, samples: 2, sampling })
    });
    generated
}

fn train_reward(test: &mut TestRank, start: &v1::Artifact) -> (v1::Artifact, v1::GangResult) {
    let rows = (0..8).map(|row| rows::PairRow {
        id: row,
        prompt: rows::Prompt::user("abcde"),
        chosen: "abc".to_owned(),
        rejected: "wxyz"[..1 + row as usize % 4].to_owned(),
        margin: None,
        groups: Vec::new(),
    });
    let mut rows: Vec<rows::PairRow> = rows.collect();
    rows::assign_ids(&mut rows);
    let human = source(Source::Pairs(test.dataset("preferences", &rows).unwrap()));
    let work = v1::TrainReward { start: Some(start.clone()), human, golden: None };
    test.gang("r01.reward.train", Work::TrainReward(work), start)
}

/// Asserts that a kept model equals the one read from its artifact, bit for bit, and has no gradients.
fn assert_as_loaded<H: Head>(test: &mut TestRank, artifact: &v1::Artifact, kept: &Model<H>) {
    let dir = test.context.cache.directory(&Artifact::from(artifact.clone())).unwrap();
    let loaded = Model::<H>::load(&dir, Device::Cpu).unwrap();
    assert_eq!(kept.config(), loaded.config());
    assert_eq!(kept.parameters().names(), loaded.parameters().names());
    assert_eq!(kept.parameters().blake3().unwrap(), loaded.parameters().blake3().unwrap());
    for tensor in kept.parameters().tensors() {
        assert!(!tensor.requires_grad() && !tensor.grad().defined());
    }
}

#[test]
fn a_trained_policy_generates_without_being_loaded() {
    let mut test = TestRank::new(letters_job());
    let policy = sft(&mut test);
    let generated = generate(&mut test, &policy);
    assert!(!test.loaded, "the policy was resident");
    let resident = test.context.policy(&Artifact::from(policy.clone())).unwrap();
    assert_as_loaded(&mut test, &policy, &resident.model);
    let mut other = test.beside();
    assert_eq!(generate(&mut other, &policy), generated);
    assert!(other.loaded);
}

#[test]
fn a_trained_model_is_rounded_as_its_file_is() {
    for (save_dtype, lora) in
        [("bf16", None), ("fp32", Some(v1::LoraSpec { rank: Some(2), ..Default::default() }))]
    {
        let mut job = letters_job();
        let step = job.reward_step.as_mut().unwrap();
        (step.save_dtype, step.lora) = (save_dtype.to_owned(), lora);
        let mut test = TestRank::new(job);
        let policy = sft(&mut test);
        let (reward, _) = train_reward(&mut test, &policy);
        let resident = test.context.reward_model(&Artifact::from(reward.clone())).unwrap();
        assert_as_loaded(&mut test, &reward, &resident.model);
        assert!(test.messages.try_recv().is_err(), "{save_dtype}: nothing was loaded");
    }
}

#[test]
fn training_takes_a_resident_start_model() {
    let mut test = TestRank::new(letters_job());
    let policy = sft(&mut test);
    generate(&mut test, &policy);
    let (_, result) = train_reward(&mut test, &policy);
    assert!(!test.loaded, "the policy was resident");
    let mut other = test.beside();
    let (_, expected) = train_reward(&mut other, &policy);
    assert!(other.loaded);
    assert_eq!(result.parameters_blake3, expected.parameters_blake3);
    // Training has changed it, so the policy differs.
    let fresh = test.context.policy(&Artifact::from(policy.clone())).unwrap();
    assert_as_loaded(&mut test, &policy, &fresh.model);
}

#[test]
fn a_trained_model_goes_when_the_next_phase_does_not_need_it() {
    let mut test = TestRank::new(letters_job());
    let policy = sft(&mut test);
    let phase = Phase { name: "r01.other".to_owned(), round: 1 };
    test.context.begin_task(&phase, 0, &[], None);
    drop(test.context.policy(&Artifact::from(policy)).unwrap());
    let mut told = std::iter::from_fn(|| test.messages.try_recv().ok()?.message);
    let is_load = |message| matches!(message, Message::Progress(progress) if progress.unit == "bytes loaded");
    assert!(told.any(is_load));
}

#[test]
fn a_kept_model_is_told_apart_by_its_files() {
    let mut test = TestRank::new(letters_job());
    let policy = sft(&mut test);
    let (reward, _) = train_reward(&mut test, &policy);
    // The weights of one with the configuration of the other match neither.
    let mut mixed = Artifact::from(reward.clone());
    let weights = |artifact: &v1::Artifact| {
        let object = artifact.objects.iter().find(|object| object.path == "model.safetensors").unwrap();
        Object::from(object.clone())
    };
    assert_ne!(weights(&policy), weights(&reward));
    mixed.objects.retain(|object| object.path != "model.safetensors");
    mixed.objects.push(weights(&policy));
    let error = test.context.reward_model(&mixed).map(drop).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight"), "{error}");
}

#[test]
fn a_model_that_has_diverged_is_not_kept() {
    let mut test = TestRank::new(letters_job());
    let policy = sft(&mut test);
    let artifact = Artifact::from(policy);
    let resident = test.context.policy(&artifact).unwrap();
    let hashes = artifact.objects.iter().map(|object| (object.path.clone(), object.blake3.clone()));
    let hashes: BTreeMap<String, String> = hashes.collect();
    test.context.models.keep_only(&[]);
    for (factor, is_kept) in [(1.0, true), (f64::INFINITY, false)] {
        let model = resident.model.copy();
        let _ = tch::no_grad(|| model.parameters().tensors()[0].shallow_clone().g_mul_scalar_(factor));
        let policies = &mut test.context.models.policies;
        policies.keep_trained(model, hashes.clone(), spec::SaveDtype::Fp32).unwrap();
        let (mut loader, models) = test.context.loader_of(Holding::Masters);
        assert_eq!(models.policies.take(&mut loader, &artifact).unwrap().is_some(), is_kept);
    }
}

#[test]
fn with_fsdp_models_stay_for_all_chunks_of_an_evaluation_if_there_is_room() {
    let mut job = letters_job();
    job.resources = Some(v1::ResourceSpec { sharding: "fsdp".into(), ..Default::default() });
    let mut outputs = Vec::new();
    for (memory, loads) in [(1 << 30, [true, false]), (1 << 10, [true, true])] {
        let mut test = TestRank::new(job.clone());
        test.context.rank.memory = memory;
        let policy = sft(&mut test);
        let (reward, _) = train_reward(&mut test, &policy);
        let sets = letters::generate(17, Counts { sft: 0, golden: 0, prompts: 0, evaluation: 16 });
        let prompts = test.dataset("evaluation_prompts", &sets.evaluation_prompts);
        let work = v1::EvaluatePolicy {
            policy: Some(policy.clone()),
            reference: Some(policy.clone()),
            reward: Some(reward),
            prompts,
            sampling: Some(v1::SamplingSpec::from(&test.context.job.sampling)),
            ..Default::default()
        };
        let found = [0, 8].map(|first| {
            let work = Some(Work::EvaluatePolicy(work.clone()));
            let task = Some(v1::Task { phase: "r01.policy.evaluate".into(), round: 1, work });
            let key = format!("evaluated {first}");
            let command = v1::RunChunk { lease: 1, task, first, count: 8, key, ..Default::default() };
            test.context.run_chunk(&command.try_into().unwrap()).unwrap();
            test.result();
            test.loaded
        });
        assert_eq!(found, loads, "{memory} bytes");
        outputs.push([0, 8].map(|first| test.objects.bytes(&format!("evaluated {first}"))));
    }
    assert!(outputs[0] == outputs[1]);
}
