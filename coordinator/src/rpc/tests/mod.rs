//! The coordinator over real gRPC on loopback, with a worker whose results are made up.

mod audit;
mod authorization;
mod connections;
mod grpc_web;
mod made_up;
mod pages;
mod results;
mod revocation;
mod site;
mod tenants;
mod trust;
mod worker;

use std::net::SocketAddr;
use std::time::Duration;

use foil_common::storage::Store;
use foil_common::version::VERSION;
use foil_proto::v1::jobs_client::JobsClient;
use foil_proto::v1::workers_client::WorkersClient;
use foil_proto::v1::{self, agent_message, job_event, rank_message};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use self::worker::{Deaths, Worker};
use super::Limits;
use super::serve::{Serve, ServeError, serve};
use crate::driver::Handle;
use crate::job::fixture::{JOB, spec, submitted};
use crate::job::{Compaction, Event};
use crate::journal::{Journal, SnapshotPolicy};

struct Coordinator {
    handle: Handle,
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Coordinator {
    async fn start(store: &Store) -> Self {
        Self::start_within(store, Limits::default()).await
    }

    async fn start_within(store: &Store, limits: Limits) -> Self {
        Self::start_with(store, |serve| serve.limits = limits).await
    }

    async fn start_with(store: &Store, configure: impl FnOnce(&mut Serve)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let stop = CancellationToken::new();
        let mut options = Serve::new(store.clone(), listener, metrics);
        options.address = format!("http://{address}");
        configure(&mut options);
        let leadership = options.leadership.clone();
        let served = tokio::spawn(serve(options, stop.clone()).await.unwrap());
        let handle = loop {
            match leadership.driver() {
                Ok(handle) => break handle,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        Self { handle, address, stop, served }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(10), self.served).await.unwrap().unwrap().unwrap();
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel().await)
    }
}

fn start_worker(
    store: &Store,
    address: SocketAddr,
    deaths: Deaths,
) -> (watch::Sender<SocketAddr>, JoinHandle<()>) {
    let (sender, coordinator) = watch::channel(address);
    let worker = Worker { coordinator, devices: 2, store: store.clone(), deaths };
    (sender, tokio::spawn(worker.run("agent-1")))
}

/// The events until the job ends, or until `enough`.
async fn watch_until(
    client: &mut JobsClient<Channel>,
    after_revision: u64,
    enough: impl Fn(&v1::JobEvent) -> bool,
) -> Vec<v1::JobEvent> {
    let request = v1::WatchJobRequest { id: JOB.into(), after_revision };
    let mut stream = client.watch(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(event) = timeout(Duration::from_secs(60), stream.next()).await.expect("an event in time") {
        let event = event.unwrap();
        let stop = enough(&event);
        events.push(event);
        if stop {
            break;
        }
    }
    events
}

async fn get(client: &mut JobsClient<Channel>) -> v1::Job {
    client.get(v1::GetJobRequest { id: JOB.into() }).await.unwrap().into_inner()
}

fn committed(events: &[v1::JobEvent]) -> Vec<String> {
    let phase = |event: &v1::JobEvent| match &event.event {
        Some(job_event::Event::PhaseCommitted(done)) => Some(done.phase.clone()),
        _ => None,
    };
    events.iter().filter_map(phase).collect()
}

/// Hashes by artifact, excluding metrics, which differ between attempts.
fn hashes(job: &v1::Job) -> Vec<(String, Vec<String>)> {
    let models = job.artifacts.iter().filter(|artifact| artifact.kind != "metrics");
    models
        .map(|artifact| {
            let objects = artifact.objects.iter().map(|object| object.blake3.clone());
            (artifact.name.clone(), objects.collect())
        })
        .collect()
}

async fn undisturbed() -> v1::Job {
    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    coordinator.handle.submit(JOB.into(), submitted(&[])).await.unwrap();
    let (_address, worker) = start_worker(&store, coordinator.address, Deaths::default());
    let mut client = coordinator.jobs().await;
    watch_until(&mut client, 0, |_| false).await;
    let job = get(&mut client).await;
    worker.abort();
    coordinator.stop().await;
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_survives_lost_ranks_with_the_same_artifacts() {
    let expected = undisturbed().await;
    assert_eq!(expected.state(), v1::JobState::Succeeded);

    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    coordinator.handle.submit(JOB.into(), submitted(&[])).await.unwrap();
    let deaths = Deaths::default();
    deaths.lock().unwrap().extend([
        ("r00.sft", 1),
        ("r01.reward.generate", 0),
        ("r01.policy.train", 0),
        ("r02.policy.evaluate", 1),
    ]);
    let (_address, worker) = start_worker(&store, coordinator.address, Deaths::clone(&deaths));
    let mut client = coordinator.jobs().await;
    let events = watch_until(&mut client, 0, |_| false).await;
    let job = get(&mut client).await;
    assert_eq!(job.state(), v1::JobState::Succeeded, "{:?}", job.failure);
    assert!(deaths.lock().unwrap().is_empty(), "every planned death happened");
    assert_eq!(job.attempt, 3, "two gangs were broken; lost chunks end no attempt");
    assert_eq!(hashes(&job), hashes(&expected));
    assert_eq!(job.best_round, expected.best_round);

    let plan: Vec<String> = job.plan.as_ref().unwrap().phases.iter().map(|phase| phase.id.clone()).collect();
    assert_eq!(committed(&events), plan, "each phase once, in order");
    assert!(events.windows(2).skip(1).all(|pair| pair[0].revision <= pair[1].revision));
    assert!(matches!(&events[0].event, Some(job_event::Event::Job(_))), "the current job comes first");
    let progress =
        events.iter().any(|event| matches!(&event.event, Some(job_event::Event::PhaseProgress(_))));
    assert!(progress);

    let steps = job.artifacts.iter().find(|artifact| artifact.name == "metrics/r01.policy.train").unwrap();
    let lines = store.read_object(&steps.objects[0]).await.unwrap();
    assert_eq!(String::from_utf8(lines.to_vec()).unwrap().lines().count(), 2);
    worker.abort();
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_after_the_coordinator_restarts() {
    let expected = undisturbed().await;
    let store = Store::in_memory();
    let first = Coordinator::start(&store).await;
    first.handle.submit(JOB.into(), submitted(&[])).await.unwrap();
    let (address, worker) = start_worker(&store, first.address, Deaths::default());
    let mut client = first.jobs().await;
    let is_commit = |phase: &'static str| move |event: &v1::JobEvent| matches!(&event.event, Some(job_event::Event::PhaseCommitted(done)) if done.phase == phase);
    let seen = watch_until(&mut client, 0, is_commit("r01.reward.generate")).await;
    let revision = seen.last().unwrap().revision;
    first.stop().await;

    let second = Coordinator::start(&store).await;
    address.send(second.address).unwrap();
    let mut client = second.jobs().await;
    let rest = watch_until(&mut client, revision, |_| false).await;
    let job = get(&mut client).await;
    assert_eq!(job.state(), v1::JobState::Succeeded, "{:?}", job.failure);
    assert_eq!(hashes(&job), hashes(&expected));
    let plan: Vec<String> = job.plan.as_ref().unwrap().phases.iter().map(|phase| phase.id.clone()).collect();
    assert_eq!([committed(&seen), committed(&rest)].concat(), plan, "nothing is lost or sent twice");
    worker.abort();
    second.stop().await;
}

pub(in crate::rpc) fn violation(status: &Status) -> String {
    let details = status.get_error_details();
    details.bad_request().map(|bad| bad.field_violations[0].field.clone()).unwrap_or_default()
}

/// The reason of a status's `ErrorInfo`.
fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().expect("the status has a reason");
    assert_eq!(info.domain, "foil");
    info.reason.clone()
}

#[tokio::test]
async fn users_errors_name_the_field_and_jobs_are_listed_and_cancelled() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut client = coordinator.jobs().await;
    let missing = client.get(v1::GetJobRequest { id: "none".into() }).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "JOB_NOT_FOUND"));
    assert_eq!(
        client.cancel(v1::CancelJobRequest { id: "none".into() }).await.unwrap_err().code(),
        Code::NotFound
    );

    let mut wrong = spec(&[]);
    wrong.sampling = Some(v1::SamplingSpec { temperature: Some(-1.0), ..Default::default() });
    let request = |spec: v1::JobSpec, request_id: &str| v1::SubmitRequest {
        spec: Some(spec),
        request_id: request_id.into(),
        dry_run: false,
    };
    let refused = client.submit(request(wrong, "r")).await.unwrap_err();
    assert_eq!(
        (refused.code(), violation(&refused).as_str()),
        (Code::InvalidArgument, "spec.sampling.temperature")
    );
    assert_eq!(reason(&refused), "INVALID_FIELD");
    let unnamed = client.submit(request(spec(&[]), "")).await.unwrap_err();
    assert_eq!(violation(&unnamed), "request_id");

    for id in ["j1", "j2", "j3"] {
        let job = crate::job::Submitted { request_id: format!("request-{id}"), ..submitted(&[]) };
        coordinator.handle.submit(id.into(), job).await.unwrap();
    }
    let again = client.submit(request(spec(&[]), "request-j2")).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "the same id with another specification");
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client
            .list(v1::ListJobsRequest { page_size: 2, page_token, ..Default::default() })
            .await
            .unwrap()
            .into_inner();
        pages.push(page.jobs.iter().map(|job| job.id.clone()).collect::<Vec<_>>());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [vec!["j3", "j2"], vec!["j1"]], "newest first");
    let bad = client
        .list(v1::ListJobsRequest { page_size: 2, page_token: "?".into(), ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(violation(&bad), "page_token");

    let cancelled = client.cancel(v1::CancelJobRequest { id: "j1".into() }).await.unwrap().into_inner();
    assert_eq!(cancelled.state(), v1::JobState::Cancelled, "it had no ranks yet");
    let events = watch_until(&mut client, 0, |_| false).await;
    assert!(events.len() >= 2, "a watch of an ended job ends by itself");
    coordinator.stop().await;
}

#[tokio::test]
async fn an_idle_worker_also_learns_that_its_coordinator_was_deposed() {
    let store = Store::in_memory();
    let deposed = Coordinator::start(&store).await;
    let mut client = WorkersClient::connect(format!("http://{}", deposed.address)).await.unwrap();
    let device = v1::Device { id: "cpu:0".into(), kind: "cpu".into(), ..Default::default() };
    let hello = v1::AgentRegister {
        agent_id: "a".into(),
        devices: vec![device],
        version: VERSION.into(),
        ..Default::default()
    };
    let register = v1::AgentMessage { message: Some(agent_message::Message::Register(hello)) };
    let stream = tokio_stream::once(register).chain(tokio_stream::pending());
    let mut commands = client.agent(stream).await.unwrap().into_inner();
    assert!(commands.message().await.unwrap().is_some(), "the agent is welcomed");

    let (_journal, _) =
        Journal::<Event>::open(store, "another", SnapshotPolicy { every: 1000, select: Compaction::begin })
            .await
            .unwrap();
    // The deposed leader notices at its next write.
    let submitting = deposed.handle.submit(JOB.into(), submitted(&[]));
    assert!(submitting.await.is_err(), "it was deposed");
    let ended = timeout(Duration::from_secs(10), commands.message()).await.expect("the stream ends");
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    deposed.stop().await;
}

#[tokio::test]
async fn a_stale_rank_is_rejected_as_stale() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut client = WorkersClient::connect(format!("http://{}", coordinator.address)).await.unwrap();
    let hello = v1::RankHello {
        session_id: "j1-a1-r0-1".into(),
        job_id: "j1".into(),
        attempt: 1,
        rank: 0,
        version: VERSION.into(),
        ..Default::default()
    };
    let message = v1::RankMessage { message: Some(rank_message::Message::Hello(hello)) };
    let stream = tokio_stream::once(message).chain(tokio_stream::pending());
    let mut commands = client.rank(stream).await.unwrap().into_inner();
    let status = commands.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(reason(&status), "STALE_ATTEMPT");

    let nothing = v1::AgentMessage { message: None };
    let stream = tokio_stream::once(nothing).chain(tokio_stream::pending());
    let status = client.agent(stream).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(violation(&status), "register");
    coordinator.stop().await;
}
