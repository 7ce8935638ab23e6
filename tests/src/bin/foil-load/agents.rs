//! Simulated agents, which register, send heartbeats, and never receive a rank.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use foil_common::{rpc, version};
use foil_proto::v1::workers_client::WorkersClient;
use foil_proto::v1::{self, agent_command::Command, agent_message::Message};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// Number of connections opened concurrently.
const PARALLEL: usize = 64;
/// Timeout for an agent to be welcomed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Agents {
    connected: Arc<AtomicU32>,
    /// The agents' tasks, which end when this is dropped.
    _tasks: JoinSet<()>,
}

impl Agents {
    /// Connects this many agents and returns when all are welcomed.
    pub(crate) async fn connect(url: &str, count: u32, devices: u32) -> Result<Self> {
        let connected = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        let mut welcomed = futures::stream::iter(0..count)
            .map(|index| welcome(url, index, devices))
            .buffer_unordered(PARALLEL);
        while let Some(agent) = welcomed.next().await {
            let (agent, connected) = (agent?, Arc::clone(&connected));
            connected.fetch_add(1, Ordering::Relaxed);
            tasks.spawn(async move {
                agent.run().await;
                connected.fetch_sub(1, Ordering::Relaxed);
            });
        }
        drop(welcomed);
        Ok(Self { connected, _tasks: tasks })
    }

    pub(crate) fn connected(&self) -> u32 {
        self.connected.load(Ordering::Relaxed)
    }
}

struct Agent {
    messages: mpsc::Sender<v1::AgentMessage>,
    commands: tonic::Streaming<v1::AgentCommand>,
    heartbeat: Duration,
}

async fn welcome(url: &str, index: u32, devices: u32) -> Result<Agent> {
    let id = format!("simulated-{index:05}");
    let (messages, stream) = mpsc::channel(4);
    let device =
        |number| v1::Device { id: format!("cpu:{number}"), kind: "cpu".to_owned(), ..Default::default() };
    let register = v1::AgentRegister {
        agent_id: id.clone(),
        hostname: id.clone(),
        devices: (0..devices).map(device).collect(),
        version: version::VERSION.to_owned(),
        build: version::BUILD.to_owned(),
        instance: id.clone(),
        // No rank ever connects to this address: no job gets devices of these agents.
        advertise_address: format!("192.0.2.{}", index % 255),
        ..Default::default()
    };
    messages.send(v1::AgentMessage { message: Some(Message::Register(register)) }).await?;
    let channel = rpc::connect(url)?;
    let commands = WorkersClient::new(channel).agent(ReceiverStream::new(stream)).await;
    let mut commands = commands.with_context(|| id.clone())?.into_inner();
    let first = tokio::time::timeout(PATIENCE, commands.message()).await;
    let first = first.with_context(|| format!("{id} is not welcomed"))?.with_context(|| id.clone())?;
    match first.and_then(|command| command.command) {
        Some(Command::Welcome(welcome)) => {
            let heartbeat = Duration::from_millis(welcome.heartbeat_milliseconds.into());
            Ok(Agent { messages, commands, heartbeat })
        }
        other => anyhow::bail!("{id}: expected a welcome, found {other:?}"),
    }
}

impl Agent {
    /// Sends heartbeats until the stream ends.
    async fn run(mut self) {
        let mut beats = tokio::time::interval(self.heartbeat);
        for number in 1.. {
            tokio::select! {
                _ = beats.tick() => {
                    let heartbeat = v1::AgentHeartbeat { number };
                    let message = v1::AgentMessage { message: Some(Message::Heartbeat(heartbeat)) };
                    if self.messages.send(message).await.is_err() {
                        return;
                    }
                }
                command = self.commands.message() => match command {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                },
            }
        }
    }
}
