//! The agent: registers this host's devices, starts rank processes and supervises them.
//!
//! It is async and holds no tensors. One loop owns its state; it hears the coordinator (through
//! [`link`]), the ends of its processes (through [`process`]) and the clock.

mod devices;
mod interface;
mod leader;
mod link;
mod output;
mod parting;
mod process;
mod ranks;
mod spawner;
mod web;
mod work_dir;

use std::net::SocketAddr;
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

use self::leader::Leader;
use self::link::LinkEvent;
use self::process::RankEnd;
use self::ranks::Ranks;
use self::work_dir::WorkDir;

pub use self::devices::{DeviceError, DeviceKind, list as list_devices};
pub use self::ranks::RankProgram;

/// Until the coordinator has said its own.
const HEARTBEAT: Duration = Duration::from_secs(1);
const FENCE: Duration = Duration::from_secs(60);
/// For the coordinator's name to be resolved.
const RESOLVING: Duration = Duration::from_secs(3);
/// Until something better is known.
const LOOPBACK: &str = "127.0.0.1";
/// Between two looks at whether the parent still lives.
const PARENT_CHECK: Duration = Duration::from_millis(500);
/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub agent_id: String,
    pub devices: Vec<v1::Device>,
    pub ranks: RankProgram,
    /// Where this agent ends with the process that started it.
    pub parent_pid: Option<u32>,
    pub metrics_listen: Option<SocketAddr>,
    /// For ranks to end in order, where this agent is told to stop.
    pub grace: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot use the work directory {}: {source}; give another with --work-dir", dir.display())]
    WorkDir { dir: PathBuf, source: std::io::Error },
    #[error("cannot listen for metrics on {listen}: {source}; give another address with --metrics-listen")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Connect(#[from] foil_common::rpc::ConnectError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("the coordinator refuses this agent: {0}")]
    Refused(String),
}

/// Why an agent ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEnd {
    /// Told to stop by a signal.
    Stopped,
    /// The process that started it is gone.
    Orphaned,
}

/// Serves until `stop` completes, the parent is gone, or the coordinator refuses. No rank outlives it.
pub async fn run(
    options: AgentOptions,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    stop: impl Future<Output = ()>,
) -> Result<AgentEnd, AgentError> {
    let work_dir = options.ranks.work_dir.clone();
    let unusable = |source| AgentError::WorkDir { dir: work_dir.clone(), source };
    let held = WorkDir::open(&work_dir).map_err(unusable)?;
    held.purge_others();
    let connected = Arc::new(AtomicBool::new(false));
    if let Some(listen) = options.metrics_listen {
        let bound = web::serve(listen, metrics, Arc::clone(&connected))
            .await
            .map_err(|source| AgentError::Listen { listen, source })?;
        tracing::info!(address = %bound, "metrics at /metrics");
    }
    let (exits, ended) = mpsc::unbounded_channel();
    let ranks = Ranks::new(options.ranks.clone(), exits).map_err(AgentError::Thread)?;
    let (events, heard) = mpsc::channel(64);
    let channel = foil_common::rpc::connect(&options.ranks.coordinator)?;
    let hang_up = Arc::new(Notify::new());
    let link = tokio::spawn(link::keep(channel.clone(), events, Arc::clone(&hang_up)));
    let mut agent = Agent::new(options, ranks, connected, channel, hang_up);
    let end = agent.serve(heard, ended, stop).await;
    link.abort();
    drop(held);
    end
}

struct Agent {
    options: AgentOptions,
    /// Known to the coordinator alone: no other process can register as this one.
    instance: String,
    ranks: Ranks,
    connected: Arc<AtomicBool>,
    stream: Option<mpsc::Sender<v1::AgentMessage>>,
    channel: LeaderChannel,
    /// Ends the present stream: whoever is at its other end is not believed in any more.
    hang_up: Arc<Notify>,
    /// Ends of ranks not yet told to the coordinator.
    untold: Vec<v1::RankExited>,
    /// The highest term heard of.
    term: u64,
    heartbeat: Duration,
    fence: Duration,
    leader: Leader,
    /// Where other ranks reach those of this machine.
    address: String,
}

impl Agent {
    fn new(
        options: AgentOptions,
        ranks: Ranks,
        connected: Arc<AtomicBool>,
        channel: LeaderChannel,
        hang_up: Arc<Notify>,
    ) -> Self {
        Self {
            options,
            instance: blake3::Hash::from_bytes(rand::random()).to_hex().to_string(),
            ranks,
            channel,
            hang_up,
            connected,
            stream: None,
            untold: Vec::new(),
            term: 0,
            heartbeat: HEARTBEAT,
            fence: FENCE,
            leader: Leader::new(Instant::now()),
            address: LOOPBACK.to_owned(),
        }
    }

    async fn serve(
        &mut self,
        mut heard: mpsc::Receiver<LinkEvent>,
        mut ended: mpsc::UnboundedReceiver<RankEnd>,
        stop: impl Future<Output = ()>,
    ) -> Result<AgentEnd, AgentError> {
        tokio::pin!(stop);
        let mut parent_check = interval(PARENT_CHECK);
        let mut beat = steady(self.heartbeat);
        let end = loop {
            let fence_at = self.fence_at();
            tokio::select! {
                () = &mut stop => break Ok(AgentEnd::Stopped),
                _ = parent_check.tick() => if self.is_orphaned() { break Ok(AgentEnd::Orphaned) },
                _ = beat.tick() => self.beat(),
                () = sleep_until(fence_at) => self.fence_off(),
                Some(exit) = ended.recv() => self.rank_ended(exit),
                event = heard.recv() => match event {
                    Some(LinkEvent::Refused(status)) => break Err(AgentError::Refused(status.message().to_owned())),
                    Some(event) => if self.hear(event).await { beat = steady(self.heartbeat) },
                    None => break Err(AgentError::Refused("the connection task ended".to_owned())),
                },
            }
        };
        self.leave(matches!(end, Ok(AgentEnd::Stopped)), &mut heard, &mut ended).await;
        end
    }

    /// Answers whether the heartbeat's period may have changed.
    async fn hear(&mut self, event: LinkEvent) -> bool {
        match event {
            LinkEvent::Up(stream) => {
                self.stream = Some(stream);
                self.leader.connecting(Instant::now());
                self.address = self.own_address().await;
                self.register();
                false
            }
            LinkEvent::Command(command) => self.obey(command).await,
            LinkEvent::Down | LinkEvent::Refused(_) => {
                self.stream = None;
                self.connected.store(false, Ordering::Relaxed);
                false
            }
        }
    }

    /// As the user says; else the one that this machine has on its way to the coordinator, so that two machines find each
    /// other as they find it.
    async fn own_address(&self) -> String {
        if let Some(address) = &self.options.ranks.advertise_address {
            return address.clone();
        }
        let found = timeout(RESOLVING, rpc::local_address(&self.channel.url())).await.ok().flatten();
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
        for exit in std::mem::take(&mut self.untold) {
            self.tell(exit);
        }
    }

    async fn obey(&mut self, command: v1::AgentCommand) -> bool {
        if command.term < self.term {
            tracing::warn!(term = command.term, known = self.term, "a command of an older term is refused");
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
                        let why = format!("this agent has no device {}", start.device_id);
                        self.ranks.refuse(&start.session_id, why);
                    }
                }
                self.count_ranks();
            }
            Some(Command::StopRank(stop)) => self.ranks.stop(&stop.session_id),
            Some(Command::Heard(heard)) => self.leader.heard(heard.number),
            None => tracing::warn!("a command this version does not know is left aside"),
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
        self.leader.welcomed();
        self.connected.store(true, Ordering::Relaxed);
        let devices = self.options.devices.len();
        tracing::info!(agent = self.options.agent_id, devices, term = self.term, "registered");
    }

    /// Tells the leader that this agent lives, and looks whether the leader does.
    fn beat(&mut self) {
        let now = Instant::now();
        if self.stream.is_some() && self.leader.is_silent(now, self.heartbeat) {
            tracing::warn!("the coordinator does not answer; looking for the leader");
            self.stream = None;
            self.hang_up.notify_one();
            return;
        }
        if self.stream.is_some() {
            let number = self.leader.beat(now);
            self.send(Message::Heartbeat(v1::AgentHeartbeat { number }));
        }
    }

    fn fence_at(&self) -> Instant {
        // With nothing to fence off the next look may be far.
        let idle = Duration::from_secs(3600);
        if self.ranks.is_empty() {
            Instant::now() + idle
        } else {
            self.leader.last_surely_there() + self.fence
        }
    }

    fn fence_off(&mut self) {
        if self.leader.last_surely_there().elapsed() >= self.fence && !self.ranks.is_empty() {
            let seconds = self.fence.as_secs_f64();
            tracing::error!(
                ranks = self.ranks.len(),
                seconds,
                "no coordinator for the fence period: killing the ranks"
            );
            self.ranks.stop_all();
            self.leader.forgive(Instant::now());
        }
    }

    fn rank_ended(&mut self, end: RankEnd) {
        end.count();
        let RankEnd { exit, .. } = end;
        self.ranks.forget(&exit.session_id);
        self.count_ranks();
        self.tell(exit);
    }

    fn count_ranks(&self) {
        metrics::gauge!("foil_agent_ranks").set(u32::try_from(self.ranks.len()).unwrap_or(u32::MAX));
    }

    fn tell(&mut self, exit: v1::RankExited) {
        if self.connected.load(Ordering::Relaxed) || self.stream.is_some() {
            self.send(Message::RankExited(exit));
        } else {
            self.untold.push(exit);
        }
    }

    /// Never waits: a stream that does not drain is as good as broken, and its keep-alive will say so.
    fn send(&self, message: Message) {
        if let Some(stream) = &self.stream
            && let Err(error) = stream.try_send(v1::AgentMessage { message: Some(message) })
        {
            tracing::debug!(%error, "a message to the coordinator was dropped");
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

fn steady(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests;
