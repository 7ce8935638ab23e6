//! A rank process: one device, and one thread that owns every tensor.
//!
//! The device thread ([`device`]) runs tasks one after another. A tokio runtime runs the session with the
//! coordinator ([`session`]), which receives commands and sends results and progress. Tasks read and write
//! objects through [`crate::task_io`].

mod affinity;
mod device;
mod parent;
mod replay_log;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use foil_common::otlp::{Config, Exporter};
use foil_common::rpc::Credentials;
use foil_common::{failpoint, shutdown};

use crate::agent::DeviceKind;
use crate::collective::PortRange;
use crate::task_io::stop::StopSignal;
use foil_common::exit::Exit;

/// Maximum length of the line with the secret, including its line break.
const MAX_SECRET_BYTES: u64 = 256;
/// Time for the session to report how its task ended before a stopped process exits.
const FLUSH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);
/// Time to send the last spans.
const OTLP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// A rank process's secret; never printed.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// Reads the secret from the first line of `input`, which the agent writes. Empty if there is none.
    pub fn read(input: impl Read) -> std::io::Result<Self> {
        let mut line = String::new();
        BufReader::new(input.take(MAX_SECRET_BYTES)).read_line(&mut line)?;
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

/// The options with which an agent starts a rank.
#[derive(Clone, Debug)]
pub struct RankOptions {
    pub coordinator: String,
    pub credentials: Credentials,
    pub session_id: String,
    /// Proves to the coordinator that this process belongs to the session.
    pub secret: Secret,
    pub job_id: String,
    pub attempt: u32,
    pub rank: u32,
    pub world: u32,
    pub device: DeviceKind,
    /// Number of CPU threads of tensor operations. Results with a different number may differ in the last
    /// bits.
    pub threads: u32,
    /// Address at which other ranks reach this one.
    pub advertise_address: String,
    /// Ports at which it listens for other ranks.
    pub rendezvous_ports: PortRange,
    /// This process's directory, created at the start and removed at the end.
    pub work_dir: PathBuf,
    /// The agent's process id. The kernel kills this process when the agent dies.
    pub parent_pid: Option<u32>,
    /// Set when this process is asked to stop.
    pub stop: StopSignal,
}

/// Runs until asked to exit, and sends spans if `otlp` names a destination. Must be called on the main
/// thread, to which the parent-death signal is tied.
pub fn run(options: &RankOptions, otlp: Option<Config>) -> Exit {
    if let Some(parent) = options.parent_pid
        && !parent::die_with(parent)
    {
        tracing::warn!(parent, "the agent has exited");
        return Exit::Orphaned;
    }
    if options.device == DeviceKind::Cuda
        && let Ok(uuid) = std::env::var("CUDA_VISIBLE_DEVICES")
    {
        affinity::bind_near(&uuid, options.threads as usize);
    }
    if let Err(error) = failpoint::hit("rank.start") {
        tracing::error!(%error, "cannot start");
        return Exit::Failed;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("io").enable_all().build();
    let exit = match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(traced(options, otlp));
            runtime.shutdown_background();
            exit
        }
        Err(error) => {
            tracing::error!(%error, "cannot start the tokio runtime");
            Exit::Failed
        }
    };
    // The agent also removes it, in case this process is killed.
    let _ = std::fs::remove_dir_all(&options.work_dir);
    exit
}

/// [`until_stopped`], with the spans of the work.
async fn traced(options: &RankOptions, otlp: Option<Config>) -> Exit {
    let mut exporter = match otlp.map(|config| Exporter::start(config, None::<fn() -> String>)).transpose() {
        Ok(exporter) => exporter.unwrap_or_default(),
        Err(error) => {
            tracing::error!(%error, "cannot send traces");
            return Exit::Failed;
        }
    };
    let exit = until_stopped(options, &mut exporter).await;
    exporter.shut_down(OTLP_TIMEOUT).await;
    exit
}

/// Waits until this process is asked to stop and nothing uninterruptible has run for the time `flush`. A task
/// that just stopped needs that time: its session still has messages to send, and then ends by itself.
async fn idle(stop: &StopSignal, flush: std::time::Duration) {
    loop {
        stop.requested_and_idle().await;
        // Training may begin within that time. It then stops by itself after its first step.
        if tokio::time::timeout(flush, stop.until_busy()).await.is_err() {
            return;
        }
    }
}

/// Runs until the session ends or, after a signal, until nothing uninterruptible is running.
async fn until_stopped(options: &RankOptions, exporter: &mut Exporter) -> Exit {
    let signals = async {
        match shutdown::on_signal() {
            Ok(shutdown) => {
                shutdown.requested().await;
                options.stop.request();
            }
            Err(error) => tracing::warn!(%error, "cannot install signal handlers"),
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        exit = session::run(options, session::LEADER_TIMEOUT, exporter) => exit,
        () = idle(&options.stop, FLUSH_TIMEOUT) => Exit::Terminated,
        () = signals => unreachable!("the signal task never ends"),
    }
}

#[cfg(test)]
mod stop_tests {
    use std::time::Duration;

    use super::{StopSignal, idle};

    const FLUSH: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_rank_that_is_not_training_stops_once_its_messages_are_sent() {
        let stop = StopSignal::default();
        tokio::select! {
            biased;
            () = idle(&stop, Duration::ZERO) => panic!("no stop was requested"),
            () = std::future::ready(()) => {}
        }
        stop.request();
        idle(&stop, FLUSH).await;
    }

    #[tokio::test]
    async fn a_step_that_begins_while_messages_are_sent_is_not_interrupted() {
        let stop = StopSignal::default();
        stop.request();
        let step = async {
            let _busy = stop.busy();
            tokio::time::sleep(FLUSH * 2).await;
        };
        tokio::select! {
            biased;
            () = idle(&stop, FLUSH) => panic!("the step was interrupted"),
            () = step => {}
        }
        idle(&stop, FLUSH).await;
    }
}
