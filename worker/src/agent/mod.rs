//! The agent: registers this host's devices, starts rank processes and supervises them.
//!
//! It is async and holds no tensors. One loop owns its state and handles commands of the coordinator
//! ([`link`]), exits of rank processes ([`process`]) and timers.

#![expect(clippy::disallowed_methods, reason = "the agent owns its clock and draws its instance id")]

mod devices;
mod environment;
mod interface;
mod leader;
mod link;
mod output;
mod process;
mod ranks;
mod shipper;
mod shutdown;
mod spawner;
mod web;
mod work_dir;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foil_common::rpc::{self, LeaderChannel};
use foil_common::version;
use foil_proto::v1;
use foil_proto::v1::agent_command::Command;
use foil_proto::v1::agent_message::Message;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use self::leader::LeaderLease;
use self::link::LinkEvent;
use self::process::RankEnd;
use self::ranks::Ranks;
use self::work_dir::WorkDir;

pub use self::devices::{DeviceError, DeviceKind, list as list_devices};
pub use self::environment::set_compute_environment;
pub use self::ranks::RankProgram;
pub use self::web::{ListenError, MetricsListen};

/// Defaults until the coordinator sends its own in the welcome.
const HEARTBEAT: Duration = Duration::from_secs(1);
const FENCE: Duration = Duration::from_secs(60);
/// Time to resolve the coordinator's host name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// The advertised address until a better one is known.
const LOOPBACK: &str = "127.0.0.1";
/// Interval of checks that the parent is still alive.
const PARENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The options of an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub agent_id: String,
    pub devices: Vec<v1::Device>,
    pub ranks: RankProgram,
    /// The parent process, if the agent must end when it exits.
    pub parent_pid: Option<u32>,
    pub metrics_listen: Option<MetricsListen>,
    /// Time for ranks to stop gracefully when this agent is asked to stop.
    pub grace: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot use the work directory {}: {source}; give another with --work-dir", dir.display())]
    WorkDir { dir: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Connect(#[from] foil_common::rpc::ConnectError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("the coordinator rejected this agent: {0}")]
    Refused(String),
}

/// Why an agent ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEnd {
    /// It received a stop signal.
    Stopped,
    /// The process that started it has exited.
    Orphaned,
}

/// Runs until `stop` completes, the parent exits, or the coordinator rejects the agent. No rank outlives it.
pub async fn run(
    options: AgentOptions,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    stop: impl Future<Output = ()>,
) -> Result<AgentEnd, AgentError> {
    let dir = options.ranks.work_dir.clone();
    let io_error = |source| AgentError::WorkDir { dir: dir.clone(), source };
    let work_dir = WorkDir::open(&dir).map_err(io_error)?;
    work_dir.purge_others();
    let connected = Arc::new(AtomicBool::new(false));
    if let Some(listen) = &options.metrics_listen {
        let bound = web::serve(listen, metrics, Arc::clone(&connected)).await?;
        tracing::info!(address = %bound, "metrics at /metrics");
    }
    let (exit_sender, exits) = mpsc::unbounded_channel();
    let logs = rpc::connect_with(&options.ranks.coordinator, &options.ranks.credentials)?;
    let ranks = Ranks::new(options.ranks.clone(), logs, exit_sender).map_err(AgentError::Thread)?;
    let (event_sender, events) = mpsc::channel(64);
    let channel = rpc::connect_with(&options.ranks.coordinator, &options.ranks.credentials)?;
    let reconnect = Arc::new(Notify::new());
    let link = tokio::spawn(link::keep(channel.clone(), event_sender, Arc::clone(&reconnect)));
    let mut agent = Agent::new(options, ranks, connected, channel, reconnect);
    let end = agent.serve(events, exits, stop).await;
    link.abort();
    drop(work_dir);
    end
}

struct Agent {
    options: AgentOptions,
    /// A random id known only to the coordinator, so that no other process can register as this one.
    instance: String,
    ranks: Ranks,
    connected: Arc<AtomicBool>,
    stream: Option<mpsc::Sender<v1::AgentMessage>>,
    channel: LeaderChannel,
    /// Closes the current stream and connects to another coordinator.
    reconnect: Arc<Notify>,
    /// Exits of ranks that have not been reported to the coordinator.
    unreported_exits: Vec<v1::RankExited>,
    /// The highest term seen.
    term: u64,
    heartbeat: Duration,
    fence: Duration,
    leader: LeaderLease,
    /// Address at which other ranks reach those of this machine.
    address: String,
}

impl Agent {
    fn new(
        options: AgentOptions,
        ranks: Ranks,
        connected: Arc<AtomicBool>,
        channel: LeaderChannel,
        reconnect: Arc<Notify>,
    ) -> Self {
        Self {
            options,
            instance: blake3::Hash::from_bytes(rand::random()).to_hex().to_string(),
            ranks,
            channel,
            reconnect,
            connected,
            stream: None,
            unreported_exits: Vec::new(),
            term: 0,
            heartbeat: HEARTBEAT,
            fence: FENCE,
            leader: LeaderLease::new(Instant::now()),
            address: LOOPBACK.to_owned(),
        }
    }

    async fn serve(
        &mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut exits: mpsc::UnboundedReceiver<RankEnd>,
        stop: impl Future<Output = ()>,
    ) -> Result<AgentEnd, AgentError> {
        tokio::pin!(stop);
        let mut parent_check = interval(PARENT_CHECK_INTERVAL);
        let mut heartbeat = heartbeat_interval(self.heartbeat);
        let end = loop {
            let fence_at = self.fence_at();
            tokio::select! {
                () = &mut stop => break Ok(AgentEnd::Stopped),
                _ = parent_check.tick() => if self.is_orphaned() { break Ok(AgentEnd::Orphaned) },
                _ = heartbeat.tick() => self.send_heartbeat(),
                () = sleep_until(fence_at) => self.enforce_fence(),
                Some(exit) = exits.recv() => self.rank_ended(exit),
                event = events.recv() => match event {
                    Some(LinkEvent::Refused(status)) => break Err(AgentError::Refused(status.message().to_owned())),
                    Some(event) => if self.handle_event(event).await { heartbeat = heartbeat_interval(self.heartbeat) },
                    None => break Err(AgentError::Refused("the connection task ended".to_owned())),
                },
            }
        };
        self.shut_down(matches!(end, Ok(AgentEnd::Stopped)), &mut events, &mut exits).await;
        end
    }

    /// Returns whether the heartbeat interval may have changed.
    async fn handle_event(&mut self, event: LinkEvent) -> bool {
        match event {
            LinkEvent::Up(stream) => {
                self.stream = Some(stream);
                self.leader.connecting(Instant::now());
                self.address = self.own_address().await;
                self.register();
                false
            }
            LinkEvent::Command(command) => self.handle_command(command).await,
            LinkEvent::Down | LinkEvent::Refused(_) => {
                self.stream = None;
                self.connected.store(false, Ordering::Relaxed);
                false
            }
        }
    }

    /// The configured address, or by default the local address of the route to the coordinator: machines that
    /// reach the same coordinator also reach each other.
    async fn own_address(&self) -> String {
        if let Some(address) = &self.options.ranks.advertise_address {
            return address.clone();
        }
        let found = timeout(RESOLVE_TIMEOUT, rpc::local_address(&self.channel.url())).await.ok().flatten();
        found.map_or_else(|| self.address.clone(), |address| address.to_string())
    }

    fn register(&mut self) {
        let hostname =
            std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        self.send(Message::Register(v1::AgentRegister {
            agent_id: self.options.agent_id.clone(),
            hostname,
            devices: self.options.devices.clone(),
            version: version::VERSION.to_owned(),
            session_ids: self.ranks.sessions(),
            instance: self.instance.clone(),
            build: version::BUILD.to_owned(),
            advertise_address: self.address.clone(),
        }));
        for exit in std::mem::take(&mut self.unreported_exits) {
            self.report_exit(exit);
        }
    }

    async fn handle_command(&mut self, command: v1::AgentCommand) -> bool {
        if command.term < self.term {
            tracing::warn!(term = command.term, known = self.term, "rejected a command of an older term");
            return false;
        }
        self.term = command.term;
        match command.command {
            Some(Command::Welcome(welcome)) => {
                self.welcome(&welcome);
                return true;
            }
            Some(Command::StartRank(start)) => {
                match self.options.devices.iter().find(|device| device.id == start.device_id).cloned() {
                    Some(device) => {
                        self.ranks.start(&start, &device, &self.channel.urls(), &self.address).await;
                    }
                    None => {
                        let reason = format!("this agent has no device {}", start.device_id);
                        self.ranks.refuse(&start.session_id, reason);
                    }
                }
                self.count_ranks();
            }
            Some(Command::StopRank(stop)) if stop.graceful => self.ranks.terminate(&stop.session_id),
            Some(Command::StopRank(stop)) => self.ranks.kill(&stop.session_id),
            Some(Command::Heard(heard)) => self.leader.acknowledged(heard.number),
            None => tracing::warn!("ignored a command that this version does not know"),
        }
        false
    }

    fn welcome(&mut self, welcome: &v1::AgentWelcome) {
        if welcome.heartbeat_milliseconds > 0 {
            self.heartbeat = Duration::from_millis(welcome.heartbeat_milliseconds.into());
        }
        if welcome.fence_milliseconds > 0 {
            self.fence = Duration::from_millis(welcome.fence_milliseconds.into());
        }
        self.leader.registered();
        self.connected.store(true, Ordering::Relaxed);
        let devices = self.options.devices.len();
        tracing::info!(agent = self.options.agent_id, devices, term = self.term, "registered");
    }

    /// Sends a heartbeat, and reconnects if the leader has stopped answering them.
    fn send_heartbeat(&mut self) {
        let now = Instant::now();
        if self.stream.is_some() && self.leader.is_silent(now, self.heartbeat) {
            tracing::warn!("the coordinator does not answer; looking for the leader");
            self.stream = None;
            self.reconnect.notify_one();
            return;
        }
        if self.stream.is_some() {
            let number = self.leader.next_heartbeat(now);
            self.send(Message::Heartbeat(v1::AgentHeartbeat { number }));
        }
    }

    fn fence_at(&self) -> Instant {
        // Without ranks there is nothing to fence off.
        let idle = Duration::from_secs(3600);
        if self.ranks.is_empty() { Instant::now() + idle } else { self.leader.last_known() + self.fence }
    }

    fn enforce_fence(&mut self) {
        if self.leader.last_known().elapsed() >= self.fence && !self.ranks.is_empty() {
            let seconds = self.fence.as_secs_f64();
            tracing::error!(
                ranks = self.ranks.len(),
                seconds,
                "no coordinator for the fence period; killing the ranks"
            );
            self.ranks.kill_all();
            self.leader.reset(Instant::now());
        }
    }

    fn rank_ended(&mut self, end: RankEnd) {
        end.record();
        let RankEnd { exit, .. } = end;
        self.ranks.remove(&exit.session_id);
        self.count_ranks();
        self.report_exit(exit);
    }

    fn count_ranks(&self) {
        metrics::gauge!("foil_agent_ranks").set(u32::try_from(self.ranks.len()).unwrap_or(u32::MAX));
    }

    fn report_exit(&mut self, exit: v1::RankExited) {
        if self.connected.load(Ordering::Relaxed) || self.stream.is_some() {
            self.send(Message::RankExited(exit));
        } else {
            self.unreported_exits.push(exit);
        }
    }

    /// Never blocks. If the stream does not drain, it is broken and its keep-alive closes it.
    fn send(&self, message: Message) {
        if let Some(stream) = &self.stream
            && let Err(error) = stream.try_send(v1::AgentMessage { message: Some(message) })
        {
            tracing::debug!(%error, "dropped a message to the coordinator");
        }
    }

    fn is_orphaned(&self) -> bool {
        self.options.parent_pid.is_some_and(|parent| !is_child_of(parent))
    }
}

/// Whether the process `parent` is still this process's parent.
pub(crate) fn is_child_of(parent: u32) -> bool {
    u32::try_from(nix::unistd::getppid().as_raw()).is_ok_and(|actual| actual == parent)
}

fn heartbeat_interval(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests;
