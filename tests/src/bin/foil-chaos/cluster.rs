//! Two coordinators, two agents and their store.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use foil_tests::{FaultProxy, Process, SMALL, StoreServer, foil, foil_worker, letters_job};

use super::Args;
use super::hosts::Hosts;
use super::summary::Summary;
use super::watcher::{JobOutcome, Watcher};

/// Every kind of phase, frequent checkpoints and a short hang timeout.
const SETTINGS: [&str; 6] = [
    "policy_step.method=dpo",
    "sft_step.epochs=2",
    "sft_step.batch_sequences=32",
    "resources.checkpoint_steps=2",
    "resources.checkpoint_seconds=1",
    "resources.hang_timeout_seconds=10",
];
/// Small enough that a job compacts the log several times.
const SNAPSHOT_EVERY: &str = "25";
/// Timeout of an election and of a request.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    S3,
    Directory,
}

/// Weights of the policy and of the reward model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weights(Vec<Vec<u8>>);

/// The result of a job without faults.
#[derive(Debug)]
pub(crate) struct Baseline {
    pub(crate) weights: Weights,
    pub(crate) took: Duration,
}

/// A process that is restarted after it dies.
pub(crate) struct Supervised {
    make: Box<dyn Fn() -> Command>,
    log: PathBuf,
    process: Process,
}

impl Supervised {
    fn start(log: PathBuf, make: Box<dyn Fn() -> Command>) -> Self {
        let process = Process::start(make(), &log);
        Self { make, log, process }
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn restart(&mut self) {
        self.process = Process::start((self.make)(), &self.log);
    }

    /// Restarts the process if it has ended. Returns whether it had.
    pub(crate) fn restart_dead(&mut self) -> bool {
        let dead = !self.process.is_running();
        if dead {
            self.restart();
        }
        dead
    }
}

pub(crate) struct Cluster {
    directory: PathBuf,
    _scratch: Option<tempfile::TempDir>,
    pub(crate) hosts: Hosts,
    urls: Vec<String>,
    pub(crate) coordinators: Vec<Supervised>,
    pub(crate) agents: Vec<Supervised>,
    pub(crate) proxy: Option<FaultProxy>,
    _server: Option<StoreServer>,
    ranks: u32,
    device: String,
}

impl Cluster {
    /// Starts the cluster. `environment` is added to that of agents and coordinators.
    pub(crate) fn start(
        args: &Args,
        hosts: &Hosts,
        name: &str,
        environment: &[(String, String)],
    ) -> Result<Self> {
        let scratch = match &args.logs {
            Some(_) => None,
            None => Some(tempfile::tempdir()?),
        };
        let directory = match (&args.logs, &scratch) {
            (Some(logs), _) => std::path::absolute(logs)?.join(name),
            (None, Some(scratch)) => scratch.path().to_owned(),
            (None, None) => bail!("there is no directory for logs"),
        };
        std::fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
        let server = match args.store {
            StoreKind::S3 => Some(StoreServer::s3().context("give --store directory")?),
            StoreKind::Directory => None,
        };
        let proxy =
            server.as_ref().map(|server| FaultProxy::start(server.address(), args.seed)).transpose()?;
        let mut shared: Vec<(String, String)> = environment.to_vec();
        shared.push(("RUST_LOG".to_owned(), "info,foil_worker::train=debug".to_owned()));
        let mut of_store = shared.clone();
        let store = match (&server, &proxy) {
            (Some(server), Some(proxy)) => {
                of_store.extend(server.environment(proxy.address()));
                server.url().to_owned()
            }
            _ => directory.join("store").display().to_string(),
        };
        let listen = [free_address(&hosts.address)?, free_address(&hosts.address)?];
        let urls: Vec<String> = listen.iter().map(|listen| format!("http://{listen}")).collect();
        let mut cluster = Self {
            directory,
            _scratch: scratch,
            hosts: hosts.clone(),
            urls,
            coordinators: Vec::new(),
            agents: Vec::new(),
            proxy,
            _server: server,
            ranks: args.ranks,
            device: args.device.clone(),
        };
        for (number, listen) in listen.into_iter().enumerate() {
            let process = cluster.coordinator(number, listen, store.clone(), of_store.clone());
            cluster.coordinators.push(process);
            // The first coordinator must become the leader.
            cluster.leader()?;
        }
        for number in 0..2 {
            let process = cluster.agent(number, shared.clone());
            cluster.agents.push(process);
        }
        Ok(cluster)
    }

    fn coordinator(
        &self,
        number: usize,
        listen: String,
        store: String,
        environment: Vec<(String, String)>,
    ) -> Supervised {
        let make = move || {
            let mut command = Command::new(foil());
            command.args(["serve", "--insecure-listen", "--log-format", "json", "--listen", &listen]);
            command.args(["--snapshot-every", SNAPSHOT_EVERY, "--store", &store]);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            command
        };
        Supervised::start(self.directory.join(format!("serve-{number}.log")), Box::new(make))
    }

    fn agent(&self, number: usize, environment: Vec<(String, String)>) -> Supervised {
        let (hosts, urls, device) = (self.hosts.clone(), self.urls(), self.device.clone());
        let ranks = if number == 0 { 1 } else { self.ranks - 1 };
        let make = move || {
            let (mut command, address) = hosts.command(number, &foil_worker());
            command.args(["--coordinator", &urls, "--log-format", "json"]);
            command.args(["--agent-id", &format!("agent-{number}"), "--ranks", &ranks.to_string()]);
            command.args(["--advertise-address", &address, "--device", &device]);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            command
        };
        Supervised::start(self.directory.join(format!("agent-{number}.log")), Box::new(make))
    }

    pub(crate) fn urls(&self) -> String {
        self.urls.join(",")
    }

    /// Waits for a leader and returns its index.
    pub(crate) fn leader(&mut self) -> Result<usize> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let running = 0..self.coordinators.len();
            if let Some(leader) = running.into_iter().find(|&number| leads(&self.urls[number])) {
                return Ok(leader);
            }
            // A coordinator may have died during its election.
            self.restart_dead();
            std::thread::sleep(Duration::from_millis(50));
        }
        let logs = self.logs("serve");
        let last: Vec<&str> = logs.lines().rev().take(10).collect();
        bail!("no coordinator leads after {PATIENCE:?}; the last lines, newest first: {}", last.join("\n"))
    }

    /// Restarts all processes that have died.
    pub(crate) fn restart_dead(&mut self) {
        for process in self.coordinators.iter_mut().chain(&mut self.agents) {
            process.restart_dead();
        }
    }

    /// Submits the job and returns its id.
    pub(crate) fn submit(&self) -> Result<String> {
        let resources =
            [format!("resources.ranks={}", self.ranks), format!("resources.device={}", self.device)];
        let mut arguments = vec!["submit", letters_job()];
        arguments.extend(resources.iter().flat_map(|setting| ["--set", setting]));
        arguments.extend(SMALL.iter().chain(&SETTINGS).flat_map(|setting| ["--set", setting]));
        Ok(self.client(&arguments)?.trim().to_owned())
    }

    /// The final weights of a job that has succeeded.
    pub(crate) fn weights(&self, id: &str) -> Result<Weights> {
        let one = |model: &str| {
            let dir = self.directory.join(format!("{id}-{model}"));
            self.client(&["pull", &format!("{id}/{model}"), dir.to_str().context("UTF-8")?])?;
            let bytes = std::fs::read(dir.join("model.safetensors"))?;
            std::fs::remove_dir_all(&dir)?;
            Ok(bytes)
        };
        Ok(Weights(["policy@1", "reward@1"].into_iter().map(one).collect::<Result<_>>()?))
    }

    fn client(&self, arguments: &[&str]) -> Result<String> {
        let begun = Instant::now();
        loop {
            let mut command = Command::new(foil());
            let output = command.args(arguments).env("FOIL_COORDINATOR", self.urls()).output()?;
            if output.status.success() {
                return Ok(String::from_utf8(output.stdout)?);
            }
            // All its uses are idempotent.
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(begun.elapsed() < PATIENCE, "foil {arguments:?}: {log}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    pub(crate) fn run_baseline(&self, summary: &mut Summary) -> Result<Baseline> {
        let begun = Instant::now();
        let watcher = Watcher::start(self.urls(), self.submit()?);
        let (outcome, _) = watcher.finish(Duration::from_secs(600))?;
        let took = begun.elapsed();
        let JobOutcome::Succeeded = outcome else { bail!("the baseline job: {outcome:?}") };
        summary.baseline_time = took;
        Ok(Baseline { weights: self.weights(watcher.job())?, took })
    }

    /// The logs of all processes of a kind.
    pub(crate) fn logs(&self, kind: &str) -> String {
        let mut text = String::new();
        for number in 0..2 {
            let log = self.directory.join(format!("{kind}-{number}.log"));
            text.push_str(&std::fs::read_to_string(log).unwrap_or_default());
        }
        text
    }
}

/// An address with a free port.
fn free_address(address: &str) -> Result<String> {
    let listener = TcpListener::bind((address, 0)).with_context(|| format!("listening at {address}"))?;
    Ok(listener.local_addr()?.to_string())
}

fn leads(url: &str) -> bool {
    metrics(url).is_some_and(|text| text.lines().any(|line| line.trim() == "foil_leader 1"))
}

fn metrics(url: &str) -> Option<String> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Processes whose parent is `parent`, oldest first.
pub(crate) fn children(parent: u32) -> Vec<i32> {
    let entries = std::fs::read_dir(Path::new("/proc")).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut children: Vec<i32> = pids.filter(|&pid| parent_of(pid) == Some(parent)).collect();
    children.sort_unstable();
    children
}

fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain any characters: `pid (name) state parent …`.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?;
    if state == "Z" {
        return None;
    }
    rest.next()?.parse().ok()
}
