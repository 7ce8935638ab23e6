//! Bulk transfers do not delay heartbeats.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use foil_common::rpc::{self, artifacts};
use foil_proto::v1;
use foil_proto::v1::agent_command::Command as ToAgent;
use foil_proto::v1::agent_message::Message;
use foil_proto::v1::workers_client::WorkersClient;
use foil_tests::{Service, foil};
use futures::StreamExt;
use tokio::sync::mpsc;

const BYTES: u64 = 2 << 30;
/// Interval of heartbeats in this test, a tenth of the agents'.
const PERIOD: Duration = Duration::from_millis(200);
/// The heartbeat interval of agents; later acknowledgments are late.
const LATE: Duration = Duration::from_secs(2);
/// Maximum growth of the coordinator's memory during a transfer, independent of the transfer's size.
const FLAT: u64 = 128 << 20;

/// A field of /proc/PID/status in bytes.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the coordinator runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.expect("a figure") << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_are_answered_in_time_while_two_gibibytes_are_uploaded_and_memory_stays_flat() {
    let (service, coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    // There must be a leader before its memory is read.
    service.foil(&["list"]);
    let before = memory(coordinator.id(), "VmRSS");
    let large = service.at("large");
    let file = File::create(&large).expect("a file");
    // A sparse file of zeros: only the store's copy takes space.
    file.set_len(BYTES).expect("a size");

    let url = service.url().to_owned();
    let moved = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&moved);
    let line = rpc::connect(&url).expect("an address");
    let upload = tokio::spawn(async move {
        let counted: artifacts::Moved = Arc::new(move |bytes| {
            counted.fetch_add(bytes, Ordering::Relaxed);
        });
        artifacts::upload_input(&line, &large, &counted).await
    });

    let (say, said) = mpsc::channel(4);
    let device = v1::Device { id: "cpu:0".into(), kind: "cpu".into(), ..Default::default() };
    let hello = v1::AgentRegister {
        agent_id: "a".into(),
        hostname: "h".into(),
        devices: vec![device],
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    };
    say.send(v1::AgentMessage { message: Some(Message::Register(hello)) }).await.expect("room");
    let mut client = WorkersClient::new(rpc::connect(&url).expect("an address"));
    let stream = streamed(said);
    let mut answers = client.agent(stream).await.expect("an agent is welcome").into_inner();
    let mut times = Vec::new();
    let mut number = 0;
    while !upload.is_finished() {
        number += 1;
        let begun = Instant::now();
        let beat = v1::AgentHeartbeat { number };
        say.send(v1::AgentMessage { message: Some(Message::Heartbeat(beat)) }).await.expect("room");
        loop {
            let answer = answers.next().await.expect("the stream lives").expect("no error").command;
            if matches!(answer, Some(ToAgent::Heard(heard)) if heard.number == number) {
                break;
            }
        }
        // Until the upload has started, nothing can delay them.
        if moved.load(Ordering::Relaxed) > 0 {
            times.push(begun.elapsed());
        }
        tokio::time::sleep(PERIOD.saturating_sub(begun.elapsed())).await;
    }
    let object = upload.await.expect("no panic").expect("an upload");
    assert_eq!(object.size, BYTES);

    times.sort_unstable();
    assert!(times.len() > 10, "the transfer was too short: {times:?}");
    let p99 = times[(times.len() - 1) * 99 / 100];
    let grown = memory(coordinator.id(), "VmHWM").saturating_sub(before);
    eprintln!(
        "{} heartbeats, p50 {:?}, p99 {p99:?}; {} MiB more memory",
        times.len(),
        times[times.len() / 2],
        grown >> 20
    );
    assert!(p99 < LATE, "{times:?}");
    assert!(grown < FLAT, "{} MiB more memory at the peak", grown >> 20);
}

fn streamed<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|next| (next, receiver))
    })
}
