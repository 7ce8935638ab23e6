//! Generates the binary files of the corpus, so that they are readable as code and can be updated when a
//! message changes: `FOIL_BLESS_CORPUS=1 cargo test -p foil-fuzz-targets --test seeds`.

use std::fs;

use foil_common::spec::Job;
use foil_common::storage::log::{Entry, Events, LeaderElected, Record, frame_snapshot};
use foil_coordinator::job::{Cause, CauseClass, Change, Event, Outcome, RankStarted, Submitted};
use foil_coordinator::plan;
use foil_fuzz_targets::corpus;
use foil_proto::v1::{self, agent_message, rank_message};
use prost::Message;

const BLESS: &str = "FOIL_BLESS_CORPUS";

/// Writes or compares one file.
fn hold(target: &str, name: &str, bytes: &[u8]) {
    let path = corpus(target).join(name);
    if std::env::var_os(BLESS).is_some() {
        fs::create_dir_all(corpus(target)).expect("a folder");
        fs::write(&path, bytes).expect("a file");
        return;
    }
    let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found == bytes, "{}: run this test with {BLESS}=1 and look at the difference", path.display());
}

fn spec() -> v1::JobSpec {
    v1::JobSpec {
        name: "tiny".into(),
        rounds: Some(1),
        policy: Some(v1::PolicySpec {
            model: format!("model:{}:letters", "ab".repeat(32)),
            init: "random".into(),
        }),
        data: Some(v1::DataSpec {
            generator: Some(v1::GeneratorSpec { name: "letters".into(), ..Default::default() }),
            gold_preferences: Some(v1::GoldPreferencesSpec::default()),
            ..Default::default()
        }),
        evaluation: Some(v1::EvaluationSpec { gold: "letters".into(), ..Default::default() }),
        resources: Some(v1::ResourceSpec { ranks: Some(2), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn specifications() {
    hold("job_spec", "letters", &spec().encode_to_vec());
    let refused = v1::JobSpec { rounds: Some(0), ..spec() };
    hold("job_spec", "no-rounds", &refused.encode_to_vec());
    let resolved = v1::JobSpec::from(&Job::try_from(spec()).expect("a job"));
    hold("job_spec", "filled-in", &resolved.encode_to_vec());
    let preset = v1::JobSpec { preset: "paper-dpo".into(), ..spec() };
    hold("job_spec", "preset", &preset.encode_to_vec());
}

/// A file written by scripts/fixtures/data_files.py.
fn fixture(name: &str) -> Vec<u8> {
    let path = corpus("../../fixtures/data").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn data_files() {
    for (target, files) in [
        ("data_arrow", &["bad-rows.arrow", "orca.feather", "ultrafeedback.arrow", "kto.arrow"][..]),
        ("data_csv", &["orca.csv", "excel.csv"]),
        (
            "data_parquet",
            &["hh.parquet", "orca.parquet", "sharegpt.parquet", "ultrafeedback.parquet", "brotli.parquet"],
        ),
        ("data_zstd", &["frames.jsonl.zst", "ultrafeedback.jsonl.zst", "long.jsonl.zst"]),
    ] {
        for file in files {
            hold(target, file, &fixture(file));
        }
    }
    hold("data_csv", "quote.csv", b"prompt,chosen,rejected\n\"q,a,b\n");
    let packed = fixture("orca.parquet");
    hold("data_parquet", "cut.parquet", &packed[..packed.len() / 2]);
}

fn rank(message: rank_message::Message) -> Vec<u8> {
    v1::RankMessage { message: Some(message) }.encode_to_vec()
}

fn object(key: &str) -> v1::Object {
    v1::Object { key: key.into(), size: 7, blake3: "ab".repeat(32), path: "00000".into() }
}

fn metric(name: &str, value: f64) -> v1::Metric {
    v1::Metric { name: name.into(), value, se: None }
}

#[test]
fn messages_of_ranks() {
    use rank_message::Message;
    let phase = || "r01.policy.generate".to_owned();
    let hello =
        v1::RankHello { session_id: "s".into(), job_id: "j".into(), attempt: 1, ..Default::default() };
    hold("rank_message", "hello", &rank(Message::Hello(hello)));
    let progress =
        v1::TaskProgress { phase: phase(), done: 1, total: 9, unit: "samples".into(), ..Default::default() };
    hold("rank_message", "progress", &rank(Message::Progress(progress)));
    let metrics = vec![metric("loss", 0.5), metric("grad_norm", f64::NAN), metric("seconds", -1.0)];
    let step = v1::StepReport {
        phase: phase(),
        attempt: 1,
        step: 3,
        steps: 9,
        metrics: metrics.clone(),
        ..Default::default()
    };
    hold("rank_message", "step", &rank(Message::Step(step)));
    let moments = v1::Moments {
        name: "reward_mean".into(),
        count: 4,
        sum: 2.0,
        sum_of_squares: 2.0,
        max: Some(1.0),
        clusters: Some(v1::Clusters {
            count: 1,
            squared_sums: 1.0,
            sums_by_count: 2.0,
            squared_counts: 4.0,
            open: vec![v1::Cluster { key: 9, count: 2, sum: 1.0 }],
        }),
        distinct: None,
    };
    let distinct = v1::Moments {
        name: "duplicate_rate".into(),
        distinct: Some(v1::DistinctValues { hash: vec![1, 2], count: vec![1, 3] }),
        ..Default::default()
    };
    let calibration =
        v1::Calibration { count: vec![1; 10], confidence_sum: vec![0.5; 10], correct: vec![1; 10] };
    let chunk = v1::ChunkResult {
        lease: 1,
        phase: phase(),
        chunk: 2,
        object: Some(object("jobs/j/phases/p/00002/x")),
        moments: vec![moments, distinct],
        calibration: Some(calibration),
        seconds: 0.25,
    };
    hold("rank_message", "chunk", &rank(Message::Chunk(chunk.clone())));
    let many = v1::ChunkResult { calibration: None, object: Some(v1::Object::default()), ..chunk };
    hold("rank_message", "chunk-without-a-hash", &rank(Message::Chunk(many)));
    let gang = v1::GangResult {
        phase: phase(),
        attempt: 1,
        objects: vec![object("jobs/j/phases/p/a1/model.safetensors")],
        metrics,
        parameters_blake3: "cd".repeat(32),
    };
    hold("rank_message", "gang", &rank(Message::Gang(gang)));
    let failure = v1::TaskFailure {
        phase: phase(),
        message: "é".repeat(1500),
        rows: vec!["row".into(); 1100],
        step: Some(2),
        ..Default::default()
    };
    hold("rank_message", "long-failure", &rank(Message::Failure(failure)));
    let shard = v1::CheckpointShard {
        phase: phase(),
        attempt: 1,
        step: 2,
        object: Some(object("jobs/j/phases/p/a1/checkpoints/2/rank-0.safetensors")),
        stall_seconds: Some(0.1),
        upload_seconds: Some(f64::INFINITY),
    };
    hold("rank_message", "checkpoint", &rank(Message::Checkpoint(shard)));
}

fn agent(message: agent_message::Message) -> Vec<u8> {
    v1::AgentMessage { message: Some(message) }.encode_to_vec()
}

#[test]
fn messages_of_agents() {
    use agent_message::Message;
    let device =
        v1::Device { id: "cpu:0".into(), kind: "cpu".into(), name: "CPU".into(), memory_bytes: 1 << 30 };
    let register = v1::AgentRegister {
        agent_id: "a".into(),
        hostname: "h".into(),
        devices: vec![device],
        version: "0.1.0".into(),
        ..Default::default()
    };
    hold("agent_message", "register", &agent(Message::Register(register.clone())));
    let empty = v1::AgentRegister { devices: Vec::new(), ..register };
    hold("agent_message", "register-nothing", &agent(Message::Register(empty)));
    hold("agent_message", "heartbeat", &agent(Message::Heartbeat(v1::AgentHeartbeat { number: 9 })));
    hold("agent_message", "leaving", &agent(Message::Leaving(v1::AgentLeaving {})));
    let exit = v1::RankExited {
        session_id: "s".into(),
        signal: Some(9),
        log_tail: vec!["ü".repeat(1500); 4],
        ..Default::default()
    };
    hold("agent_message", "exit", &agent(Message::RankExited(exit)));
}

/// The events of a small job, from submission to end.
fn events() -> Vec<Event> {
    let job = Job::try_from(spec()).expect("a job");
    let dataset =
        |name: &str, rows| v1::Dataset { name: name.into(), object: Some(object("jobs/j/data/x")), rows };
    let datasets: Vec<v1::Dataset> = [
        ("sft", 10),
        ("preferences", 8),
        ("golden", 4),
        ("golden_holdout", 2),
        ("prompts", 6),
        ("evaluation_prompts", 3),
        ("gold_preference_prompts", 8),
        ("gold_preference_evaluation_prompts", 3),
    ]
    .map(|(name, rows)| dataset(name, rows))
    .into();
    let phases: Vec<v1::PhasePlan> = plan::plan(&job, &datasets).iter().map(Into::into).collect();
    let phase = phases[0].id.clone();
    // Fields added in later versions have their defaults.
    let submitted: Submitted = serde_json::from_value(serde_json::json!({
        "request_id": "r", "spec_hash": "h", "spec": v1::JobSpec::from(&job),
        "plan": v1::Plan { phases, datasets: Vec::new() }, "datasets": datasets,
        "policy": v1::Artifact { name: "policy@input".into(), kind: "policy".into(), ..Default::default() },
        "reward": null,
    }))
    .expect("a submission");
    let changes = [
        Change::Submitted(Box::new(submitted)),
        Change::AttemptStarted { attempt: 1, phase, world: 2 },
        Change::RankStarted(RankStarted {
            attempt: 1,
            rank: 0,
            session: "s0".into(),
            agent: "a".into(),
            device: "cpu:0".into(),
            proof: String::new(),
        }),
        Change::AttemptEnded { attempt: 1, cause: Cause::new(CauseClass::Crash, "it fell over") },
        Change::CancelRequested,
        Change::Ended(Outcome::Cancelled),
    ];
    changes.into_iter().zip(1..).map(|(change, at)| Event::new("j", at, change)).collect()
}

fn encoded(events: &[Event]) -> Vec<u8> {
    events.iter().flat_map(|event| rmp_serde::to_vec_named(event).expect("an event")).collect()
}

#[test]
fn logs() {
    let events = events();
    hold("event", "life", &encoded(&events));
    hold("event", "running", &encoded(&events[..3]));
    hold("event", "out-of-order", &encoded(&[events[0].clone(), events[5].clone(), events[1].clone()]));
    hold("event", "not-submitted", &encoded(&events[1..2]));

    let record = |entry| Record { term: 3, seq: 0, nonce: vec![7; 16].into(), entry: Some(entry) };
    let elected = record(Entry::LeaderElected(LeaderElected { leader: "http://h:1".into() }));
    hold("log_record", "elected", &elected.encode_framed());
    hold("log_record", "body", &elected.encode_to_vec());
    let written = Events { events: vec![encoded(&events[1..2]).into(), Vec::new().into()] };
    let framed = record(Entry::Events(written)).encode_framed();
    hold("log_record", "events", &framed);
    hold("log_record", "torn", &framed[..framed.len() / 2]);

    // Fields 1 and 2 are the number and the term; field 3 contains the events.
    let body = [&[0x08, 7, 0x10, 3, 0x1a, 2][..], b"hi"].concat();
    hold("snapshot", "framed", &frame_snapshot(&body));
    hold("snapshot", "body", &body);
    hold("snapshot", "other-number", &[0x08, 9]);
    hold("snapshot", "torn", &frame_snapshot(&body)[..9]);
}
