//! Runs every phase of a small job on one rank and without a coordinator: the test leases the chunks.

mod conform;
mod evaluation;
mod gang;
mod policy;
mod resident;
mod reward;

use std::fs;
use std::path::Path;
use std::sync::mpsc::Sender;

use foil_common::data::row_set::RowSet;
use foil_common::data::rows;
use foil_common::failure::FailureClass;
use foil_common::letters::{self, Counts};
use foil_proto::v1;
use foil_proto::v1::pair_source::Source;
use foil_proto::v1::rank_message::Message;
use foil_proto::v1::task::Work;
use prost::Message as _;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::task_io::memory_objects::MemoryObjectStore;
use crate::task_io::stop::StopSignal;

struct TestRank {
    context: TaskContext,
    objects: MemoryObjectStore,
    messages: UnboundedReceiver<v1::RankMessage>,
    /// Whether the last task read a model from its files.
    loaded: bool,
    _rendezvous: Sender<Rendezvous>,
    _dir: TempDir,
}

pub(super) fn letters_job() -> v1::JobSpec {
    let gold = v1::EvaluationSpec { gold: "letters".into(), kl_prompts: Some(6), ..Default::default() };
    let optimizer = v1::OptimizerSpec { betas: vec![0.9, 0.99], ..Default::default() };
    v1::JobSpec {
        name: "letters".into(),
        seed: Some(17),
        policy: Some(v1::PolicySpec { model: "letters".into(), init: "random".into() }),
        data: Some(v1::DataSpec {
            generator: Some(v1::GeneratorSpec { name: "letters".into(), ..Default::default() }),
            gold_preferences: Some(v1::GoldPreferencesSpec::default()),
            ..Default::default()
        }),
        text: Some(v1::TextSpec { max_length: Some(32), ..Default::default() }),
        sampling: Some(v1::SamplingSpec { max_new_tokens: Some(16), ..Default::default() }),
        generation: Some(v1::GenerationSpec { chunk_prompts: Some(8), max_num_seqs: Some(16) }),
        sft_step: Some(v1::SftStepSpec {
            learning_rate: Some(3e-3),
            epochs: Some(2),
            optimizer: Some(optimizer.clone()),
            ..Default::default()
        }),
        reward_step: Some(v1::RewardStepSpec {
            learning_rate: Some(1e-3),
            samples: Some(2),
            batch_pairs: Some(8),
            optimizer: Some(optimizer),
            ..Default::default()
        }),
        policy_step: Some(v1::PolicyStepSpec {
            samples: Some(3),
            learning_rate: vec![1e-3],
            ..Default::default()
        }),
        evaluation: Some(gold),
        ..Default::default()
    }
}

impl TestRank {
    fn new(job: v1::JobSpec) -> Self {
        Self::with(job.try_into().unwrap(), MemoryObjectStore::default())
    }

    /// Another rank of the same job and store.
    fn beside(&self) -> Self {
        Self::with(self.context.job.clone(), self.objects.clone())
    }

    fn with(job: spec::Job, objects: MemoryObjectStore) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, messages) = tokio::sync::mpsc::unbounded_channel();
        let (rendezvous_sender, rendezvous) = mpsc::channel();
        let rank = RankContext {
            device: Device::Cpu,
            memory: 0,
            address: "127.0.0.1".into(),
            ports: PortRange::ANY,
            attempt: 1,
            rendezvous,
            stop: StopSignal::default(),
        };
        let cache = ArtifactCache::open(dir.path(), Box::new(objects.clone())).unwrap();
        let context = TaskContext::new(job, rank, cache, Reporter::new(sender));
        Self { context, objects, messages, loaded: false, _rendezvous: rendezvous_sender, _dir: dir }
    }

    fn dataset<T: rows::Row>(&self, name: &str, rows: &[T]) -> Option<v1::Dataset> {
        let object = self.objects.put(&format!("data/{name}"), &rows::write(rows), "").into();
        Some(v1::Dataset { name: name.into(), object: Some(object), rows: rows.len() as u64 })
    }

    fn start_model(&self) -> v1::Artifact {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs/letters");
        let files = ["config.json", "tokenizer.json", "tokenizer_config.json"];
        let objects =
            files.map(|name| self.objects.put(name, &fs::read(dir.join(name)).unwrap(), name).into());
        v1::Artifact { name: "start".into(), objects: objects.to_vec(), ..Default::default() }
    }

    /// The last message that is not progress or a step.
    fn result(&mut self) -> Message {
        let mut last = None;
        self.loaded = false;
        while let Ok(message) = self.messages.try_recv() {
            match message.message.unwrap() {
                Message::Progress(progress) => self.loaded |= progress.unit == "bytes loaded",
                Message::Step(_) => {}
                other => last = Some(other),
            }
        }
        last.expect("a result")
    }

    fn gang(&mut self, phase: &str, work: Work, start: &v1::Artifact) -> (v1::Artifact, v1::GangResult) {
        let round = phase[1..3].parse().unwrap();
        let task = v1::Task { phase: phase.into(), round, work: Some(work) };
        let key_prefix = format!("jobs/j/phases/{phase}/a1/");
        let command =
            v1::RunGang { task: Some(task), attempt: 1, world: 1, key_prefix, ..Default::default() };
        self.context.run_gang(&command.try_into().unwrap()).unwrap();
        let Message::Gang(result) = self.result() else { panic!("no result of the gang") };
        let mut objects = result.objects.clone();
        let written = |path: &str| result.objects.iter().any(|object| object.path == path);
        objects.extend(start.objects.iter().filter(|kept| !written(&kept.path)).cloned());
        (v1::Artifact { name: phase.into(), objects, ..Default::default() }, result)
    }

    /// Runs a map phase over `rows` rows in chunks of 8; a chunk's work may depend on its number.
    fn map(&mut self, phase: &str, rows: u64, work: impl Fn(u32) -> Work) -> (v1::Artifact, Vec<v1::Metric>) {
        let mut artifact = v1::Artifact { name: phase.into(), ..Default::default() };
        let (mut moments, mut calibration) = (Vec::new(), v1::Calibration::default());
        for number in 0..rows.div_ceil(8) as u32 {
            let first = u64::from(number) * 8;
            let round = phase[1..3].parse().unwrap();
            let task = Some(v1::Task { phase: phase.into(), round, work: Some(work(number)) });
            let (count, key) = (8.min(rows - first), format!("{phase}/{number}"));
            let command =
                v1::RunChunk { lease: 1, task, chunk: number, first, count, key, ..Default::default() };
            self.context.run_chunk(&command.try_into().unwrap()).unwrap();
            let Message::Chunk(result) = self.result() else { panic!("no result of the chunk") };
            foil_common::stats::merge_moments(&mut moments, &result.moments);
            if let Some(chunk) = &result.calibration {
                foil_common::stats::merge_calibration(&mut calibration, chunk);
            }
            artifact.objects.push(result.object.unwrap());
        }
        (artifact, foil_common::stats::metrics(&moments, Some(&calibration)))
    }
}

fn value(metrics: &[v1::Metric], name: &str) -> f64 {
    let found = metrics.iter().find(|metric| metric.name == name);
    found.unwrap_or_else(|| panic!("no {name} among {metrics:?}")).value
}

fn source(source: Source) -> Option<v1::PairSource> {
    Some(v1::PairSource { source: Some(source) })
}

fn chunk_of(artifact: &v1::Artifact, number: u32) -> Option<v1::Artifact> {
    Some(v1::Artifact { objects: vec![artifact.objects[number as usize].clone()], ..artifact.clone() })
}

#[test]
fn a_round_of_the_letters_job() {
    let mut test = TestRank::new(letters_job());
    let sets = letters::generate(17, Counts { sft: 600, golden: 24, prompts: 20, evaluation: 10 });
    let sampling = Some(v1::SamplingSpec::from(&test.context.job.sampling));
    let start = test.start_model();

    let demonstrations = test.dataset("sft", &sets.sft);
    let sft = Work::Sft(v1::Sft { policy: Some(start.clone()), demonstrations });
    let (policy, result) = test.gang("r00.sft", sft, &start);
    assert!(value(&result.metrics, "loss") < value(&result.metrics, "first_loss"));
    let names: Vec<&str> = policy.objects.iter().map(|object| object.path.as_str()).collect();
    let written = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"];
    assert_eq!(names, [&written[..], &["tokenizer.json"]].concat());

    let golden = RowSet::of(sets.golden.clone()).unwrap();
    let pairs = letters::preference_prompts(17, &golden, 40).unwrap();
    let labeled = test.dataset("gold_preference_prompts", &pairs);
    let generate = |prompts: &Option<v1::Dataset>, samples| {
        let (policy, prompts, sampling) = (Some(policy.clone()), prompts.clone(), sampling.clone());
        move |_| {
            let (policy, prompts, sampling) = (policy.clone(), prompts.clone(), sampling.clone());
            Work::Generate(v1::Generate { policy, prompts, samples, sampling })
        }
    };
    let (preferences, _) = test.map("r00.preferences.generate", 40, generate(&labeled, 2));
    let golden = test.dataset("golden", &sets.golden);
    let (golden_samples, metrics) = test.map("r01.reward.generate", 24, generate(&golden, 2));
    assert!(value(&metrics, "length_mean") > 1.0);
    let first = v1::SampleBatch::decode(test.objects.bytes("r01.reward.generate/0").as_slice()).unwrap();
    assert_eq!(
        (first.samples.len(), first.samples[0].prompt_id, first.samples[1].index),
        (16, sets.golden[0].id, 1)
    );
    assert!(first.samples.iter().all(|sample| sample.log_probs.len() == sample.tokens.len()));

    let human = v1::GoldLabeled { prompts: labeled.clone(), samples: Some(preferences.clone()) };
    let fresh = v1::GoldenPairs { golden: golden.clone(), samples: Some(golden_samples.clone()) };
    let train = Work::TrainReward(v1::TrainReward {
        start: Some(policy.clone()),
        human: source(Source::GoldLabeled(human)),
        golden: source(Source::Golden(fresh)),
    });
    let (reward, result) = test.gang("r01.reward.train", train, &policy);
    assert_eq!((value(&result.metrics, "human_pairs"), value(&result.metrics, "golden_pairs")), (40.0, 48.0));
    assert!(value(&result.metrics, "loss") < 0.72);

    let (_, metrics) = test.map("r01.reward.evaluate_fresh", 24, |number| {
        let samples = chunk_of(&golden_samples, number);
        let pairs = source(Source::Golden(v1::GoldenPairs { golden: golden.clone(), samples }));
        Work::EvaluateReward(v1::EvaluateReward { reward: Some(reward.clone()), pairs, first: None })
    });
    assert!(value(&metrics, "accuracy") > 0.5, "{metrics:?}");
    assert!(value(&metrics, "ece") >= 0.0 && value(&metrics, "length_accuracy") >= 0.0);

    let prompts = test.dataset("prompts", &sets.prompts);
    let (samples, _) = test.map("r01.policy.generate", 20, generate(&prompts, 3));
    let (scores, _) = test.map("r01.policy.score", 20, |number| {
        let (reward, samples) = (Some(reward.clone()), chunk_of(&samples, number));
        Work::Score(v1::Score { reward, prompts: prompts.clone(), samples })
    });
    let train = Work::TrainPolicy(v1::TrainPolicy {
        policy: Some(policy.clone()),
        prompts: prompts.clone(),
        samples: Some(samples),
        scores: Some(scores),
        ref_log_probs: None,
    });
    let (trained, _) = test.gang("r01.policy.train", train, &policy);

    let evaluation = test.dataset("evaluation_prompts", &sets.evaluation_prompts);
    let (_, metrics) = test.map("r01.policy.evaluate", 10, |_| {
        Work::EvaluatePolicy(v1::EvaluatePolicy {
            policy: Some(trained.clone()),
            reference: Some(policy.clone()),
            reward: Some(reward.clone()),
            prompts: evaluation.clone(),
            sampling: sampling.clone(),
            ..Default::default()
        })
    });
    assert!(value(&metrics, "kl") > 0.0 && value(&metrics, "kl_per_token") > 0.0);
    assert!(value(&metrics, "drift_max") < 1e-4, "{metrics:?}");
    for name in ["reward_mean", "gold_mean", "length_mean", "truncated_rate"] {
        assert!(value(&metrics, name).is_finite());
    }
    // A policy does not diverge from itself.
    let (_, metrics) = test.map("r01.policy.evaluate", 8, |_| {
        Work::EvaluatePolicy(v1::EvaluatePolicy {
            policy: Some(policy.clone()),
            reference: Some(policy.clone()),
            reward: None,
            prompts: evaluation.clone(),
            sampling: sampling.clone(),
            ..Default::default()
        })
    });
    assert_eq!(value(&metrics, "kl"), 0.0);
}

#[test]
fn a_chunk_has_the_same_bytes_in_any_order_of_chunks() {
    let run = |chunks: &[u32]| {
        let mut test = TestRank::new(letters_job());
        let sets = letters::generate(17, Counts { sft: 64, golden: 0, prompts: 24, evaluation: 0 });
        let start = test.start_model();
        let demonstrations = test.dataset("sft", &sets.sft);
        let sft = Work::Sft(v1::Sft { policy: Some(start.clone()), demonstrations });
        let (policy, result) = test.gang("r00.sft", sft, &start);
        let prompts = test.dataset("prompts", &sets.prompts);
        for &chunk in chunks {
            let work = Work::Generate(v1::Generate {
                policy: Some(policy.clone()),
                prompts: prompts.clone(),
                samples: 3,
                sampling: Some(v1::SamplingSpec::from(&test.context.job.sampling)),
            });
            let task = Some(v1::Task { phase: "r01.policy.generate".into(), round: 1, work: Some(work) });
            let key = format!("chunk {chunk}");
            let first = u64::from(chunk) * 8;
            let command = v1::RunChunk { lease: 1, task, chunk, first, count: 8, key, ..Default::default() };
            test.context.run_chunk(&command.try_into().unwrap()).unwrap();
        }
        let bytes: Vec<Vec<u8>> = (0..3).map(|chunk| test.objects.bytes(&format!("chunk {chunk}"))).collect();
        (result.parameters_blake3, bytes)
    };
    assert_eq!(run(&[0, 1, 2]), run(&[2, 0, 1]));
}

#[test]
fn failures_have_a_class_and_name_their_row() {
    let mut test = TestRank::new(letters_job());
    let start = test.start_model();
    let mut sets = letters::generate(17, Counts { sft: 3, golden: 0, prompts: 0, evaluation: 0 });
    sets.sft[1].answer = "ab</s>c".into();
    let (demonstrations, id) = (test.dataset("sft", &sets.sft), sets.sft[1].id);
    let task = |work| Some(v1::Task { phase: "r00.sft".into(), round: 0, work: Some(work) });
    let sft = Work::Sft(v1::Sft { policy: Some(start.clone()), demonstrations });
    let command = v1::RunGang { task: task(sft), world: 1, ..Default::default() };
    let failure = test.context.run_gang(&command.try_into().unwrap()).unwrap_err().failure();
    assert_eq!(failure.class, FailureClass::Data);
    assert!(failure.message.contains(&id.to_string()), "{}", failure.message);

    let missing = v1::Dataset { name: "sft".into(), object: Some(v1::Object::default()), rows: 1 };
    let sft = Work::Sft(v1::Sft { policy: Some(start), demonstrations: Some(missing) });
    let command = v1::RunGang { task: task(sft), world: 1, ..Default::default() };
    assert_eq!(
        test.context.run_gang(&command.try_into().unwrap()).unwrap_err().failure().class,
        FailureClass::Store
    );
    let incomplete = GangTask::try_from(v1::RunGang::default()).unwrap_err();
    assert_eq!(PhaseError::from(incomplete).failure().class, FailureClass::Internal);
}

#[test]
fn models_with_the_same_text_files_share_an_encoder() {
    let mut test = TestRank::new(letters_job());
    let start = test.start_model();
    let mut trained = start.clone();
    trained.objects.push(test.objects.put("weights", b"weights", "model.safetensors").into());
    let mut other = start.clone();
    let config = br#"{"bos_token": "<s>", "eos_token": "</s>"}"#;
    other.objects[2] = test.objects.put("other", config, "tokenizer_config.json").into();
    let TaskContext { cache, encoders, job, .. } = &mut test.context;
    let [start, trained, other] = [start, trained, other].map(|artifact| {
        let artifact = Artifact::from(artifact);
        let dir = cache.directory(&artifact).unwrap();
        encoders.get(&artifact, &dir, &job.text).unwrap()
    });
    assert!(Rc::ptr_eq(&start, &trained));
    assert!(!Rc::ptr_eq(&start, &other));
}
