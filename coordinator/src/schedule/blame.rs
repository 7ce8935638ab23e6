//! From what was seen when an attempt broke to the one cause a user is told.

use std::fmt;
use std::time::Duration;

use foil_common::oom;
use foil_proto::v1;
use nix::sys::signal::Signal;

use crate::job::{Cause, CauseClass, Detail};

/// Ends of a rank process that follow from another's end (exit codes of `foil-worker`): told to end, its
/// coordinator's stream lost, or its session stale.
const CONSEQUENCES: [i32; 3] = [0, 4, 5];

/// Of a rank that was asked to end and did, with what it had come to kept.
const TERMINATED: i32 = 143;

/// Something seen of one rank.
#[derive(Debug, Clone)]
pub(super) struct Symptom {
    pub(super) rank: usize,
    pub(super) sign: Sign,
    /// In a gang, the last step that the rank had told of.
    pub(super) step: Option<u64>,
    /// In a map phase, the chunk that the rank held.
    pub(super) chunk: Option<u32>,
}

#[derive(Debug, Clone)]
pub(super) enum Sign {
    Said(v1::TaskFailure),
    Exited(v1::RankExited),
    StreamEnded,
    AgentLost,
    NotStarted(Duration),
    /// No step for so long; the rank is the one furthest behind.
    Hang(Duration),
    /// Ranks ended a gang with different parameters.
    Diverged,
    StoreFailed(String),
    /// What it reported is not so.
    Misreported(String),
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(failure) => f.write_str(&failure.message),
            Self::Exited(exit) => end_of_process(exit, f),
            Self::StreamEnded => f.write_str("its stream ended"),
            Self::AgentLost => f.write_str("its agent was not heard any more"),
            Self::NotStarted(limit) => write!(f, "its process did not connect within {} s", limit.as_secs()),
            Self::Hang(limit) => write!(f, "it made no progress for {} s", limit.as_secs()),
            Self::Diverged => f.write_str("it ended the phase with other parameters than rank 0"),
            Self::StoreFailed(error) => write!(f, "the object store failed: {error}"),
            Self::Misreported(why) => write!(f, "what it reported is refused: {why}"),
        }
    }
}

fn end_of_process(exit: &v1::RankExited, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match (exit.signal, exit.exit_code) {
        (Some(signal), _) => write!(f, "its process was ended by {}", signal_name(signal))?,
        (None, Some(code)) => write!(f, "its process ended with exit code {code}")?,
        (None, None) => f.write_str("its process could not be started")?,
    }
    match &exit.memory {
        Some(memory) => write!(f, ", {}", oom::Message(memory)),
        None if exit.out_of_memory => f.write_str(", out of host memory"),
        None => Ok(()),
    }
}

/// For example `SIGSEGV`; a real-time signal goes by its number.
fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

/// The cause among the symptoms, which stand in the order in which they were seen: the first of the most telling kind.
pub(super) fn cause(phase: &str, symptoms: &[Symptom]) -> Cause {
    let spoke = |rank: usize| {
        symptoms.iter().any(|symptom| symptom.rank == rank && matches!(symptom.sign, Sign::Said(_)))
    };
    let Some(culprit) = symptoms.iter().min_by_key(|symptom| weight(&symptom.sign, spoke(symptom.rank)))
    else {
        return Cause {
            class: CauseClass::Crash,
            message: format!("the attempt broke in {phase}"),
            advice: advice(CauseClass::Crash).to_owned(),
            rank: None,
            log_tail: Vec::new(),
            detail: Detail::default(),
        };
    };
    let of_culprit: Vec<&Symptom> = symptoms.iter().filter(|symptom| symptom.rank == culprit.rank).collect();
    let log_tail = of_culprit.iter().find_map(|symptom| match &symptom.sign {
        Sign::Exited(exit) => Some(exit.log_tail.clone()),
        _ => None,
    });
    let class = class(&culprit.sign);
    Cause {
        class,
        message: format!("rank {} in {phase}: {}", culprit.rank, culprit.sign),
        advice: advice_for(class, &culprit.sign).to_owned(),
        rank: u32::try_from(culprit.rank).ok(),
        log_tail: log_tail.unwrap_or_default(),
        detail: detail(&culprit.sign, &of_culprit),
    }
}

fn detail(sign: &Sign, of_culprit: &[&Symptom]) -> Detail {
    let seen = Detail {
        step: of_culprit.iter().find_map(|symptom| symptom.step),
        chunk: of_culprit.iter().find_map(|symptom| symptom.chunk),
        ..Detail::default()
    };
    match sign {
        Sign::Said(failure) => Detail {
            step: failure.step.or(seen.step),
            chunk: failure.chunk.or(seen.chunk),
            rows: failure.rows.clone(),
            memory: failure.memory.clone(),
            ..seen
        },
        Sign::Exited(exit) => {
            Detail { signal: exit.signal.map(signal_name), memory: exit.memory.clone(), ..seen }
        }
        _ => seen,
    }
}

/// Less is more telling. What a rank says of itself names its cause better than how its process ended, but a
/// collective's error is often the echo of another rank's death.
fn weight(sign: &Sign, spoke: bool) -> u8 {
    match sign {
        Sign::Said(failure) => match CauseClass::of_task_failure(&failure.class) {
            class if class.is_final() => 0,
            CauseClass::OutOfMemory => 1,
            // The others are stopped for it, and their ends say nothing.
            CauseClass::Preempted | CauseClass::Unreachable => 2,
            CauseClass::Store => 4,
            _ => 5,
        },
        Sign::Exited(exit) if exit.out_of_memory => 1,
        Sign::Misreported(_) => 0,
        Sign::Hang(_) | Sign::Diverged | Sign::StoreFailed(_) | Sign::NotStarted(_) => 2,
        Sign::Exited(exit) if !spoke && !exit.exit_code.is_some_and(|code| CONSEQUENCES.contains(&code)) => 3,
        Sign::AgentLost => 3,
        Sign::StreamEnded => 6,
        Sign::Exited(_) => 7,
    }
}

fn class(sign: &Sign) -> CauseClass {
    match sign {
        Sign::Said(failure) => CauseClass::of_task_failure(&failure.class),
        Sign::Exited(exit) if exit.out_of_memory => CauseClass::OutOfMemory,
        Sign::Hang(_) => CauseClass::Hang,
        Sign::StoreFailed(_) => CauseClass::Store,
        Sign::AgentLost => CauseClass::AgentLost,
        Sign::Misreported(_) => CauseClass::Worker,
        Sign::Exited(exit) if exit.exit_code == Some(TERMINATED) => CauseClass::Preempted,
        Sign::Exited(_) | Sign::StreamEnded | Sign::NotStarted(_) | Sign::Diverged => CauseClass::Crash,
    }
}

/// The rank's own advice, or what else a user can do.
fn advice_for(class: CauseClass, sign: &Sign) -> &str {
    match sign {
        Sign::Said(failure) if !failure.advice.is_empty() => &failure.advice,
        Sign::Exited(exit) if exit.signal == Some(Signal::SIGKILL as i32) && !exit.out_of_memory => {
            "something on its machine killed it, and neither Foil nor the kernel for want of memory: look at that machine's \
             system log"
        }
        _ => advice(class),
    }
}

fn advice(class: CauseClass) -> &'static str {
    match class {
        CauseClass::OutOfMemory => {
            "lower the step's optimizer.micro_batch_tokens or generation.max_num_seqs, or use a machine with more memory"
        }
        CauseClass::Hang => {
            "look at the rank's log and machine; raise resources.hang_timeout_seconds if a step honestly takes so long"
        }
        CauseClass::Store => "check the object store's health and free space, then submit the job again",
        CauseClass::User => "fix the job file",
        CauseClass::Data => "repair the data",
        CauseClass::Nonfinite => "lower the learning rate, or set the step's optimizer.on_nonfinite: skip",
        CauseClass::Preempted => "nothing: the job goes on where there are devices",
        CauseClass::Unreachable => "start foil-worker on that machine with another --advertise-address",
        CauseClass::AgentLost => "look at the worker machine and its network",
        CauseClass::Worker => "look at the worker machine: its ranks are not to be trusted",
        _ => "look at the rank's log; if it names no cause of yours, please report it",
    }
}
