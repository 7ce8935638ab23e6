//! Diagnosis of a failed attempt: from all observations to the one cause that is reported.

use std::fmt;
use std::time::Duration;

use foil_common::exit::Exit;
use foil_common::oom;
use foil_proto::v1;
use nix::sys::signal::Signal;

use crate::job::{Cause, CauseClass, Detail};

/// How rank processes exit as a consequence of another failure.
const SECONDARY_EXITS: [Exit; 3] = [Exit::Done, Exit::CoordinatorLost, Exit::Stale];

/// A failure signal from one rank, with what the rank was working on.
#[derive(Debug, Clone)]
pub(super) struct Observation {
    pub(super) rank: usize,
    pub(super) signal: FailureSignal,
    /// In a gang, the last step that the rank had reported.
    pub(super) step: Option<u64>,
    /// In a map phase, the chunk that the rank held.
    pub(super) chunk: Option<u32>,
}

/// A signal that a rank has failed.
#[derive(Debug, Clone)]
pub(super) enum FailureSignal {
    /// The rank's own report.
    Reported(v1::TaskFailure),
    Exited(v1::RankExited),
    StreamEnded,
    AgentLost,
    NotStarted(Duration),
    /// No progress for this long; in a gang, reported for the rank furthest behind.
    Hung(Duration),
    /// The rank finished a gang phase with different parameters from rank 0.
    Diverged,
    StoreFailed(String),
    /// The rank made a false report.
    FalseReport(String),
}

impl fmt::Display for FailureSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported(failure) => f.write_str(&failure.message),
            Self::Exited(exit) => end_of_process(exit, f),
            Self::StreamEnded => f.write_str("its stream ended"),
            Self::AgentLost => f.write_str("its agent stopped responding"),
            Self::NotStarted(limit) => write!(f, "its process did not connect within {} s", limit.as_secs()),
            Self::Hung(limit) => write!(f, "it made no progress for {} s", limit.as_secs()),
            Self::Diverged => f.write_str("it finished the phase with other parameters than rank 0"),
            Self::StoreFailed(error) => write!(f, "the object store failed: {error}"),
            Self::FalseReport(why) => write!(f, "it made a false report: {why}"),
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

fn meaning(exit: &v1::RankExited) -> Option<Exit> {
    exit.exit_code.and_then(Exit::from_code)
}

/// Name of a signal, for example `SIGSEGV`; real-time signals have numbers only.
fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

/// The cause of a failure: the first of the most significant observations. They are in the order in which
/// they were made.
pub(super) fn diagnose(phase: &str, observations: &[Observation]) -> Cause {
    let reported = |rank: usize| {
        observations.iter().any(|observation| {
            observation.rank == rank && matches!(observation.signal, FailureSignal::Reported(_))
        })
    };
    let Some(culprit) = observations
        .iter()
        .min_by_key(|observation| priority(&observation.signal, reported(observation.rank)))
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
    let of_culprit: Vec<&Observation> =
        observations.iter().filter(|observation| observation.rank == culprit.rank).collect();
    let log_tail = of_culprit.iter().find_map(|observation| match &observation.signal {
        FailureSignal::Exited(exit) => Some(exit.log_tail.clone()),
        _ => None,
    });
    let class = class(&culprit.signal);
    Cause {
        class,
        message: format!("rank {} in {phase}: {}", culprit.rank, culprit.signal),
        advice: advice_for(class, &culprit.signal).to_owned(),
        rank: u32::try_from(culprit.rank).ok(),
        log_tail: log_tail.unwrap_or_default(),
        detail: detail(&culprit.signal, &of_culprit),
    }
}

fn detail(signal: &FailureSignal, of_culprit: &[&Observation]) -> Detail {
    let seen = Detail {
        step: of_culprit.iter().find_map(|observation| observation.step),
        chunk: of_culprit.iter().find_map(|observation| observation.chunk),
        ..Detail::default()
    };
    match signal {
        FailureSignal::Reported(failure) => Detail {
            step: failure.step.or(seen.step),
            chunk: failure.chunk.or(seen.chunk),
            rows: failure.rows.clone(),
            memory: failure.memory.clone(),
            ..seen
        },
        FailureSignal::Exited(exit) => {
            Detail { signal: exit.signal.map(signal_name), memory: exit.memory.clone(), ..seen }
        }
        _ => seen,
    }
}

/// Significance of a signal; smaller is more significant. A rank's own report is more precise than its exit
/// status, but an error of a collective operation is often just the echo of another rank's death.
fn priority(signal: &FailureSignal, reported: bool) -> u8 {
    match signal {
        FailureSignal::Reported(failure) => match CauseClass::from(failure.class()) {
            class if class.is_final() => 0,
            CauseClass::OutOfMemory => 1,
            // The other ranks are stopped because of it, so their exits mean nothing.
            CauseClass::Preempted | CauseClass::Unreachable => 2,
            CauseClass::Store => 4,
            _ => 5,
        },
        FailureSignal::Exited(exit) if exit.out_of_memory => 1,
        FailureSignal::FalseReport(_) => 0,
        FailureSignal::Hung(_)
        | FailureSignal::Diverged
        | FailureSignal::StoreFailed(_)
        | FailureSignal::NotStarted(_) => 2,
        FailureSignal::Exited(exit)
            if !reported && !meaning(exit).is_some_and(|exit| SECONDARY_EXITS.contains(&exit)) =>
        {
            3
        }
        FailureSignal::AgentLost => 3,
        FailureSignal::StreamEnded => 6,
        FailureSignal::Exited(_) => 7,
    }
}

fn class(signal: &FailureSignal) -> CauseClass {
    match signal {
        FailureSignal::Reported(failure) => CauseClass::from(failure.class()),
        FailureSignal::Exited(exit) if exit.out_of_memory => CauseClass::OutOfMemory,
        FailureSignal::Hung(_) => CauseClass::Hang,
        FailureSignal::StoreFailed(_) => CauseClass::Store,
        FailureSignal::AgentLost => CauseClass::AgentLost,
        FailureSignal::FalseReport(_) => CauseClass::Worker,
        FailureSignal::Exited(exit) if meaning(exit) == Some(Exit::Terminated) => CauseClass::Preempted,
        FailureSignal::Exited(_)
        | FailureSignal::StreamEnded
        | FailureSignal::NotStarted(_)
        | FailureSignal::Diverged => CauseClass::Crash,
    }
}

/// The rank's own advice if it gave any, or general advice.
fn advice_for(class: CauseClass, signal: &FailureSignal) -> &str {
    match signal {
        FailureSignal::Reported(failure) if !failure.advice.is_empty() => &failure.advice,
        FailureSignal::Exited(exit) if exit.signal == Some(Signal::SIGKILL as i32) && !exit.out_of_memory => {
            "something on its machine killed it, neither Foil nor the kernel's out-of-memory killer: look at that machine's \
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
            "look at the rank's log and machine; raise resources.hang_timeout_seconds if a step really takes that long"
        }
        CauseClass::Store => "check the object store's health and free space, then submit the job again",
        CauseClass::User => "fix the job file",
        CauseClass::Data => "repair the data",
        CauseClass::Nonfinite => "lower the learning rate, or set the step's optimizer.on_nonfinite: skip",
        CauseClass::Preempted => "none needed: the job continues when there are devices",
        CauseClass::Unreachable => "start foil-worker on that machine with another --advertise-address",
        CauseClass::AgentLost => "look at the worker machine and its network",
        CauseClass::Worker => "look at the worker machine: its ranks make false reports",
        _ => "look at the rank's log; if it names no cause of yours, please report it",
    }
}
