use std::time::Duration;

use foil_common::rpc::Credentials;
use foil_common::telemetry::LogFormat;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::collective::PortRange;
use crate::fake_coordinator::{AgentPeer, FakeCoordinator};

const TIMEOUT: Duration = Duration::from_secs(20);

/// An agent whose ranks are shell scripts, which ignore the arguments of a rank.
struct TestAgent {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<AgentEnd, AgentError>>,
    work: TempDir,
}

fn start_agent(coordinator: &FakeCoordinator, script: &str) -> TestAgent {
    let work = tempfile::tempdir().unwrap();
    let options = AgentOptions {
        agent_id: "agent-1".to_owned(),
        devices: list_devices(DeviceKind::Cpu, Some(2)).unwrap(),
        ranks: RankProgram {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            coordinator: coordinator.url.clone(),
            credentials: Credentials::default(),
            advertise_address: None,
            rendezvous_ports: PortRange::ANY,
            work_dir: work.path().join("ranks"),
            log_format: LogFormat::Human,
        },
        parent_pid: None,
        metrics_listen: None,
        grace: Duration::from_secs(2),
    };
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(run(options, String::new, async { drop(stopped.await) }));
    TestAgent { stop: Some(stop), task, work }
}

impl TestAgent {
    async fn stop(mut self) -> AgentEnd {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(TIMEOUT, self.task).await.unwrap().unwrap().unwrap()
    }
}

async fn next(peer: &mut AgentPeer) -> Message {
    loop {
        let message = timeout(TIMEOUT, peer.received.recv()).await.unwrap().unwrap().message.unwrap();
        if !matches!(message, Message::Heartbeat(_)) {
            return message;
        }
    }
}

async fn registration(peer: &mut AgentPeer) -> v1::AgentRegister {
    match next(peer).await {
        Message::Register(register) => register,
        other => panic!("{other:?}"),
    }
}

async fn exit(peer: &mut AgentPeer) -> v1::RankExited {
    match next(peer).await {
        Message::RankExited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

fn send(peer: &AgentPeer, term: u64, command: Command) {
    peer.commands.send(Ok(v1::AgentCommand { term, command: Some(command) })).unwrap();
}

fn welcome(fence_milliseconds: u32) -> Command {
    Command::Welcome(v1::AgentWelcome { heartbeat_milliseconds: 20, fence_milliseconds })
}

fn start_rank(session: &str, device: &str) -> Command {
    Command::StartRank(v1::StartRank {
        session_id: session.to_owned(),
        device_id: device.to_owned(),
        threads: 1,
        secret: "s3cret".to_owned(),
        ..Default::default()
    })
}

async fn joined(coordinator: &mut FakeCoordinator) -> (AgentPeer, v1::AgentRegister) {
    let mut peer = timeout(TIMEOUT, coordinator.agents.recv()).await.unwrap().unwrap();
    let register = registration(&mut peer).await;
    (peer, register)
}

#[tokio::test]
async fn an_agent_registers_sends_heartbeats_and_reports_exits() {
    let mut coordinator = FakeCoordinator::start().await;
    let agent = start_agent(&coordinator, "echo out; echo err >&2; exit 7");
    let (mut peer, register) = joined(&mut coordinator).await;
    assert_eq!((register.agent_id.as_str(), register.devices.len()), ("agent-1", 2));
    assert_eq!(register.advertise_address, "127.0.0.1", "as the coordinator is on this machine");
    send(&peer, 1, welcome(60_000));
    let heartbeat = timeout(TIMEOUT, peer.received.recv()).await.unwrap().unwrap();
    assert!(matches!(heartbeat.message, Some(Message::Heartbeat(_))));

    send(&peer, 1, start_rank("s1", "cpu:0"));
    let end = exit(&mut peer).await;
    assert_eq!((end.session_id.as_str(), end.exit_code, end.signal), ("s1", Some(7), None));
    let mut tail = end.log_tail;
    tail.sort();
    assert_eq!(tail, ["err", "out"]);
    assert!(!end.out_of_memory);
    assert_eq!(agent.stop().await, AgentEnd::Stopped);
}

#[tokio::test]
async fn a_stopped_rank_is_killed_and_an_older_term_is_rejected() {
    let mut coordinator = FakeCoordinator::start().await;
    let agent = start_agent(&coordinator, "exec sleep 600");
    let (mut peer, _) = joined(&mut coordinator).await;
    send(&peer, 5, welcome(60_000));
    send(&peer, 4, start_rank("old", "cpu:1"));
    send(&peer, 5, start_rank("s1", "cpu:0"));
    send(&peer, 5, Command::StopRank(v1::StopRank { session_id: "s1".to_owned(), graceful: false }));
    let end = exit(&mut peer).await;
    assert_eq!((end.session_id.as_str(), end.exit_code, end.signal), ("s1", None, Some(9)));
    assert!(!end.out_of_memory);
    assert_eq!(agent.stop().await, AgentEnd::Stopped);
}

#[tokio::test]
async fn ranks_stop_gracefully_when_their_agent_is_told_to_stop() {
    let mut coordinator = FakeCoordinator::start().await;
    let files = tempfile::tempdir().unwrap();
    let ready = files.path().join("ready");
    let script = format!("trap 'exit 143' TERM; : > {}; while :; do sleep 0.02; done", ready.display());
    let agent = start_agent(&coordinator, &script);
    let (mut peer, _) = joined(&mut coordinator).await;
    send(&peer, 1, welcome(60_000));
    send(&peer, 1, start_rank("s1", "cpu:0"));
    let started = async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TIMEOUT, started).await.unwrap();
    let stopped = tokio::spawn(agent.stop());
    assert!(matches!(next(&mut peer).await, Message::Leaving(_)), "the coordinator is told first");
    let end = exit(&mut peer).await;
    assert_eq!((end.session_id.as_str(), end.exit_code, end.signal), ("s1", Some(143), None));
    assert_eq!(stopped.await.unwrap(), AgentEnd::Stopped);
}

#[tokio::test]
async fn a_rank_that_cannot_start_is_reported_too() {
    let mut coordinator = FakeCoordinator::start().await;
    let agent = start_agent(&coordinator, "exit 0");
    let (mut peer, _) = joined(&mut coordinator).await;
    send(&peer, 1, welcome(60_000));
    send(&peer, 1, start_rank("s1", "cpu:9"));
    let end = exit(&mut peer).await;
    assert_eq!((end.exit_code, end.signal), (None, None));
    assert!(end.log_tail[0].contains("cpu:9"));
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_reconnects_with_its_running_sessions() {
    let mut coordinator = FakeCoordinator::start().await;
    let agent = start_agent(&coordinator, "exec sleep 600");
    let (peer, register) = joined(&mut coordinator).await;
    assert!(register.session_ids.is_empty());
    send(&peer, 1, welcome(60_000));
    send(&peer, 1, start_rank("s1", "cpu:0"));
    // Commands are handled in order: once the second has failed, the first has run.
    send(&peer, 1, start_rank("s2", "cpu:9"));
    let mut peer = peer;
    assert_eq!(exit(&mut peer).await.session_id, "s2");
    drop(peer);
    let (peer, register) = joined(&mut coordinator).await;
    assert_eq!(register.session_ids, ["s1"]);
    drop(peer);
    agent.stop().await;
}

#[tokio::test]
async fn ranks_are_killed_after_a_fence_period_without_a_leader() {
    let mut coordinator = FakeCoordinator::start().await;
    let agent = start_agent(&coordinator, "exec sleep 600");
    let (peer, _) = joined(&mut coordinator).await;
    send(&peer, 1, welcome(1500));
    send(&peer, 1, start_rank("s1", "cpu:0"));
    send(&peer, 1, start_rank("s2", "cpu:9"));
    let mut peer = peer;
    assert_eq!(exit(&mut peer).await.session_id, "s2");
    drop(peer);
    // These registrations are never answered: there is no leader.
    let mut sessions = Vec::new();
    loop {
        let mut peer = timeout(TIMEOUT, coordinator.agents.recv()).await.unwrap().unwrap();
        sessions.push(registration(&mut peer).await.session_ids);
        if sessions.last().unwrap().is_empty() {
            break;
        }
    }
    assert_eq!(sessions[0], ["s1"]);
    assert!(!agent.work.path().join("ranks").join("rank-s1").exists());
    agent.stop().await;
}

#[tokio::test]
async fn a_rejected_agent_ends_with_the_coordinators_message() {
    let mut coordinator = FakeCoordinator::start().await;
    let agent = start_agent(&coordinator, "exit 0");
    let (peer, _) = joined(&mut coordinator).await;
    peer.commands.send(Err(tonic::Status::invalid_argument("no such device kind"))).unwrap();
    let end = timeout(TIMEOUT, agent.task).await.unwrap().unwrap();
    assert!(end.unwrap_err().to_string().contains("no such device kind"));
}

#[tokio::test]
async fn an_agent_ends_with_its_parent() {
    let coordinator = FakeCoordinator::start().await;
    let mut agent = start_agent(&coordinator, "exit 0");
    agent.stop.take();
    assert_eq!(timeout(TIMEOUT, agent.task).await.unwrap().unwrap().unwrap(), AgentEnd::Stopped);
    assert!(!is_child_of(0) && !is_child_of(std::process::id()));
}

#[tokio::test]
async fn a_rank_gets_its_secret_only_on_standard_input() {
    let mut coordinator = FakeCoordinator::start().await;
    let script = r#"read secret; echo "got $secret"; env | grep -c s3cret; echo "$0 $*" | grep -c s3cret"#;
    let agent = start_agent(&coordinator, script);
    let (mut peer, _) = joined(&mut coordinator).await;
    send(&peer, 1, welcome(60_000));
    send(&peer, 1, start_rank("s1", "cpu:0"));
    let end = exit(&mut peer).await;
    assert_eq!(end.log_tail, ["got s3cret", "0", "0"]);
    assert_eq!(agent.stop().await, AgentEnd::Stopped);
}

#[tokio::test]
async fn an_agent_retries_while_its_name_is_taken_and_keeps_its_instance() {
    let mut coordinator = FakeCoordinator::start().await;
    let agent = start_agent(&coordinator, "exit 0");
    let (peer, first) = joined(&mut coordinator).await;
    assert!(!first.instance.is_empty() && first.version == foil_common::version::VERSION);
    peer.commands.send(Err(tonic::Status::already_exists("an agent of this name is there"))).unwrap();
    drop(peer);
    let (peer, again) = joined(&mut coordinator).await;
    assert_eq!(again.instance, first.instance);
    send(&peer, 1, welcome(60_000));
    assert_eq!(agent.stop().await, AgentEnd::Stopped);
    let other = start_agent(&coordinator, "exit 0");
    let (_peer, another) = joined(&mut coordinator).await;
    assert_ne!(another.instance, first.instance, "each process has its own");
    assert_eq!(other.stop().await, AgentEnd::Stopped);
}
