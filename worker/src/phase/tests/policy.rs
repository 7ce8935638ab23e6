//! Policy training on completions with made-up scores, and the log-probabilities it needs.

use foil_common::spec::{Grpo, Method, ReferencePolicy, Rejection};
use foil_proto::v1::policy_step_spec::Method as MethodSpec;
use serde_json::json;

use super::*;
use crate::evaluate::completion_log_probs;
use crate::phase::support::dialogue::DialogueEncoder;
use crate::phase::support::policy_rows::{LogProbs, PolicyRows};
use crate::task::RowRange;

/// A round up to its scores: 20 prompts with 3 completions each, where later completions score higher.
struct Round {
    test: TestRank,
    start: v1::Artifact,
    policy: v1::Artifact,
    prompts: Option<v1::Dataset>,
    samples: v1::Artifact,
    scores: v1::Artifact,
}

impl Round {
    fn new(edit: impl FnOnce(&mut v1::JobSpec)) -> Self {
        let mut job = letters_job();
        edit(&mut job);
        let mut test = TestRank::new(job);
        let sets = letters::generate(17, Counts { sft: 64, golden: 0, prompts: 20, evaluation: 0 });
        let directory = test.start_model();
        let mut fine_tune = |phase: &str, rows: &[_]| {
            let demonstrations = test.dataset(phase, rows);
            let sft = Work::Sft(v1::Sft { policy: Some(directory.clone()), demonstrations });
            test.gang(phase, sft, &directory).0
        };
        let (start, policy) = (fine_tune("r00.sft", &sets.sft[..16]), fine_tune("r01.sft", &sets.sft));
        let prompts = test.dataset("prompts", &sets.prompts);
        let sampling = Some(v1::SamplingSpec::from(&test.context.job.sampling));
        let (samples, _) = test.map("r01.policy.generate", 20, |_| {
            let (policy, prompts, sampling) = (Some(policy.clone()), prompts.clone(), sampling.clone());
            Work::Generate(v1::Generate { policy, prompts, samples: 3, sampling })
        });
        let scores = made_up_scores(&test, &samples);
        Self { test, start, policy, prompts, samples, scores }
    }

    fn work(&self, reference: Option<&v1::Artifact>, old_policy: Option<&v1::Artifact>) -> v1::RefLogProbs {
        v1::RefLogProbs {
            reference: reference.cloned(),
            old_policy: old_policy.cloned(),
            prompts: self.prompts.clone(),
            samples: Some(self.samples.clone()),
            scores: Some(self.scores.clone()),
            generated_by: Some(self.policy.clone()),
        }
    }

    /// Trains the round's policy with the job's method.
    fn train(&mut self, reference: Option<v1::Artifact>) -> (v1::Artifact, v1::GangResult) {
        let train = Work::TrainPolicy(v1::TrainPolicy {
            policy: Some(self.policy.clone()),
            prompts: self.prompts.clone(),
            samples: Some(self.samples.clone()),
            scores: Some(self.scores.clone()),
            ref_log_probs: reference,
        });
        let policy = self.policy.clone();
        self.test.gang("r01.policy.train", train, &policy)
    }

    fn ref_log_probs(&mut self, work: &v1::RefLogProbs) -> (v1::Artifact, Vec<v1::Metric>) {
        self.test.map("r01.policy.ref_log_probs", 20, |number| {
            let of = |whole: &Option<v1::Artifact>| chunk_of(whole.as_ref().unwrap(), number);
            let (samples, scores) = (of(&work.samples), of(&work.scores));
            Work::RefLogProbs(v1::RefLogProbs { samples, scores, ..work.clone() })
        })
    }
}

pub(super) fn made_up_scores(test: &TestRank, samples: &v1::Artifact) -> v1::Artifact {
    let score = |object: &v1::Object| {
        let batch = v1::SampleBatch::decode(test.objects.bytes(&object.key).as_slice()).unwrap();
        let scores = batch.samples.iter().map(|sample| v1::RewardScore {
            prompt_id: sample.prompt_id,
            index: sample.index,
            reward: f64::from(sample.index),
        });
        let scores = v1::RewardScores { scores: scores.collect(), ..Default::default() };
        test.objects.put(&format!("scores of {}", object.key), &scores.encode_to_vec(), "").into()
    };
    v1::Artifact { objects: samples.objects.iter().map(score).collect(), ..Default::default() }
}

fn method(name: &str) -> impl FnOnce(&mut v1::JobSpec) + use<> {
    let method = named(name);
    move |job| job.policy_step.get_or_insert_default().method = method
}

/// A method with its defaults.
fn named(name: &str) -> Option<MethodSpec> {
    let step: v1::PolicyStepSpec = serde_json::from_value(json!({ name: {} })).unwrap();
    assert!(step.method.is_some(), "{name}");
    step.method
}

fn batch(test: &TestRank, artifact: &v1::Artifact, chunk: usize) -> v1::LogProbsBatch {
    v1::LogProbsBatch::decode(test.objects.bytes(&artifact.objects[chunk].key).as_slice()).unwrap()
}

/// Log-probabilities of the first prompt's completions under `policy`, each in a separate pass.
fn expected(round: &mut Round, policy: &v1::Artifact) -> Vec<Vec<f32>> {
    let prompts = round.prompts.clone().unwrap().try_into().unwrap();
    let (completions, scores) = (round.samples.clone().into(), round.scores.clone().into());
    let context = &mut round.test.context;
    let first = RowRange { first: 0, count: 1 };
    let rows = PolicyRows::read(context, &prompts, first, &completions, &scores).unwrap();
    let policy = context.policy(&policy.clone().into()).unwrap();
    let encoder = DialogueEncoder::new(&policy, &context.job);
    let groups = [0, 1, 2].map(|index| rows.groups().unwrap()[0].encode(&encoder, &[index]).unwrap());
    let found = completion_log_probs(&policy.model, &groups, Precision::Fp32, 1).unwrap();
    found.into_iter().flatten().collect()
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} not {expected:?}");
}

#[test]
fn dpo_gets_the_reference_log_probs_of_its_pairs() {
    let mut round = Round::new(method("dpo"));
    let policy = round.policy.clone();
    let work = round.work(Some(&policy), None);
    let (artifact, metrics) = round.ref_log_probs(&work);
    assert!(value(&metrics, "ref_nll") > 0.0);
    assert!(!metrics.iter().any(|metric| metric.name == "old_policy_nll"));
    let first = batch(&round.test, &artifact, 0);
    let of_first_prompt: Vec<&v1::SampleLogProbs> =
        first.samples.iter().filter(|sample| sample.prompt_id == first.samples[0].prompt_id).collect();
    let indices: Vec<u32> = of_first_prompt.iter().map(|sample| sample.index).collect();
    assert_eq!(indices, [0, 2], "the worst and the best of three");
    let expected = expected(&mut round, &policy);
    for sample in of_first_prompt {
        assert_near(&sample.ref_log_probs, &expected[sample.index as usize]);
        assert!(sample.old_log_probs.is_empty());
    }
}

/// Checks that any policy other than the one that generated the completions drifts.
#[test]
fn drift_distinguishes_the_policy_that_generated_the_completions() {
    let mut round = Round::new(method("dpo"));
    let (start, policy) = (round.start.clone(), round.policy.clone());
    let mut drift = |reference: &v1::Artifact, generated_by: &v1::Artifact| {
        let work =
            v1::RefLogProbs { generated_by: Some(generated_by.clone()), ..round.work(Some(reference), None) };
        round.ref_log_probs(&work).1
    };
    let own = drift(&policy, &policy);
    assert!(value(&own, "drift_max") < 1e-4 && value(&own, "drift_kl") < 1e-8, "{own:?}");
    let other = value(&drift(&start, &start), "drift_mean");
    assert!(other > 100.0 * foil_common::drift::bound(foil_common::spec::Precision::Fp32), "{other}");
    let unmeasured = drift(&start, &policy);
    assert!(!unmeasured.iter().any(|metric| metric.name.starts_with("drift")), "{unmeasured:?}");
}

#[test]
fn samples_without_a_log_probability_for_each_token_are_an_error() {
    let mut round = Round::new(method("dpo"));
    let policy = round.policy.clone();
    let edit = |round: &mut Round, edit: &dyn Fn(&mut Vec<f32>)| {
        let bytes = round.test.objects.bytes(&round.samples.objects[0].key);
        let mut batch = v1::SampleBatch::decode(bytes.as_slice()).unwrap();
        batch.samples.iter_mut().for_each(|sample| edit(&mut sample.log_probs));
        round.samples.objects[0] = round.test.objects.put("edited", &batch.encode_to_vec(), "").into();
    };
    let run = |round: &mut Round| {
        let work = Some(Work::RefLogProbs(round.work(Some(&policy), None)));
        let task = Some(v1::Task { phase: "r01.policy.ref_log_probs".into(), round: 1, work });
        let command =
            v1::RunChunk { lease: 1, task, first: 0, count: 8, key: "k".into(), ..Default::default() };
        round.test.context.run_chunk(&command.try_into().unwrap()).map_err(|error| error.to_string())
    };
    edit(&mut round, &|log_probs| log_probs.push(0.0));
    let error = run(&mut round).unwrap_err();
    assert!(error.contains("recorded log-probabilities") && error.contains("of row"), "{error}");
    // Older builds recorded no log-probabilities.
    edit(&mut round, &Vec::clear);
    run(&mut round).unwrap();
}

#[test]
fn policy_gradients_get_old_log_probs_and_with_a_kl_penalty_the_reference() {
    let mut round = Round::new(|job| {
        let step = job.policy_step.get_or_insert_default();
        let grpo = v1::GrpoSpec { reference: "initial".into(), beta: Some(0.1), ..Default::default() };
        step.method = Some(MethodSpec::Grpo(grpo));
    });
    let (start, policy) = (round.start.clone(), round.policy.clone());
    let work = round.work(Some(&start), Some(&policy));
    let (artifact, metrics) = round.ref_log_probs(&work);
    assert!(
        value(&metrics, "ref_nll") > value(&metrics, "old_policy_nll"),
        "the old policy finds its own completions likelier"
    );
    let first = batch(&round.test, &artifact, 0);
    assert_eq!(first.samples.len(), 8 * 3, "every completion of 8 prompts");
    let (of_start, of_policy) = (expected(&mut round, &start), expected(&mut round, &policy));
    for (sample, (reference, old_policy)) in first.samples.iter().zip(of_start.iter().zip(&of_policy)) {
        assert_near(&sample.ref_log_probs, reference);
        assert_near(&sample.old_log_probs, old_policy);
    }
    assert!(value(&metrics, "drift_mean") < 1e-5, "{metrics:?}");
    // If both roles have the same policy, it is computed once.
    let (same, _) = round.ref_log_probs(&round.work(Some(&policy), Some(&policy)));
    assert!(
        batch(&round.test, &same, 0)
            .samples
            .iter()
            .all(|sample| sample.ref_log_probs == sample.old_log_probs)
    );
}

#[test]
fn a_chunk_of_log_probs_has_the_same_bytes_in_any_order_of_chunks() {
    let mut round = Round::new(method("ipo"));
    let policy = round.policy.clone();
    let work = round.work(Some(&policy), None);
    let mut run = |chunks: [u32; 3]| {
        for chunk in chunks {
            let task = Some(v1::Task {
                phase: "r01.policy.ref_log_probs".into(),
                round: 1,
                work: Some(Work::RefLogProbs(work.clone())),
            });
            let (first, key) = (u64::from(chunk) * 8, format!("chunk {chunk}"));
            let count = 8.min(20 - first);
            let command = v1::RunChunk { lease: 1, task, chunk, first, count, key, ..Default::default() };
            round.test.context.run_chunk(&command.try_into().unwrap()).unwrap();
        }
        [0, 1, 2].map(|chunk| round.test.objects.bytes(&format!("chunk {chunk}")))
    };
    assert_eq!(run([0, 1, 2]), run([2, 0, 1]));
}

#[test]
fn missing_log_probs_are_an_error() {
    let mut round = Round::new(method("dpo"));
    let policy = round.policy.clone();
    let work = round.work(Some(&policy), None);
    let (artifact, _) = round.ref_log_probs(&work);
    let sample = |index: usize| {
        let bytes = round.test.objects.bytes(&round.samples.objects[0].key);
        v1::SampleBatch::decode(bytes.as_slice()).unwrap().samples.remove(index)
    };
    let log_probs = LogProbs::read(&mut round.test.context.cache, Some(&artifact.into())).unwrap();
    let dpo = round.test.context.job.policy_step.method;
    let grpo = Method::Grpo(Grpo::default());
    assert_eq!(log_probs.of(&sample(0), &dpo).unwrap().reference.len(), sample(0).tokens.len());
    let error = log_probs.of(&sample(1), &dpo).unwrap_err();
    assert!(error.to_string().starts_with("ref_log_probs: sample 1 of row "), "{error}");
    assert!(log_probs.of(&sample(0), &grpo).is_err(), "no numbers of the old policy");
    assert!(LogProbs::default().of(&sample(0), &Method::Rejection(Rejection)).is_ok());
}

/// Trains with the method of the job that `edit` changes. Returns the phase's metrics and how much more
/// likely the policy has made the best answers than the worst, in nats per prompt.
fn trained(edit: impl FnOnce(&mut v1::JobSpec)) -> (Vec<v1::Metric>, f64) {
    let mut round = Round::new(|job| {
        let step = job.policy_step.get_or_insert_default();
        (step.epochs, step.batch_sequences, step.learning_rate) = (Some(4), Some(16), vec![3e-3]);
        edit(job);
    });
    let (start, policy) = (round.start.clone(), round.policy.clone());
    let method = round.test.context.job.policy_step.method;
    let reference = method.needs().reference.map(|reference| match reference {
        ReferencePolicy::RoundStart => policy.clone(),
        ReferencePolicy::Initial => start.clone(),
    });
    let old_policy = method.needs().old_log_probs.then(|| policy.clone());
    let compared = (reference.is_some() || old_policy.is_some())
        .then(|| round.ref_log_probs(&round.work(reference.as_ref(), old_policy.as_ref())).0);
    let (moved, result) = round.train(compared);
    let preference = |round: &mut Round, policy: &v1::Artifact| {
        let likelihood = expected(round, policy);
        let sum = |answer: usize| likelihood[answer].iter().sum::<f32>();
        f64::from(sum(2) - sum(0))
    };
    let change = preference(&mut round, &moved) - preference(&mut round, &policy);
    (result.metrics, change)
}

/// Edits one setting of the policy step.
fn step(edit: impl Fn(&mut v1::PolicyStepSpec)) -> impl Fn(&mut v1::JobSpec) {
    move |job| edit(job.policy_step.get_or_insert_default())
}

#[test]
fn every_method_learns_to_prefer_the_better_completions() {
    for &method in Method::NAMES {
        let (metrics, change) = trained(step(|step| step.method = named(method)));
        assert!(change > 0.0, "{method}: {change}");
        assert!(
            value(&metrics, "steps") >= 4.0 && value(&metrics, "loss").is_finite(),
            "{method}: {metrics:?}"
        );
        assert!(value(&metrics, "num_completions") >= 20.0 - value(&metrics, "dropped_prompts"));
    }
}

#[test]
fn dpo_begins_at_ln_2_against_the_policy_that_the_round_began_with() {
    let (metrics, _) = trained(step(|step| step.method = named("dpo")));
    assert!((value(&metrics, "first_loss") - std::f64::consts::LN_2).abs() < 1e-6);
    assert!(value(&metrics, "loss") < 0.69 && value(&metrics, "rewards/accuracies") > 0.6, "{metrics:?}");
    let (metrics, _) = trained(step(|step| {
        let dpo = v1::DpoSpec { reference: "initial".into(), ..Default::default() };
        step.method = Some(MethodSpec::Dpo(dpo));
    }));
    let first_loss = value(&metrics, "first_loss");
    assert!((first_loss - std::f64::consts::LN_2).abs() > 1e-4, "the start policy is another: {first_loss}");
}

#[test]
fn a_policy_gradient_begins_where_no_ratio_is_clipped() {
    for method in ["grpo", "rloo"] {
        let (metrics, _) = trained(step(|step| {
            (step.method, step.epochs, step.batch_sequences) = (named(method), Some(1), Some(1000));
        }));
        assert_eq!(value(&metrics, "clip_fraction"), 0.0);
        assert!(value(&metrics, "first_loss").abs() < 1e-4, "advantages sum to 0: {metrics:?}");
        let (metrics, _) = trained(step(|step| {
            let penalized = json!({ method: { "reference": "initial", "beta": 0.1 } });
            step.method = serde_json::from_value::<v1::PolicyStepSpec>(penalized).unwrap().method;
        }));
        assert!(metrics.iter().any(|metric| metric.name == "kl") == (method == "grpo"));
    }
}

#[test]
fn under_select_worst_every_method_learns_the_opposite() {
    for method in ["rejection", "rrhf", "dpo", "rloo"] {
        let (metrics, change) = trained(|job| {
            job.policy_step.get_or_insert_default().method = named(method);
            job.controls.get_or_insert_default().select_worst = true;
        });
        assert!(change < 0.0, "{method}: {change}");
        if method == "rejection" {
            // If the worst of three is blank, the next one is selected.
            assert!(value(&metrics, "selected_reward_mean") < 1.0);
        }
    }
}
