//! The rank processes of this agent.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use foil_common::rpc::{Credentials, LeaderChannel};
use foil_common::telemetry::LogFormat;
use foil_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::environment::set_compute_environment;
use super::interface;
use super::process::{RankEnd, RankProcess};
use super::shipper::LogSink;
use super::spawner::Spawner;
use crate::collective::PortRange;
use crate::task_io::shared_objects::{RANK, SharedObjects};

/// How rank processes are started, for all sessions alike.
#[derive(Clone, Debug)]
pub struct RankProgram {
    /// `foil-worker` itself.
    pub program: PathBuf,
    /// Arguments that precede those of the session.
    pub arguments: Vec<String>,
    /// Addresses of coordinators, separated by commas.
    pub coordinator: String,
    /// Files with which the agent and the ranks authenticate.
    pub credentials: Credentials,
    /// Address at which other ranks reach the ranks of this machine; by default the local address of the
    /// route to the coordinator.
    pub advertise_address: Option<String>,
    /// Ports at which the ranks listen for each other.
    pub rendezvous_ports: PortRange,
    /// Directory that contains one subdirectory per session, removed when the session ends.
    pub work_dir: PathBuf,
    /// Format of the agent's log, to which the ranks' output is forwarded. The ranks themselves log JSON.
    pub log_format: LogFormat,
}

/// Running processes by session.
#[derive(Debug)]
pub(super) struct Ranks {
    program: RankProgram,
    spawner: Spawner,
    live: BTreeMap<String, RankProcess>,
    /// Connection for the ranks' logs. Other calls on it would wait behind their bytes.
    logs: LeaderChannel,
    /// Tasks that are still shipping logs to the store.
    shippers: Vec<JoinHandle<()>>,
    exits: mpsc::UnboundedSender<RankEnd>,
}

impl Ranks {
    /// Sends the ends of processes on `exits`; the caller must pass each to [`Ranks::remove`].
    pub(super) fn new(
        program: RankProgram,
        logs: LeaderChannel,
        exits: mpsc::UnboundedSender<RankEnd>,
    ) -> std::io::Result<Self> {
        let spawner = Spawner::start()?;
        Ok(Self { program, spawner, live: BTreeMap::new(), logs, shippers: Vec::new(), exits })
    }

    /// Starts a rank process. Does nothing if the session is already running, since commands may be repeated.
    ///
    /// `coordinators` are the addresses at which to look for the leader, likeliest first; `address` is that
    /// of the rank itself.
    pub(super) async fn start(
        &mut self,
        start: &v1::StartRank,
        device: &v1::Device,
        coordinators: &str,
        address: &str,
    ) {
        if self.live.contains_key(&start.session_id) {
            return;
        }
        let command = self.program.command(start, device, coordinators, address);
        let started = match self.spawner.spawn(command).await {
            Ok(mut child) => {
                send_secret(&mut child, &start.secret);
                let (format, sink) = (self.program.log_format, self.ship_log(start));
                RankProcess::supervise(start.session_id.clone(), child, format, sink, self.exits.clone())
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(process) => {
                tracing::info!(
                    session = start.session_id,
                    job = start.job_id,
                    attempt = start.attempt,
                    rank = start.rank,
                    device = device.id,
                    "rank started"
                );
                self.live.insert(start.session_id.clone(), process);
            }
            Err(error) => {
                tracing::error!(%error, session = start.session_id, program = %self.program.program.display(), "cannot start a rank");
                self.refuse(
                    &start.session_id,
                    format!("the agent could not start the rank process: {error}"),
                );
            }
        }
    }

    fn ship_log(&mut self, start: &v1::StartRank) -> LogSink {
        let (sink, shipper) = LogSink::start(start, self.logs.clone());
        self.shippers.retain(|shipper| !shipper.is_finished());
        self.shippers.push(shipper);
        sink
    }

    /// Waits until the logs of all ended processes are in the store.
    pub(super) async fn flush_logs(&mut self) {
        for shipper in std::mem::take(&mut self.shippers) {
            // If a shipper panicked, there is nothing to wait for.
            let _ = shipper.await;
        }
    }

    /// Reports a rank that cannot be started as an exit without a code.
    pub(super) fn refuse(&self, session_id: &str, reason: String) {
        let exit = v1::RankExited {
            session_id: session_id.to_owned(),
            log_tail: vec![reason],
            ..Default::default()
        };
        // Cannot fail: the agent's loop holds the receiver.
        let _ = self.exits.send(RankEnd { exit, stopped: false });
    }

    pub(super) fn kill(&self, session_id: &str) {
        if let Some(process) = self.live.get(session_id) {
            process.kill();
        }
    }

    /// Asks a rank to stop gracefully.
    pub(super) fn terminate(&self, session_id: &str) {
        if let Some(process) = self.live.get(session_id) {
            process.terminate();
        }
    }

    /// Asks all ranks to stop gracefully.
    pub(super) fn terminate_all(&self) {
        for process in self.live.values() {
            process.terminate();
        }
    }

    pub(super) fn kill_all(&self) {
        for process in self.live.values() {
            process.kill();
        }
    }

    /// Removes a process whose end was reported, and its directory.
    pub(super) fn remove(&mut self, session_id: &str) {
        self.live.remove(session_id);
        let dir = self.program.session_dir(session_id);
        if dir.exists()
            && let Err(error) = std::fs::remove_dir_all(&dir)
        {
            tracing::warn!(%error, dir = %dir.display(), "cannot remove a rank's directory");
        }
        SharedObjects::sweep_in(&self.program.work_dir);
    }

    pub(super) fn sessions(&self) -> Vec<String> {
        self.live.keys().cloned().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }
}

/// Writes the secret to a process's standard input. A process that has already exited needs none.
fn send_secret(child: &mut Child, secret: &str) {
    let written = child.stdin.take().map(|mut stdin| writeln!(stdin, "{secret}"));
    if let Some(Err(error)) = written {
        tracing::debug!(%error, "cannot send a rank its secret");
    }
}

impl RankProgram {
    fn session_dir(&self, session_id: &str) -> PathBuf {
        self.work_dir.join(format!("{RANK}{session_id}"))
    }

    fn command(
        &self,
        start: &v1::StartRank,
        device: &v1::Device,
        coordinators: &str,
        address: &str,
    ) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .arg("rank")
            .args(["--coordinator", coordinators])
            .args(
                self.credentials
                    .arguments()
                    .into_iter()
                    .flat_map(|(option, path)| [option.into(), path.into_os_string()]),
            )
            .args(["--session", &start.session_id])
            .args(["--job", &start.job_id])
            .args(["--attempt", &start.attempt.to_string()])
            .args(["--rank", &start.rank.to_string()])
            .args(["--world", &start.world.to_string()])
            .args(["--device", &device.kind])
            .args(["--threads", &start.threads.to_string()])
            .args(["--advertise-address", address])
            .args(["--rendezvous-ports", &self.rendezvous_ports.to_string()])
            .args(["--parent-pid", &std::process::id().to_string()])
            .arg("--work-dir")
            .arg(self.session_dir(&start.session_id))
            .env("OMP_NUM_THREADS", start.threads.to_string())
            // Signals from a terminal are for the agent, which stops its ranks gracefully.
            .process_group(0)
            // Carries the secret: other users can read arguments and the environment.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        set_compute_environment(&mut command, device);
        // '=' requires an exact name. A value set by the user takes precedence.
        if device.kind == "cuda"
            && std::env::var_os(interface::NCCL_SOCKET_IFNAME).is_none()
            && let Some(name) = interface::with_address(address)
        {
            command.env(interface::NCCL_SOCKET_IFNAME, format!("={name}"));
        }
        command
    }
}
