//! An agent and its ranks in this process, using the real protocol; their results are made up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foil_common::storage::Store;
use foil_common::version;
use foil_proto::v1::workers_client::WorkersClient;
use foil_proto::v1::{self, agent_command, agent_message, rank_command::Command, rank_message::Message};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;

/// Planned deaths: phases in which a rank dies, once each.
pub(super) type Deaths = Arc<Mutex<Vec<(&'static str, u32)>>>;

#[derive(Clone)]
pub(super) struct Worker {
    /// Current address of the coordinator.
    pub(super) coordinator: watch::Receiver<SocketAddr>,
    pub(super) devices: usize,
    /// The coordinator's store, for results.
    pub(super) store: Store,
    pub(super) deaths: Deaths,
}

impl Worker {
    pub(super) async fn run(self, id: &'static str) {
        let ranks = Arc::new(Mutex::new(BTreeMap::new()));
        loop {
            let (outgoing, stream) = mpsc::channel(64);
            let device =
                |index| v1::Device { id: format!("cpu:{index}"), kind: "cpu".into(), ..Default::default() };
            let hello = v1::AgentRegister {
                agent_id: id.into(),
                devices: (0..self.devices).map(device).collect(),
                session_ids: ranks.lock().unwrap().keys().cloned().collect(),
                version: version::VERSION.into(),
                instance: format!("process of {id}"),
                ..Default::default()
            };
            tell(&outgoing, agent_message::Message::Register(hello)).await;
            let _ = self.stream(outgoing, stream, &ranks).await;
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stream(
        &self,
        outgoing: mpsc::Sender<v1::AgentMessage>,
        stream: mpsc::Receiver<v1::AgentMessage>,
        ranks: &Arc<Mutex<BTreeMap<String, AbortHandle>>>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut commands = self.connect().await?.agent(ReceiverStream::new(stream)).await?.into_inner();
        while let Some(command) = commands.message().await? {
            match command.command {
                Some(agent_command::Command::StartRank(start)) => {
                    let (session, worker) = (start.session_id.clone(), self.clone());
                    let (ended, gone, outgoing) = (session.clone(), Arc::clone(ranks), outgoing.clone());
                    let task = tokio::spawn(async move { worker.rank(start).await });
                    ranks.lock().unwrap().insert(session, task.abort_handle());
                    tokio::spawn(async move {
                        let killed = task.await.is_err();
                        gone.lock().unwrap().remove(&ended);
                        let signal = killed.then_some(9);
                        let exit = v1::RankExited { session_id: ended, signal, ..Default::default() };
                        tell(&outgoing, agent_message::Message::RankExited(exit)).await;
                    });
                }
                Some(agent_command::Command::StopRank(stop)) => {
                    if let Some(rank) = ranks.lock().unwrap().get(&stop.session_id) {
                        rank.abort();
                    }
                }
                Some(agent_command::Command::Heard(_)) => {}
                _ => {
                    tell(&outgoing, agent_message::Message::Heartbeat(v1::AgentHeartbeat { number: 1 }))
                        .await;
                }
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<WorkersClient<tonic::transport::Channel>, tonic::transport::Error> {
        let address = *self.coordinator.borrow();
        WorkersClient::connect(format!("http://{address}")).await
    }

    /// A rank process: it ends with its stream.
    async fn rank(&self, start: v1::StartRank) {
        let Ok(mut client) = self.connect().await else { return };
        let (outgoing, stream) = mpsc::channel(64);
        let hello = v1::RankHello {
            session_id: start.session_id.clone(),
            job_id: start.job_id.clone(),
            attempt: start.attempt,
            rank: start.rank,
            secret: start.secret.clone(),
            version: version::VERSION.into(),
            ..Default::default()
        };
        send(&outgoing, Message::Hello(hello)).await;
        let Ok(commands) = client.rank(ReceiverStream::new(stream)).await else { return };
        let mut commands = commands.into_inner();
        let mut gang = None;
        while let Ok(Some(command)) = commands.message().await {
            match command.command {
                Some(Command::Chunk(run)) => {
                    let phase = run.task.as_ref().unwrap().phase.clone();
                    if self.dies(&phase, start.rank) {
                        return;
                    }
                    sleep(Duration::from_millis(3)).await;
                    send(&outgoing, Message::Chunk(chunk_result(&self.store, run).await)).await;
                }
                Some(Command::Gang(run)) => {
                    let phase = run.task.as_ref().unwrap().phase.clone();
                    if self.dies(&phase, start.rank) {
                        return;
                    }
                    if run.rank == 0 {
                        let (attempt, host) = (run.attempt, "127.0.0.1".to_owned());
                        let offer = v1::RendezvousOffer { phase, attempt, host, port: 9 };
                        send(&outgoing, Message::Rendezvous(offer)).await;
                        train(&self.store, &outgoing, run).await;
                    } else {
                        gang = Some(run);
                    }
                }
                Some(Command::Rendezvous(rendezvous)) => {
                    assert_eq!((rendezvous.host.as_str(), rendezvous.port), ("127.0.0.1", 9));
                    train(&self.store, &outgoing, gang.take().expect("the gang's command comes first")).await;
                }
                Some(Command::Exit(_)) => return,
                Some(Command::Welcome(welcome)) => assert!(welcome.spec.is_some()),
                None => {}
            }
        }
    }

    fn dies(&self, phase: &str, rank: u32) -> bool {
        let mut deaths = self.deaths.lock().unwrap();
        let index = deaths.iter().position(|death| *death == (phase, rank));
        index.map(|index| deaths.remove(index)).is_some()
    }
}

async fn train(store: &Store, outgoing: &mpsc::Sender<v1::RankMessage>, run: v1::RunGang) {
    let phase = run.task.unwrap().phase;
    for step in 1..=2 {
        let metrics = vec![v1::Metric { name: "loss".into(), value: 1.0 / step as f64, se: None }];
        let report = v1::StepReport {
            phase: phase.clone(),
            attempt: run.attempt,
            step,
            steps: 2,
            metrics,
            ..Default::default()
        };
        send(outgoing, Message::Step(report)).await;
    }
    let blake3 = blake3::hash(phase.as_bytes()).to_hex().to_string();
    let key = format!("{}model.safetensors", run.key_prefix);
    let object = store.put_object(&key, phase.clone().into()).await.unwrap();
    let mut objects = vec![v1::Object { path: "model.safetensors".into(), ..object }];
    if phase.ends_with("policy.train") {
        let tokenizer = store
            .put_object(&format!("{}tokenizer.json", run.key_prefix), super::made_up::tokenizer().into())
            .await;
        objects.push(v1::Object { path: "tokenizer.json".into(), ..tokenizer.unwrap() });
    }
    let result = v1::GangResult {
        phase,
        attempt: run.attempt,
        objects: if run.rank == 0 { objects } else { vec![] },
        metrics: vec![v1::Metric { name: "loss".into(), value: 0.5, se: None }],
        parameters_blake3: blake3,
    };
    send(outgoing, Message::Gang(result)).await;
}

async fn chunk_result(store: &Store, run: v1::RunChunk) -> v1::ChunkResult {
    let result = super::made_up::chunk(store, &run).await;
    let phase = run.task.unwrap().phase;
    let object = store.put_object(&run.key, result.into()).await.unwrap();
    let moments = |name: &str, mean: f64| v1::Moments {
        name: name.into(),
        count: run.count,
        sum: mean * run.count as f64,
        sum_of_squares: mean * mean * run.count as f64,
        ..Default::default()
    };
    v1::ChunkResult {
        lease: run.lease,
        phase,
        chunk: run.chunk,
        object: Some(object),
        moments: vec![moments("gold_mean", f64::from(run.chunk)), moments("accuracy", 0.5)],
        calibration: None,
        seconds: 0.003,
    }
}

async fn tell(outgoing: &mpsc::Sender<v1::AgentMessage>, message: agent_message::Message) {
    // The stream may have ended in the meantime.
    let _ = outgoing.send(v1::AgentMessage { message: Some(message) }).await;
}

async fn send(outgoing: &mpsc::Sender<v1::RankMessage>, message: Message) {
    let _ = outgoing.send(v1::RankMessage { message: Some(message) }).await;
}
