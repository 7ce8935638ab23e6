mod gang;
mod map;
mod ranks;
mod resume;
mod tasks;

use foil_proto::v1::rank_command::Command;
use foil_proto::v1::rank_message::Message;

use super::assignment::Assignment;
use super::slot::Slot;
use super::*;
use crate::clock::Now;
use crate::cluster::{AgentFault, Placement};
use crate::job::fixture::{JOB, after, commit_next, event, object, state};
use crate::job::{Cause, Change, JobState};
use crate::secret::SecretIssuer;

/// An attempt together with its job's state: changes are applied immediately, effects are collected.
struct Harness {
    state: JobState,
    attempt: Attempt,
    now: Now,
    effects: Vec<Effect>,
    ended: Option<Cause>,
    /// No other agent can take over.
    no_alternative: bool,
}

fn issuer() -> SecretIssuer {
    SecretIssuer::new([1; 32])
}

impl Harness {
    /// An attempt at the start of the `phase`-th phase, with all ranks up.
    fn new(phase: usize) -> Self {
        let state = after(&[], phase);
        let now = Now { mono: Duration::from_secs(100), wall: 0 };
        let attempt = Attempt::new(&state, 1, 1, Deadlines::default(), now);
        let mut harness =
            Self { state, attempt, now, effects: Vec::new(), ended: None, no_alternative: true };
        for rank in harness.attempt.vacancies() {
            harness.start(rank);
        }
        harness
    }

    fn start(&mut self, rank: usize) -> String {
        let placement = Placement { agent: "a".into(), device: format!("cpu:{rank}") };
        let (process, _) = self.attempt.start_rank(rank, placement, &issuer(), self.now);
        let session = process.session;
        let hello = v1::RankHello {
            session_id: session.clone(),
            job_id: JOB.into(),
            attempt: 1,
            rank: u32::try_from(rank).unwrap(),
            secret: issuer().secret(&session),
            ..Default::default()
        };
        self.handle(Input::Hello(hello.try_into().unwrap())).unwrap();
        session
    }

    fn handle(&mut self, input: Input) -> Result<(), ProtocolError> {
        let decision = self.attempt.handle(&self.state, input, self.now)?;
        self.take(decision);
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        loop {
            let decision = self.attempt.advance(&self.state, self.now);
            let moved = !decision.changes.is_empty();
            self.take(decision);
            if !moved || self.ended.is_some() {
                return;
            }
        }
    }

    fn take(&mut self, decision: Decision) {
        for change in decision.changes {
            if let Change::AttemptEnded { cause, .. } = &change {
                self.ended = Some(cause.clone());
            }
            self.state.apply(&event(1, change)).unwrap();
        }
        let has_fault = decision.effects.iter().any(|effect| matches!(effect, Effect::AgentFault { .. }));
        if self.no_alternative && has_fault {
            self.attempt.charge(self.now);
        }
        self.effects.extend(decision.effects);
    }

    fn elapse(&mut self, seconds: f64) {
        self.now = self.now.after(Duration::from_secs_f64(seconds));
        self.advance();
    }

    fn session(&self, rank: usize) -> String {
        self.attempt.ranks.slot(rank).and_then(Slot::process).unwrap().session.clone()
    }

    fn report(&mut self, rank: usize, message: Message) -> Result<(), ProtocolError> {
        let report = message.try_into()?;
        self.handle(Input::Report { session: self.session(rank), report, flaw: None })
    }

    fn exit(&mut self, rank: usize, exit: v1::RankExited) {
        let session_id = self.session(rank);
        self.handle(Input::Exited(v1::RankExited { session_id, ..exit })).unwrap();
    }

    /// The chunk held by each rank.
    fn held(&self) -> Vec<Option<u32>> {
        let chunk = |slot: &Slot| match slot {
            Slot::Up { assignment: Assignment::Chunk(lease), .. } => Some(lease.chunk),
            _ => None,
        };
        self.attempt.ranks.numbers().filter_map(|rank| self.attempt.ranks.slot(rank)).map(chunk).collect()
    }

    fn lease_of(&self, rank: usize) -> v1::RunChunk {
        let session = self.session(rank);
        let leased = |effect: &Effect| match effect {
            Effect::Send { session: to, command: Command::Chunk(run) } if *to == session => Some(run.clone()),
            _ => None,
        };
        self.effects.iter().rev().find_map(leased).expect("the rank holds a lease")
    }

    fn result(&self, rank: usize, content: &str) -> Message {
        let run = self.lease_of(rank);
        Message::Chunk(v1::ChunkResult {
            lease: run.lease,
            phase: run.task.unwrap().phase,
            chunk: run.chunk,
            object: Some(v1::Object { key: run.key, size: 1, blake3: content.into(), path: String::new() }),
            moments: vec![v1::Moments {
                name: "length_mean".into(),
                count: 1,
                sum: 2.0,
                sum_of_squares: 4.0,
                ..Default::default()
            }],
            calibration: None,
            seconds: 2.0,
        })
    }

    fn gang_result(&self, parameters: &str) -> Message {
        let phase = self.state.phase().unwrap().id.to_string();
        let key = format!("jobs/{JOB}/phases/{phase}/a1/model.safetensors");
        Message::Gang(v1::GangResult {
            phase,
            attempt: 1,
            objects: vec![object(&key)],
            metrics: vec![],
            parameters_blake3: parameters.into(),
        })
    }

    fn counted(&self, counter: Counter) -> usize {
        self.effects.iter().filter(|effect| **effect == Effect::Count(counter)).count()
    }

    fn failure(&self, class: v1::FailureClass) -> Message {
        Message::Failure(v1::TaskFailure {
            phase: self.state.phase().unwrap().id.to_string(),
            class: class.into(),
            message: format!("it is the {}", class.as_str_name()),
            advice: "do this".into(),
            ..Default::default()
        })
    }
}

fn index_of(id: &str) -> usize {
    state(&[]).phases.iter().position(|phase| phase.id == id).unwrap()
}

fn killed(signal: i32) -> v1::RankExited {
    v1::RankExited { signal: Some(signal), log_tail: vec!["last line".into()], ..Default::default() }
}

/// A rank's progress report in the current phase.
fn at(harness: &Harness, chunk: u32, done: u64, unit: &str) -> Message {
    let phase = harness.state.phase().unwrap().id.to_string();
    let activity = match unit {
        "bytes loaded" => v1::Activity::Loading,
        "bytes downloaded" => v1::Activity::Downloading,
        "bytes uploaded" => v1::Activity::Uploading,
        "ranks met" => v1::Activity::Rendezvous,
        _ => v1::Activity::Unspecified,
    };
    Message::Progress(v1::TaskProgress {
        phase,
        chunk,
        done,
        total: 9000,
        unit: unit.into(),
        activity: activity.into(),
    })
}

fn shown(harness: &mut Harness) -> (u64, u64, String) {
    let progress = harness.attempt.progress(&harness.state).unwrap();
    (progress.done, progress.total, progress.unit)
}
