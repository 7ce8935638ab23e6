//! A rank process: one device, one thread that owns every tensor.
//!
//! The thread named `device` ([`device`]) runs tasks one after another; a tokio runtime beside it speaks gRPC
//! ([`session`]): commands down, results and progress up, and the objects that tasks read and write ([`transfer`]).

mod device;
mod parent;
mod recall;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use foil_common::{failpoint, shutdown};

use crate::agent::DeviceKind;
use crate::exit::Exit;
use crate::task_io::stop::Stopping;

/// In bytes, its line's end counted.
const LONGEST_SECRET: u64 = 256;
/// For a session to tell how its task ended.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(1);

/// Of a rank process. Not shown.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// From the first line of what an agent writes to a rank's standard input; empty where it writes none.
    pub fn read(input: impl Read) -> std::io::Result<Self> {
        let mut line = String::new();
        BufReader::new(input.take(LONGEST_SECRET)).read_line(&mut line)?;
        Ok(Self(line.trim_end().to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What an agent starts a rank with.
#[derive(Clone, Debug)]
pub struct RankOptions {
    pub coordinator: String,
    pub session_id: String,
    /// Proves to the coordinator that this is the process of the session.
    pub secret: Secret,
    pub job_id: String,
    pub attempt: u32,
    pub rank: u32,
    pub world: u32,
    pub device: DeviceKind,
    /// CPU threads of tensor operations; part of what fixes the bits.
    pub threads: u32,
    /// Where other ranks reach this one.
    pub advertise_address: String,
    /// This process's own directory; it is made, and removed at the end.
    pub work_dir: PathBuf,
    /// The agent; the kernel kills this process when it dies.
    pub parent_pid: Option<u32>,
    /// Raised when this process is asked to end.
    pub stopping: Stopping,
}

/// Serves until told to end, and says how it ended. To be called on the main thread, which the parent's death
/// signal is tied to.
pub fn run(options: &RankOptions) -> Exit {
    if let Some(parent) = options.parent_pid
        && !parent::die_with(parent)
    {
        tracing::warn!(parent, "the agent is gone");
        return Exit::Orphaned;
    }
    if let Err(error) = failpoint::hit("rank.start") {
        tracing::error!(%error, "not started");
        return Exit::Failed;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("io").enable_all().build();
    let exit = match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(until_stopped(options));
            runtime.shutdown_background();
            exit
        }
        Err(error) => {
            tracing::error!(%error, "the runtime could not be started");
            Exit::Failed
        }
    };
    // The agent removes it too, also where this process was killed.
    let _ = std::fs::remove_dir_all(&options.work_dir);
    exit
}

/// Waits until this process is asked to end and nothing is under way that must not be cut off, for the time `flush`: where
/// a task has just ended for that, its session has something to send, and ends by itself.
async fn idle(stopping: &Stopping, flush: std::time::Duration) {
    loop {
        stopping.asked_in_idleness().await;
        // Training may begin within that time; it then ends by itself after its first step.
        if tokio::time::timeout(flush, stopping.under_way()).await.is_err() {
            return;
        }
    }
}

/// Serves until its session ends; or, asked by a signal, until what must not be cut off is done.
async fn until_stopped(options: &RankOptions) -> Exit {
    let asked = async {
        match shutdown::on_signal() {
            Ok(shutdown) => {
                shutdown.requested().await;
                options.stopping.ask();
            }
            Err(error) => tracing::warn!(%error, "signals cannot be heard"),
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        exit = session::run(options, session::ALONE) => exit,
        () = idle(&options.stopping, LAST_WORDS) => Exit::Terminated,
        () = asked => unreachable!("hearing a signal has no end"),
    }
}

#[cfg(test)]
mod stop_tests {
    use std::time::Duration;

    use super::{Stopping, idle};

    const FLUSH: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_rank_that_loads_or_waits_ends_once_its_messages_are_sent() {
        let stopping = Stopping::default();
        tokio::select! {
            biased;
            () = idle(&stopping, Duration::ZERO) => panic!("nobody has asked it to end"),
            () = std::future::ready(()) => {}
        }
        stopping.ask();
        idle(&stopping, FLUSH).await;
    }

    #[tokio::test]
    async fn a_step_that_begins_while_messages_are_sent_is_not_cut_off() {
        let stopping = Stopping::default();
        stopping.ask();
        let step = async {
            let _busy = stopping.busy();
            tokio::time::sleep(FLUSH * 2).await;
        };
        tokio::select! {
            biased;
            () = idle(&stopping, FLUSH) => panic!("the step was cut off"),
            () = step => {}
        }
        idle(&stopping, FLUSH).await;
    }
}
