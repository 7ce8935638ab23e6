//! Simulated agents and rank processes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foil_proto::v1::{self, rank_message::Message, rank_task};

/// An open stream to one coordinator process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) id: u64,
    pub(super) node: usize,
    pub(super) process: u64,
}

#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) stream: Option<Stream>,
    /// The coordinator to try next.
    pub(super) next: usize,
    /// When a leader was last known to exist.
    pub(super) last_leader_contact: Duration,
    /// Unacknowledged heartbeats, and when they were sent.
    pub(super) unacknowledged: BTreeMap<u64, Duration>,
    pub(super) heartbeats: u64,
    pub(super) term: u64,
    /// Exited sessions that have not been reported yet.
    pub(super) unreported: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Rank {
    pub(super) agent: String,
    pub(super) start: v1::StartRank,
    pub(super) stream: Option<Stream>,
    pub(super) next: usize,
    pub(super) lost_at: Duration,
    pub(super) task: Option<rank_task::Task>,
    /// Number of tasks so far. Events of earlier tasks are ignored.
    pub(super) tasks: u64,
    pub(super) reported: Vec<Message>,
    pub(super) term: u64,
}

/// Sessions that have joined a gang, by job, attempt and phase.
#[derive(Debug, Default)]
pub(super) struct GangRendezvous(BTreeMap<(String, u32, String), BTreeSet<String>>);

impl GangRendezvous {
    /// Adds a session; returns all sessions when the gang is complete.
    pub(super) fn join(&mut self, job: &str, run: &v1::RunGang, session: &str) -> Option<Vec<String>> {
        let phase = run.task.as_ref().map(|task| task.phase.clone()).unwrap_or_default();
        let met = self.0.entry((job.to_owned(), run.attempt, phase)).or_default();
        met.insert(session.to_owned());
        (met.len() == run.world as usize).then(|| met.iter().cloned().collect())
    }
}

pub(super) fn hello(rank: &Rank) -> v1::RankHello {
    v1::RankHello {
        session_id: rank.start.session_id.clone(),
        job_id: rank.start.job_id.clone(),
        attempt: rank.start.attempt,
        rank: rank.start.rank,
        task: rank.task.clone().map(|task| v1::RankTask { task: Some(task) }),
        secret: rank.start.secret.clone(),
        ..Default::default()
    }
}

/// Messages that report a finished task.
pub(super) fn results(task: &rank_task::Task) -> Vec<Message> {
    match task {
        rank_task::Task::Chunk(run) => vec![Message::Chunk(chunk_result(run))],
        rank_task::Task::Gang(run) => {
            let phase = run.task.as_ref().unwrap().phase.clone();
            let metrics = vec![v1::Metric { name: "loss".into(), value: 0.5, se: None }];
            let step = v1::StepReport {
                phase,
                attempt: run.attempt,
                step: 1,
                steps: 1,
                metrics,
                ..Default::default()
            };
            vec![Message::Step(step), Message::Gang(gang_result(run))]
        }
    }
}

pub(crate) fn chunk_result(run: &v1::RunChunk) -> v1::ChunkResult {
    let phase = run.task.as_ref().unwrap().phase.clone();
    let content = blake3::hash(format!("{phase}/{}", run.chunk).as_bytes()).to_hex().to_string();
    let value = f64::from(run.chunk) + 0.1;
    v1::ChunkResult {
        lease: run.lease,
        phase,
        chunk: run.chunk,
        object: Some(v1::Object { key: run.key.clone(), size: 1, blake3: content, path: String::new() }),
        moments: vec![v1::Moments {
            name: "gold_mean".into(),
            count: 1,
            sum: value,
            sum_of_squares: value * value,
            ..Default::default()
        }],
        calibration: None,
        seconds: 0.5,
    }
}

pub(crate) fn gang_result(run: &v1::RunGang) -> v1::GangResult {
    let phase = run.task.as_ref().unwrap().phase.clone();
    let blake3 = blake3::hash(phase.as_bytes()).to_hex().to_string();
    let key = format!("{}model.safetensors", run.key_prefix);
    v1::GangResult {
        phase,
        attempt: run.attempt,
        objects: vec![v1::Object { key, size: 1, blake3: blake3.clone(), path: "model.safetensors".into() }],
        metrics: vec![],
        parameters_blake3: blake3,
    }
}
