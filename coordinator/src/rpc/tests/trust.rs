//! Peers that are not what they claim to be, over real gRPC.

use foil_common::rpc::artifacts::{TransferError, Writer, unfollowed, upload_bytes};
use foil_proto::v1::{agent_command, rank_command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;

fn hello(instance: &str) -> v1::AgentRegister {
    let device = |index| v1::Device { id: format!("cpu:{index}"), kind: "cpu".into(), ..Default::default() };
    v1::AgentRegister {
        agent_id: "gpu-box".into(),
        hostname: format!("host-of-{instance}"),
        devices: (0..2).map(device).collect(),
        version: VERSION.into(),
        instance: instance.into(),
        ..Default::default()
    }
}

struct Agent {
    /// Keeps the stream open.
    _outgoing: mpsc::Sender<v1::AgentMessage>,
    commands: Streaming<v1::AgentCommand>,
}

impl Agent {
    async fn register(coordinator: &Coordinator, hello: v1::AgentRegister) -> Self {
        let mut client = WorkersClient::connect(format!("http://{}", coordinator.address)).await.unwrap();
        let (outgoing, stream) = mpsc::channel(8);
        let register = v1::AgentMessage { message: Some(agent_message::Message::Register(hello)) };
        outgoing.send(register).await.unwrap();
        let commands = client.agent(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { _outgoing: outgoing, commands }
    }

    async fn next(&mut self) -> Result<agent_command::Command, Status> {
        let command = timeout(Duration::from_secs(20), self.commands.message()).await.expect("an answer");
        Ok(command?.expect("the stream is open").command.expect("a command"))
    }

    async fn started(&mut self) -> v1::StartRank {
        loop {
            if let agent_command::Command::StartRank(start) = self.next().await.unwrap() {
                return start;
            }
        }
    }
}

struct Rank {
    outgoing: mpsc::Sender<v1::RankMessage>,
    commands: Streaming<v1::RankCommand>,
}

impl Rank {
    async fn hello(coordinator: &Coordinator, start: &v1::StartRank, secret: &str) -> Self {
        let mut client = WorkersClient::connect(format!("http://{}", coordinator.address)).await.unwrap();
        let hello = v1::RankHello {
            session_id: start.session_id.clone(),
            job_id: start.job_id.clone(),
            attempt: start.attempt,
            rank: start.rank,
            secret: secret.to_owned(),
            version: VERSION.into(),
            ..Default::default()
        };
        let (outgoing, stream) = mpsc::channel(8);
        outgoing.send(v1::RankMessage { message: Some(rank_message::Message::Hello(hello)) }).await.unwrap();
        let commands = client.rank(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { outgoing, commands }
    }

    async fn next(&mut self) -> Result<rank_command::Command, Status> {
        let command = timeout(Duration::from_secs(20), self.commands.message()).await.expect("an answer");
        Ok(command?.expect("the stream is open").command.expect("a command"))
    }
}

#[tokio::test]
async fn a_name_belongs_to_the_first_process_until_its_stream_is_gone() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut first = Agent::register(&coordinator, hello("one")).await;
    assert!(matches!(first.next().await, Ok(agent_command::Command::Welcome(_))));
    for _ in 0..3 {
        let refused = Agent::register(&coordinator, hello("two")).await.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
        assert!(
            refused.message().contains("host-of-one") && refused.message().contains("--agent-id"),
            "{refused:?}"
        );
    }
    // A new stream of the same process replaces the old one.
    let mut again = Agent::register(&coordinator, hello("one")).await;
    assert!(matches!(again.next().await, Ok(agent_command::Command::Welcome(_))));
    assert_eq!(first.next().await.unwrap_err().code(), Code::Aborted);
    drop(again);
    let other = async {
        loop {
            let mut other = Agent::register(&coordinator, hello("two")).await;
            if other.next().await.is_ok() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(5), other).await.expect("the name is free at once");
    coordinator.stop().await;
}

#[tokio::test]
async fn workers_of_another_version_are_rejected() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let other = v1::AgentRegister { version: "9.9.9".into(), ..hello("one") };
    let refused = Agent::register(&coordinator, other).await.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("version 9.9.9") && refused.message().contains(VERSION),
        "{refused:?}"
    );
    coordinator.stop().await;
}

#[tokio::test]
async fn only_the_started_process_is_admitted_and_only_verified_reports_count() {
    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    coordinator.handle.submit(JOB.into(), submitted(&[])).await.unwrap();
    let mut agent = Agent::register(&coordinator, hello("one")).await;
    let starts = [agent.started().await, agent.started().await];
    // Knowing the session, the job and the attempt is not enough.
    let refused = Rank::hello(&coordinator, &starts[0], "").await.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = Rank::hello(&coordinator, &starts[0], &starts[1].secret).await.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let line = foil_common::rpc::connect(&format!("http://{}", coordinator.address)).unwrap();
    let key = format!("jobs/{JOB}/phases/r00.sft/a1/model.safetensors");
    let put = |session: &str, secret: &str| {
        let (line, key, writer) = (line.clone(), key.clone(), Writer::rank(JOB, 1, session, secret));
        async move { upload_bytes(&line, &key, &writer, "weights".into(), &unfollowed()).await }
    };
    for (session, secret) in [("", ""), (starts[0].session_id.as_str(), starts[1].secret.as_str())] {
        let Err(TransferError::Refused { status, .. }) = put(session, secret).await else {
            panic!("written")
        };
        assert_eq!(status.code(), Code::PermissionDenied);
    }

    let mut ranks = Vec::new();
    for start in &starts {
        let mut rank = Rank::hello(&coordinator, start, &start.secret).await;
        assert!(matches!(rank.next().await, Ok(rank_command::Command::Welcome(_))));
        ranks.push(rank);
    }
    let Ok(rank_command::Command::Gang(run)) = ranks[0].next().await else { panic!("no task") };
    assert_eq!(run.key_prefix, format!("jobs/{JOB}/phases/r00.sft/a1/"));
    let object = put(&starts[0].session_id, &starts[0].secret).await.unwrap();
    let report = |object: v1::Object| {
        let result = v1::GangResult {
            phase: "r00.sft".into(),
            attempt: 1,
            objects: vec![v1::Object { path: "model.safetensors".into(), ..object }],
            parameters_blake3: "0".repeat(64),
            ..Default::default()
        };
        v1::RankMessage { message: Some(rank_message::Message::Gang(result)) }
    };
    let larger = v1::Object { size: 1 << 63, ..object };
    ranks[0].outgoing.send(report(larger)).await.unwrap();
    let refused = ranks[0].next().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("is reported with 9223372036854775808 bytes"), "{refused:?}");
    let job = get(&mut coordinator.jobs().await).await;
    assert_eq!((job.state(), job.phases_done), (v1::JobState::Running, 0), "nothing is committed");
    coordinator.stop().await;
}
