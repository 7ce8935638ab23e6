//! The attacks. Concurrent tasks repeat each one until its time is over.

mod raw;
mod rogue_workers;
mod submissions;

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use foil_common::rpc::{self, LeaderChannel};
use foil_proto::v1::artifacts_client::ArtifactsClient;
use foil_proto::v1::jobs_client::JobsClient;
use foil_proto::v1::put_request::Part;
use foil_proto::v1::workers_client::WorkersClient;
use foil_proto::v1::{self, agent_message};
use foil_tests::Service;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::sleep;

/// A client's HTTP/2 preface with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The id of the honest agent.
pub(crate) const ORDINARY_AGENT: &str = "ordinary";
/// Pause before an attack is repeated.
const AGAIN: Duration = Duration::from_millis(20);

/// An attack, made by several tasks concurrently and repeatedly.
#[derive(Clone, Copy)]
pub(crate) struct Attack {
    name: &'static str,
    at_once: usize,
    once: fn(Aim) -> BoxFuture<'static, ()>,
}

impl Attack {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

fn attack(name: &'static str, at_once: usize, once: fn(Aim) -> BoxFuture<'static, ()>) -> Attack {
    Attack { name, at_once, once }
}

/// Attacks that take effect within seconds.
pub(crate) fn brief() -> Vec<Attack> {
    vec![
        attack("idle sockets", 400, |aim| silent_socket(aim, b"").boxed()),
        attack("half-open HTTP/2", 400, |aim| silent_socket(aim, PREFACE).boxed()),
        attack("uploads of a byte", 16, |aim| slow_upload(aim, Writer::Client).boxed()),
        attack("uploads of a byte by a rank", 16, |aim| slow_upload(aim, Writer::Rank).boxed()),
        attack("downloads not read", 100, |aim| unread_download(aim).boxed()),
        attack("watches not read", 100, |aim| unread_watch(aim).boxed()),
        attack("silent streams", 100, |aim| silent_agent(aim).boxed()),
        attack("verbose agents", 8, |aim| verbose_agent(aim).boxed()),
        attack("large and senseless messages", 8, |aim| large_message(aim).boxed()),
        attack("floods of lists", 16, |aim| list_flood(aim).boxed()),
        attack("enormous submissions", 4, |aim| submissions::enormous_jobs(aim).boxed()),
    ]
}

/// Attacks that need minutes or a dedicated machine.
pub(crate) fn long() -> Vec<Attack> {
    vec![
        attack("uploads at the minimum rate", 24, |aim| steady_upload(aim).boxed()),
        attack("messages never ended", 16, |aim| raw::messages_never_ended(aim).boxed()),
        attack("calls never begun", 30, |aim| raw::calls_never_begun(aim).boxed()),
        attack("calls reset at once", 4, |aim| raw::resets(aim).boxed()),
        attack("windows never opened", 30, |aim| raw::closed_windows(aim).boxed()),
        attack("headers of megabytes", 4, |aim| raw::large_headers(aim).boxed()),
        attack("floods of frames", 4, |aim| raw::frame_floods(aim).boxed()),
        attack("endless templates", 4, |aim| submissions::endless_templates(aim).boxed()),
        attack("decompression bombs", 4, |aim| submissions::decompression_bombs(aim).boxed()),
        attack("long lists in submissions", 4, |aim| submissions::long_lists(aim).boxed()),
        attack("false ranks", 8, |aim| rogue_workers::false_ranks(aim).boxed()),
        attack("agents that come and go", 8, |aim| rogue_workers::agents_that_come_and_go(aim).boxed()),
        attack("impostors of the agent", 4, |aim| rogue_workers::impostors(aim).boxed()),
        attack("an agent that starts nothing", 1, |aim| rogue_workers::black_hole(aim).boxed()),
    ]
}

/// Facts about the coordinator that the attacks use.
#[derive(Clone)]
struct Aim {
    url: String,
    job: String,
    /// An object of the job's start policy.
    object: v1::Object,
    spec: v1::JobSpec,
}

impl Aim {
    fn channel(&self) -> LeaderChannel {
        rpc::connect(&self.url).expect("the coordinator's own address")
    }

    fn jobs(&self) -> JobsClient<LeaderChannel> {
        JobsClient::new(self.channel())
    }

    fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }
}

pub(crate) struct Target {
    runtime: Runtime,
    aim: Aim,
}

impl Target {
    /// Creates the target from a coordinator that has run a job.
    pub(crate) fn new(service: &Service, job: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let url = service.url().to_owned();
        let job_record = runtime.block_on(async {
            let request = v1::GetJobRequest { id: job.to_owned() };
            JobsClient::new(rpc::connect(&url)?).get(request).await.map_err(anyhow::Error::from)
        })?;
        let job_record = job_record.into_inner();
        let objects = job_record.artifacts.iter().flat_map(|artifact| &artifact.objects);
        let object = objects.max_by_key(|object| object.size).context("the job has no artifacts")?.clone();
        let spec = job_record.spec.context("the job has no specification")?;
        Ok(Self { runtime, aim: Aim { url, job: job.to_owned(), object, spec } })
    }

    /// Calls `act` while the attack runs.
    pub(crate) fn while_under<T>(&self, attack: Attack, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let attackers: Vec<_> = (0..attack.at_once)
            .map(|_| {
                let aim = self.aim.clone();
                self.runtime.spawn(async move {
                    loop {
                        (attack.once)(aim.clone()).await;
                        sleep(AGAIN).await;
                    }
                })
            })
            .collect();
        let done = act();
        for attacker in attackers {
            attacker.abort();
        }
        done
    }
}

/// An idle connection, reopened when the coordinator has closed it.
async fn silent_socket(aim: Aim, first: &[u8]) {
    let Ok(mut socket) = TcpStream::connect(aim.address()).await else { return };
    if socket.write_all(first).await.is_ok() {
        let mut sink = tokio::io::sink();
        // Until the coordinator closes it.
        let _ = tokio::io::copy(&mut socket, &mut sink).await;
    }
}

/// The claimed writer of an upload.
#[derive(Clone, Copy)]
enum Writer {
    Client,
    Rank,
}

async fn slow_upload(aim: Aim, writer: Writer) {
    let blake3 = format!("{:064x}", fastrand::u64(..));
    let (key, job_id) = match writer {
        Writer::Client => (format!("inputs/{blake3}"), String::new()),
        Writer::Rank => (format!("jobs/{}/phases/r01.policy.train/a1/{blake3}", aim.job), aim.job.clone()),
    };
    let begin = v1::PutBegin { key, size: 1 << 30, blake3, job_id, attempt: 1, ..Default::default() };
    let bytes = stream::unfold((), |()| async {
        sleep(Duration::from_secs(15)).await;
        Some((v1::PutRequest { part: Some(Part::Data(Bytes::from_static(b"x"))) }, ()))
    });
    let begin = v1::PutRequest { part: Some(Part::Begin(begin)) };
    let parts = stream::once(async move { begin }).chain(bytes);
    // The upload is going to be refused.
    let _ = ArtifactsClient::new(aim.channel()).put(parts).await;
}

/// An upload slightly faster than the minimum rate, kept up for as long as possible.
async fn steady_upload(aim: Aim) {
    const SECOND: Duration = Duration::from_secs(1);
    let blake3 = format!("{:064x}", fastrand::u64(..));
    let begin = v1::PutBegin { key: format!("inputs/{blake3}"), size: 1 << 30, blake3, ..Default::default() };
    let bytes = stream::unfold((), |()| async {
        sleep(SECOND).await;
        Some((v1::PutRequest { part: Some(Part::Data(vec![0; 70 << 10].into())) }, ()))
    });
    let begin = v1::PutRequest { part: Some(Part::Begin(begin)) };
    let parts = stream::once(async move { begin }).chain(bytes);
    // The upload is going to be refused.
    let _ = ArtifactsClient::new(aim.channel()).put(parts).await;
}

async fn unread_download(aim: Aim) {
    let request = v1::GetRequest { key: aim.object.key.clone(), ..Default::default() };
    if let Ok(unread) = ArtifactsClient::new(aim.channel()).get(request).await {
        sleep(Duration::from_secs(60)).await;
        drop(unread);
    }
}

async fn unread_watch(aim: Aim) {
    let request = v1::WatchJobRequest { id: aim.job.clone(), after_revision: 0 };
    if let Ok(unread) = aim.jobs().watch(request).await {
        sleep(Duration::from_secs(60)).await;
        drop(unread);
    }
}

async fn silent_agent(aim: Aim) {
    if let Ok(answer) = WorkersClient::new(aim.channel()).agent(stream::pending()).await {
        // Until the coordinator ends it.
        let mut commands = answer.into_inner();
        while let Ok(Some(_)) = commands.message().await {}
    }
}

async fn verbose_agent(aim: Aim) {
    let device =
        |number: usize| v1::Device { id: format!("cpu:{number}"), kind: "cpu".into(), ..Default::default() };
    let hello = v1::AgentRegister {
        agent_id: "a\n\u{1b}[31m".into(),
        hostname: "x".repeat(1 << 20),
        devices: (0..20_000).map(device).collect(),
        ..Default::default()
    };
    let register = v1::AgentMessage { message: Some(agent_message::Message::Register(hello)) };
    let words = stream::once(async move { register }).chain(stream::pending());
    if let Ok(answer) = WorkersClient::new(aim.channel()).agent(words).await {
        let mut commands = answer.into_inner();
        while let Ok(Some(_)) = commands.message().await {}
    }
}

async fn large_message(aim: Aim) {
    for size in [1 << 20, 5 << 20, 20 << 20] {
        let _ = aim.jobs().get(v1::GetJobRequest { id: "x".repeat(size) }).await;
    }
    let line = format!(
        "POST /foil.v1.Jobs/List HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n{}",
        "\0".repeat(1 << 20)
    );
    if let Ok(mut socket) = TcpStream::connect(aim.address()).await {
        let _ = socket.write_all(line.as_bytes()).await;
    }
}

async fn list_flood(aim: Aim) {
    let mut jobs = aim.jobs();
    for _ in 0..100 {
        let request = v1::ListJobsRequest { page_size: 1000, ..Default::default() };
        if jobs.list(request).await.is_err() {
            return;
        }
    }
}
