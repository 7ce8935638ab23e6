//! Measures the load that a coordinator can bear: many agents, queued jobs and watchers over real gRPC, in
//! growing steps.
//!
//! A real leader and a real standby run on a directory store. Each step submits jobs until the given number
//! is queued, and then measures submissions, list pages, and the leader's memory. At the end, the service is
//! left idle to count its writes, and the leader is killed to time the takeover by the standby.

// The report goes to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod agents;
mod latencies;
mod requests;
mod sockets;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use foil_tests::{Process, Service, foil};

use self::agents::Agents;
use self::latencies::Latencies;
use self::requests::Client;
use self::sockets::Sockets;

#[derive(Debug, Clone, Parser)]
#[command(
    name = "foil-load",
    about = "Measures what a coordinator bears: agents, queued jobs and watchers over gRPC"
)]
struct Args {
    /// Number of simulated agents, each with its own connection.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    agents: u32,
    /// Number of devices of each agent.
    #[arg(long, value_name = "N", default_value_t = 8)]
    devices: u32,
    /// Numbers of queued jobs at which to measure, in ascending order.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    jobs: Vec<usize>,
    /// Number of watch streams.
    #[arg(long, value_name = "N", default_value_t = 200)]
    watchers: usize,
    /// Number of timed submissions and list pages at each step.
    #[arg(long, value_name = "N", default_value_t = 200)]
    samples: usize,
    /// Number of silent sockets, and of sockets that send a request byte by byte, in the last measurement.
    #[arg(long, value_name = "IDLE,SLOW", value_delimiter = ',', default_values_t = [1000, 200])]
    sockets: Vec<usize>,
    /// Time without requests during which writes are counted.
    #[arg(long, value_name = "N", default_value_t = 60)]
    idle_seconds: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(args))
}

async fn measure(args: &Args) -> Result<()> {
    ensure!(args.jobs.is_sorted(), "--jobs must ascend");
    let &[idle_sockets, slow_sockets] = args.sockets.as_slice() else {
        anyhow::bail!("--sockets must be two numbers, for example 1000,200");
    };
    let (mut service, leader) = Service::start(Command::new(foil()), "127.0.0.1");
    let standby = service.start_standby(Command::new(foil()));
    // One ordinary submission uploads the inputs that all others share.
    let first = service.submit_letters_with(Command::new(foil()), &["resources.device=cuda", "name=load"]);
    let client = Client::connect(service.url())?;
    let spec = client.spec(&first).await.context("the first job")?;
    let agents = Agents::connect(service.url(), args.agents, args.devices).await?;
    println!(
        "{} agents with {} devices each, {} watchers; milliseconds",
        args.agents, args.devices, args.watchers
    );
    println!(
        "{:>8} {:>25} {:>25} {:>12} {:>9}",
        "jobs", "submit p50 p99", "list page p50 p99", "leader MiB", "log MiB"
    );
    let (mut queued, mut watched) = (1, Vec::new());
    for &jobs in &args.jobs {
        let timed = args.samples.min(jobs.saturating_sub(queued));
        client.submit_many(&spec, jobs - queued - timed).await?;
        let submits = client.submit_timed(&spec, timed).await?;
        queued = jobs;
        watched.extend(client.watch_some(args.watchers.saturating_sub(watched.len())).await?);
        let pages = client.list_timed(args.samples).await?;
        let memory = resident_bytes(&leader)?;
        println!(
            "{jobs:>8} {:>25} {:>25} {:>12} {:>9}",
            submits.to_string(),
            pages.to_string(),
            memory >> 20,
            files(&service.at("store").join("meta")).1 >> 20
        );
    }
    ensure!(
        agents.connected() == args.agents,
        "{} of {} agents are connected",
        agents.connected(),
        args.agents
    );
    let sockets = Sockets::open(service.url(), idle_sockets, slow_sockets).await?;
    let submits = client.submit_timed(&spec, args.samples).await?;
    queued += args.samples;
    let pages = client.list_timed(args.samples).await?;
    let open = sockets.len();
    println!(
        "{queued:>8} {:>25} {:>25} with {open} idle and slow sockets",
        submits.to_string(),
        pages.to_string()
    );
    ensure!(open == idle_sockets + slow_sockets, "{open} of the sockets could be kept open");
    drop(sockets);
    idle(&service, args.idle_seconds).await;
    println!("the leader takes {} MiB then", resident_bytes(&leader)? >> 20);
    fail_over(&mut service, leader, queued).await?;
    drop((watched, agents, standby));
    Ok(())
}

/// Counts writes while there are no requests, starting after the last request's writes have ended. The
/// leader's heartbeat is one small object that is rewritten every second.
async fn idle(service: &Service, seconds: u64) {
    const QUIET: Duration = Duration::from_secs(3);
    let store = service.at("store");
    let asked = Instant::now();
    let mut since = SystemTime::now();
    while asked.elapsed() < Duration::from_secs(300) {
        tokio::time::sleep(QUIET).await;
        let now = SystemTime::now();
        if written(&store, since).0 == 0 {
            break;
        }
        since = now;
    }
    println!(
        "the store was quiet {} s after the last request",
        asked.elapsed().saturating_sub(QUIET).as_secs()
    );
    let since = SystemTime::now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (objects, bytes) = written(&store, since);
    println!("idle for {seconds} s: {objects} objects and {bytes} bytes written besides the heartbeat");
}

/// Kills the leader and waits until the standby answers with all jobs.
async fn fail_over(service: &mut Service, leader: Process, jobs: usize) -> Result<()> {
    let urls = service.urls();
    let standby = urls.split(',').nth(1).context("there is a standby")?.to_owned();
    leader.kill();
    let since = Instant::now();
    let client = Client::connect(&standby)?;
    let found = client.count_when_led(Duration::from_secs(120)).await?;
    println!("failover with {found} jobs: {:.1} s", since.elapsed().as_secs_f64());
    ensure!(found == jobs, "the standby knows {found} of {jobs} jobs");
    Ok(())
}

/// Resident memory of a process.
fn resident_bytes(process: &Process) -> Result<u64> {
    let path = format!("/proc/{}/status", process.id());
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).with_context(|| path.clone())?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().with_context(|| path)?;
    Ok(kib * 1024)
}

/// Number and total bytes of the files below a folder.
fn files(root: &Path) -> (u64, u64) {
    written(root, SystemTime::UNIX_EPOCH)
}

/// Number and total bytes of the files below a folder that were written since a time, except the leader's
/// heartbeat.
fn written(root: &Path, since: SystemTime) -> (u64, u64) {
    let mut folders: Vec<PathBuf> = vec![root.to_owned()];
    let (mut count, mut bytes) = (0, 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() && entry.path().ends_with("meta/leader") => {}
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if meta.modified().is_ok_and(|modified| modified >= since) => {
                    (count, bytes) = (count + 1, bytes + meta.len());
                }
                // The file is older or has been deleted.
                Ok(_) | Err(_) => {}
            }
        }
    }
    (count, bytes)
}
