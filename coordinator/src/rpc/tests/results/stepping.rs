//! A worker whose ranks step on command.

use foil_proto::v1::rank_command::Command;
use foil_proto::v1::{agent_command, rank_message::Message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::*;

/// Number of steps of the phase that the rank trains.
pub(super) const STEPS: u64 = 600;
/// Number of metrics of a step beside its loss: a step's line takes more than 512 bytes.
const OTHER_METRICS: usize = 30;

pub(super) async fn start(address: SocketAddr) -> (mpsc::Sender<v1::AgentMessage>, mpsc::Sender<(u64, f64)>) {
    let url = format!("http://{address}");
    let (agent, stream) = mpsc::channel(8);
    let device = |index| v1::Device { id: format!("cpu:{index}"), kind: "cpu".into(), ..Default::default() };
    let hello = v1::AgentRegister {
        agent_id: "a".into(),
        devices: (0..2).map(device).collect(),
        version: VERSION.into(),
        ..Default::default()
    };
    let message = agent_message::Message::Register(hello);
    agent.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    let mut client = WorkersClient::connect(url.clone()).await.unwrap();
    let mut commands = client.agent(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let (steps, taken) = mpsc::channel(8);
    let taken = std::sync::Arc::new(tokio::sync::Mutex::new(taken));
    tokio::spawn(async move {
        while let Ok(Some(command)) = commands.message().await {
            if let Some(agent_command::Command::StartRank(start)) = command.command {
                tokio::spawn(rank(url.clone(), start, std::sync::Arc::clone(&taken)));
            }
        }
    });
    (agent, steps)
}

async fn rank(
    url: String,
    start: v1::StartRank,
    steps: std::sync::Arc<tokio::sync::Mutex<mpsc::Receiver<(u64, f64)>>>,
) {
    let (outgoing, stream) = mpsc::channel(8);
    let hello = v1::RankHello {
        session_id: start.session_id,
        job_id: start.job_id,
        attempt: start.attempt,
        rank: start.rank,
        secret: start.secret,
        version: VERSION.into(),
        ..Default::default()
    };
    let send = |message| outgoing.send(v1::RankMessage { message: Some(message) });
    send(Message::Hello(hello)).await.unwrap();
    let mut client = WorkersClient::connect(url).await.unwrap();
    let mut commands = client.rank(ReceiverStream::new(stream)).await.unwrap().into_inner();
    while let Ok(Some(command)) = commands.message().await {
        let Some(Command::Gang(run)) = command.command else { continue };
        if run.rank > 0 {
            continue;
        }
        while let Some((step, loss)) = steps.lock().await.recv().await {
            let metric = |name, value| v1::Metric { name, value, se: None };
            let others = (0..OTHER_METRICS).map(|number| metric(format!("other_{number:02}"), 0.1));
            let metrics = std::iter::once(metric("loss".to_owned(), loss)).chain(others).collect();
            let phase = "r00.sft".to_owned();
            let report = v1::StepReport {
                phase,
                attempt: run.attempt,
                step,
                steps: STEPS,
                metrics,
                ..Default::default()
            };
            send(Message::Step(report)).await.unwrap();
        }
    }
}
