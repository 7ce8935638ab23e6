use std::path::Path;
use std::time::Duration;

use foil_common::otlp::Exporter;
use foil_common::rpc::Credentials;
use foil_common::spec;
use foil_common::storage::object::Digest;
use foil_proto::v1;
use foil_proto::v1::rank_command::Command;
use foil_proto::v1::rank_message::Message;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::device::{self, DeviceCommand, DeviceEnd};
use super::{RankOptions, Secret, session};
use crate::agent::DeviceKind;
use crate::collective::PortRange;
use crate::fake_coordinator::{FakeCoordinator, RankPeer};
use crate::task::{ChunkTask, Object};
use crate::task_io::artifact_cache::{ObjectError, ObjectStore};
use crate::task_io::progress::Reporter;
use crate::task_io::stop::StopSignal;
use foil_common::exit::Exit;

const TIMEOUT: Duration = Duration::from_secs(20);

fn options(coordinator: &str, dir: &TempDir) -> RankOptions {
    RankOptions {
        coordinator: coordinator.to_owned(),
        credentials: Credentials::default(),
        session_id: "s1".to_owned(),
        secret: Secret::read(&b"s3cret\n"[..]).unwrap(),
        job_id: "job".to_owned(),
        attempt: 3,
        rank: 1,
        world: 2,
        device: DeviceKind::Cpu,
        threads: 1,
        advertise_address: "127.0.0.1".to_owned(),
        rendezvous_ports: PortRange::ANY,
        work_dir: dir.path().join("work"),
        parent_pid: None,
        stop: StopSignal::default(),
    }
}

fn job() -> v1::JobSpec {
    let policy = v1::PolicySpec { model: "model".to_owned(), ..Default::default() };
    let data = v1::DataSpec {
        preferences: vec!["pairs.jsonl".to_owned()],
        golden: vec!["golden.jsonl".to_owned()],
        prompts: vec!["prompts.jsonl".to_owned()],
        ..Default::default()
    };
    v1::JobSpec { name: "job".to_owned(), policy: Some(policy), data: Some(data), ..Default::default() }
}

async fn join() -> (FakeCoordinator, RankPeer, JoinHandle<Exit>, TempDir) {
    let mut coordinator = FakeCoordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let options = options(&coordinator.url, &dir);
    let rank = tokio::spawn(async move {
        let mut exporter = Exporter::default();
        session::run(&options, Duration::from_secs(2), &mut exporter).await
    });
    let mut peer = timeout(TIMEOUT, coordinator.ranks.recv()).await.unwrap().unwrap();
    let hello = next(&mut peer).await;
    assert_eq!(hello, Message::Hello(hello_with(None)));
    (coordinator, peer, rank, dir)
}

fn hello_with(task: Option<v1::RankTask>) -> v1::RankHello {
    v1::RankHello {
        session_id: "s1".into(),
        job_id: "job".into(),
        attempt: 3,
        rank: 1,
        task,
        secret: "s3cret".into(),
        version: foil_common::version::VERSION.into(),
        build: foil_common::version::BUILD.into(),
    }
}

/// The next message that is not progress.
async fn next(peer: &mut RankPeer) -> Message {
    loop {
        match timeout(TIMEOUT, peer.received.recv()).await.unwrap().unwrap().message.unwrap() {
            Message::Progress(_) => {}
            message => return message,
        }
    }
}

fn send(peer: &RankPeer, command: Command) {
    peer.commands.send(Ok(v1::RankCommand { term: 1, command: Some(command) })).unwrap();
}

async fn end(rank: JoinHandle<Exit>) -> Exit {
    timeout(TIMEOUT, rank).await.unwrap().unwrap()
}

fn welcome() -> Command {
    Command::Welcome(v1::RankWelcome { spec: Some(job()) })
}

/// A chunk whose data is missing from the fake coordinator.
fn chunk() -> v1::RunChunk {
    let object =
        v1::Object { key: "jobs/job/data/prompts.jsonl".into(), blake3: "ab".into(), ..Default::default() };
    let prompts = Some(v1::Dataset { name: "prompts".into(), object: Some(object), rows: 1 });
    let work = v1::task::Work::Generate(v1::Generate {
        policy: Some(v1::Artifact::default()),
        prompts,
        sampling: Some(v1::SamplingSpec::from(&spec::Sampling::default())),
        ..Default::default()
    });
    let task = v1::Task { phase: "r01.policy.generate".into(), round: 1, work: Some(work) };
    v1::RunChunk { task: Some(task), chunk: 4, count: 1, ..Default::default() }
}

#[tokio::test]
async fn a_rank_says_hello_takes_its_job_and_exits_when_told() {
    let (_coordinator, peer, rank, _dir) = join().await;
    send(&peer, welcome());
    send(&peer, Command::Exit(v1::RankExit {}));
    drop(peer);
    assert_eq!(end(rank).await, Exit::Done);
}

#[tokio::test]
async fn a_failed_task_is_reported_and_the_rank_continues() {
    let (_coordinator, mut peer, rank, _dir) = join().await;
    send(&peer, welcome());
    for _ in 0..2 {
        send(&peer, Command::Chunk(chunk()));
        let Message::Failure(failure) = next(&mut peer).await else { panic!("no failure") };
        assert_eq!((failure.phase.as_str(), failure.chunk), ("r01.policy.generate", Some(4)));
        assert_eq!(failure.class(), v1::FailureClass::Store);
        assert!(!failure.advice.is_empty());
    }
    send(&peer, Command::Exit(v1::RankExit {}));
    drop(peer);
    assert_eq!(end(rank).await, Exit::Done);
}

#[tokio::test]
async fn a_command_with_a_missing_field_is_reported_as_a_failure_that_names_it() {
    let (_coordinator, mut peer, rank, _dir) = join().await;
    send(&peer, welcome());
    let mut incomplete = chunk();
    let Some(v1::task::Work::Generate(work)) = &mut incomplete.task.as_mut().unwrap().work else { panic!() };
    work.policy = None;
    send(&peer, Command::Chunk(incomplete));
    let Message::Failure(failure) = next(&mut peer).await else { panic!("no failure") };
    assert_eq!((failure.phase.as_str(), failure.chunk), ("r01.policy.generate", Some(4)));
    assert_eq!(
        (failure.class(), failure.message.as_str()),
        (v1::FailureClass::Internal, "task is missing `policy`")
    );
    send(&peer, Command::Exit(v1::RankExit {}));
    drop(peer);
    assert_eq!(end(rank).await, Exit::Done);
}

#[tokio::test]
async fn a_stale_session_ends_the_rank() {
    let (_coordinator, peer, rank, _dir) = join().await;
    peer.commands.send(Err(tonic::Status::aborted("attempt 4 runs now"))).unwrap();
    assert_eq!(end(rank).await, Exit::Stale);
}

#[tokio::test]
async fn the_current_task_is_replayed_to_the_next_leader() {
    let (mut coordinator, mut peer, rank, _dir) = join().await;
    send(&peer, welcome());
    send(&peer, Command::Chunk(chunk()));
    let failure = next(&mut peer).await;
    assert!(matches!(failure, Message::Failure(_)), "{failure:?}");
    drop(peer);
    let mut peer = timeout(TIMEOUT, coordinator.ranks.recv()).await.unwrap().unwrap();
    let mut named = chunk();
    named.task.as_mut().unwrap().work = None;
    let task = v1::RankTask { task: Some(v1::rank_task::Task::Chunk(named)) };
    assert_eq!(next(&mut peer).await, Message::Hello(hello_with(Some(task))));
    assert_eq!(next(&mut peer).await, failure);

    peer.commands.send(Ok(v1::RankCommand { term: 7, command: Some(welcome()) })).unwrap();
    // A command from an earlier leader.
    send(&peer, Command::Exit(v1::RankExit {}));
    peer.commands.send(Ok(v1::RankCommand { term: 7, command: Some(Command::Chunk(chunk())) })).unwrap();
    assert!(matches!(next(&mut peer).await, Message::Failure(_)), "it did not exit");
    peer.commands
        .send(Ok(v1::RankCommand { term: 7, command: Some(Command::Exit(v1::RankExit {})) }))
        .unwrap();
    drop(peer);
    assert_eq!(end(rank).await, Exit::Done);
}

#[tokio::test]
async fn a_rank_without_a_leader_for_too_long_exits() {
    let (coordinator, peer, rank, _dir) = join().await;
    send(&peer, welcome());
    drop((coordinator, peer));
    assert_eq!(end(rank).await, Exit::CoordinatorLost);
}

#[tokio::test]
async fn a_specification_that_cannot_be_read_is_refused() {
    let (_coordinator, peer, rank, _dir) = join().await;
    send(&peer, Command::Welcome(v1::RankWelcome { spec: None }));
    assert_eq!(end(rank).await, Exit::Failed);
}

/// An object store whose failures end the device thread.
struct Broken {
    panics: bool,
}

impl ObjectStore for Broken {
    fn share(&self) -> Box<dyn ObjectStore> {
        Box::new(Self { panics: self.panics })
    }

    fn download(&self, _: &Object, _: &Path) -> Result<(), ObjectError> {
        assert!(!self.panics, "CUDA out of memory. Tried to allocate 2 GiB");
        Err(ObjectError::Stale { message: "attempt 4 runs now".to_owned() })
    }

    fn upload(&self, _: &str, _: Vec<u8>) -> Result<Object, ObjectError> {
        unreachable!("nothing is uploaded")
    }

    fn upload_file(&self, _: &str, _: &Path, _: &Digest) -> Result<Object, ObjectError> {
        unreachable!("nothing is uploaded")
    }
}

#[tokio::test]
async fn the_device_thread_always_ends_with_a_reason() {
    for (panics, expected) in [(true, DeviceEnd::Broken), (false, DeviceEnd::Stale)] {
        let dir = tempfile::tempdir().unwrap();
        let (messages, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let job = spec::Job::try_from(job()).unwrap();
        let objects = Box::new(Broken { panics });
        let thread = device::start(&options("", &dir), job, objects, Reporter::new(messages)).unwrap();
        thread.commands.send(DeviceCommand::Chunk(Box::new(ChunkTask::try_from(chunk()).unwrap()))).unwrap();
        assert_eq!(timeout(TIMEOUT, thread.end).await.unwrap().unwrap(), expected);
        let Some(Message::Failure(failure)) = heard.recv().await.unwrap().message else {
            panic!("no failure")
        };
        assert_eq!(
            failure.class(),
            if panics { v1::FailureClass::OutOfMemory } else { v1::FailureClass::Internal }
        );
    }
}

#[tokio::test]
async fn the_device_thread_ends_when_no_commands_can_come() {
    let dir = tempfile::tempdir().unwrap();
    let (messages, _heard) = tokio::sync::mpsc::unbounded_channel();
    let job = spec::Job::try_from(job()).unwrap();
    let objects = Box::new(Broken { panics: true });
    let thread = device::start(&options("", &dir), job, objects, Reporter::new(messages)).unwrap();
    drop(thread.commands);
    assert_eq!(timeout(TIMEOUT, thread.end).await.unwrap().unwrap(), DeviceEnd::Idle);
}
