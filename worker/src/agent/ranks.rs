//! The rank processes of this agent: starting, stopping, forgetting.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use foil_common::telemetry::LogFormat;
use foil_proto::v1;
use tokio::sync::mpsc;

use super::interface;
use super::process::{RankEnd, RankProcess};
use super::spawner::Spawner;

/// How a rank process is started, whatever its session.
#[derive(Clone, Debug)]
pub struct RankProgram {
    /// `foil-worker` itself.
    pub program: PathBuf,
    /// Put before the arguments of a session.
    pub arguments: Vec<String>,
    /// Addresses of coordinators, separated by commas.
    pub coordinator: String,
    /// Where other ranks reach those of this machine. None: at the address that its way to the coordinator begins at.
    pub advertise_address: Option<String>,
    /// Each session gets a directory of its own in it, removed at its end.
    pub work_dir: PathBuf,
    /// Of the agent's own log, which what ranks print becomes a part of.
    pub log_format: LogFormat,
}

/// Live processes by session.
#[derive(Debug)]
pub(super) struct Ranks {
    program: RankProgram,
    spawner: Spawner,
    live: BTreeMap<String, RankProcess>,
    exits: mpsc::UnboundedSender<RankEnd>,
}

impl Ranks {
    /// Ends of processes are sent on `exits`; each must be handed to [`Ranks::forget`].
    pub(super) fn new(program: RankProgram, exits: mpsc::UnboundedSender<RankEnd>) -> std::io::Result<Self> {
        Ok(Self { program, spawner: Spawner::start()?, live: BTreeMap::new(), exits })
    }

    /// A session that already runs is left alone: commands may be repeated.
    ///
    /// `coordinators` are where it finds the leader, the likeliest first; `address` is where other ranks find it.
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
                hand_over(&mut child, &start.secret);
                let format = self.program.log_format;
                RankProcess::supervise(start.session_id.clone(), child, format, self.exits.clone())
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
                tracing::error!(%error, session = start.session_id, program = %self.program.program.display(), "rank could not be started");
                self.refuse(
                    &start.session_id,
                    format!("the agent could not start the rank process: {error}"),
                );
            }
        }
    }

    /// Answers a command to start that cannot be obeyed, as an end without a code.
    pub(super) fn refuse(&self, session_id: &str, why: String) {
        let exit =
            v1::RankExited { session_id: session_id.to_owned(), log_tail: vec![why], ..Default::default() };
        // The receiver lives as long as this agent's loop.
        let _ = self.exits.send(RankEnd { exit, stopped: false });
    }

    pub(super) fn stop(&self, session_id: &str) {
        if let Some(process) = self.live.get(session_id) {
            process.kill();
        }
    }

    /// Asks all to end in order.
    pub(super) fn terminate_all(&self) {
        for process in self.live.values() {
            process.terminate();
        }
    }

    pub(super) fn stop_all(&self) {
        for process in self.live.values() {
            process.kill();
        }
    }

    /// After a process's end was reported.
    pub(super) fn forget(&mut self, session_id: &str) {
        self.live.remove(session_id);
        let dir = self.program.session_dir(session_id);
        if dir.exists()
            && let Err(error) = std::fs::remove_dir_all(&dir)
        {
            tracing::warn!(%error, dir = %dir.display(), "a rank's directory could not be removed");
        }
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

/// Gives a process its secret. One that has ended already needs none.
fn hand_over(child: &mut Child, secret: &str) {
    let written = child.stdin.take().map(|mut stdin| writeln!(stdin, "{secret}"));
    if let Some(Err(error)) = written {
        tracing::debug!(%error, "a rank took no secret");
    }
}

impl RankProgram {
    fn session_dir(&self, session_id: &str) -> PathBuf {
        self.work_dir.join(format!("rank-{session_id}"))
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
            .args(["--session", &start.session_id])
            .args(["--job", &start.job_id])
            .args(["--attempt", &start.attempt.to_string()])
            .args(["--rank", &start.rank.to_string()])
            .args(["--world", &start.world.to_string()])
            .args(["--device", &device.kind])
            .args(["--threads", &start.threads.to_string()])
            .args(["--advertise-address", address])
            .args(["--parent-pid", &std::process::id().to_string()])
            .arg("--work-dir")
            .arg(self.session_dir(&start.session_id))
            // A rank sees its one device only, and calls it cuda:0.
            .env("CUDA_VISIBLE_DEVICES", if device.kind == "cuda" { &device.id } else { "" })
            // cuBLAS picks the same algorithm for the same shape only with a fixed workspace.
            .env("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            // cuDNN compiles a plan for each new shape of a decoding step, some tenths of a second every time.
            .env("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
            .env("OMP_NUM_THREADS", start.threads.to_string())
            // What a terminal sends is for the agent, which asks its ranks to keep what they have done.
            .process_group(0)
            // Its secret comes by it: arguments and the environment can be read by others.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // An exact name, after '='. What the user has set counts.
        if device.kind == "cuda"
            && std::env::var_os(interface::NCCL_SOCKET_IFNAME).is_none()
            && let Some(name) = interface::of(address)
        {
            command.env(interface::NCCL_SOCKET_IFNAME, format!("={name}"));
        }
        command
    }
}
