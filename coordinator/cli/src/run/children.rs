//! The coordinator and the agent of a run, as child processes that do not outlive it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use foil_common::spec::DeviceKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::directory::STORE;
use crate::args::LogFormat;
use crate::credential_args::{CLIENT_VARIABLES, SERVER_VARIABLES};
use foil_coordinator::trackers::SECRET_VARIABLES;

/// Timeout of the start of the coordinator.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Time to stop gracefully before a child is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const LOG_LINES: usize = 12;
/// What the final error of each program starts with.
const PROGRAMS: [&str; 2] = ["foil: ", "foil-worker: "];

/// Settings of the children.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) out: PathBuf,
    pub(super) store: String,
    pub(super) ranks: u32,
    pub(super) device: DeviceKind,
    pub(super) log_format: LogFormat,
}

#[derive(Debug)]
pub(super) struct Children {
    coordinator: Program,
    worker: Program,
    url: String,
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Children {
    /// Must be called on the main thread: the kernel kills the children when the *thread* that started them
    /// ends.
    pub(super) async fn start(setup: &Setup) -> Result<Self> {
        let foil = std::env::current_exe().context("this program cannot find itself")?;
        let foil_worker = foil.with_file_name("foil-worker");
        if !foil_worker.is_file() {
            bail!(
                "{} is missing; build it with `cargo build --release -p foil-worker` and put it in the directory of {}",
                foil_worker.display(),
                foil.display()
            );
        }
        let port_file = setup.out.join(".address");
        crate::local_file::remove(&port_file)?;
        let mut serve = Command::new(&foil);
        serve
            // An earlier leader of this store ended with its run.
            .args(["serve", "--take-over", "--listen", "127.0.0.1:0", "--port-file"])
            .arg(&port_file)
            // The URL may contain a secret, and arguments are public.
            .env("FOIL_STORE", &setup.store);
        if Path::new(&setup.store) == setup.out.join(STORE) {
            serve.arg("--run-directory").arg(&setup.out);
        }
        // They are for a service; a run stays on this machine.
        for variable in SERVER_VARIABLES {
            serve.env_remove(variable);
        }
        let mut coordinator = Program::start("coordinator", serve, setup)?;
        let address = match address(&mut coordinator, &port_file).await {
            Ok(address) => address,
            Err(error) => {
                coordinator.stop().await;
                return Err(error);
            }
        };
        let url = format!("http://{address}");
        let mut agent = Command::new(foil_worker);
        agent.args(["--coordinator", &url, "--ranks", &setup.ranks.to_string()]);
        agent.args(["--device", setup.device.name()]);
        // The coordinator alone talks to experiment trackers.
        for variable in CLIENT_VARIABLES.into_iter().chain(SERVER_VARIABLES).chain(SECRET_VARIABLES) {
            agent.env_remove(variable);
        }
        // The same in every run on this store: an agent that re-registers without its ranks shows that those
        // have ended, so that the coordinator does not wait for them.
        let name = blake3::hash(setup.store.as_bytes()).to_hex();
        agent.args(["--agent-id", &format!("run-{}", &name[..12])]);
        let worker = Program::start("worker", agent, setup)?;
        Ok(Self { coordinator, worker, url })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Waits for a child to exit unexpectedly; returns an error with its status and last log lines.
    pub(super) async fn died(&mut self) -> anyhow::Error {
        tokio::select! {
            status = self.coordinator.child.wait() => self.coordinator.exit_error(status.ok()),
            status = self.worker.child.wait() => self.worker.exit_error(status.ok()),
        }
    }

    /// Stops the children, the worker first, so that the coordinator learns how its ranks ended.
    pub(super) async fn stop(&mut self) {
        self.worker.stop().await;
        self.coordinator.stop().await;
    }
}

impl Program {
    fn start(name: &'static str, mut command: Command, setup: &Setup) -> Result<Self> {
        let logs = setup.out.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let log = logs.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command
            .args(["--log-format", setup.log_format.name(), "--parent-pid", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-c is for this process, which then stops its children in order.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("the {name} does not start"))?;
        Ok(Self { name, child, log })
    }

    async fn stop(&mut self) {
        let Some(id) = self.child.id() else { return };
        // It may already have ended.
        let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM);
        if timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            tracing::warn!("the {} did not stop in time and is killed", self.name);
            if let Err(error) = self.child.kill().await {
                tracing::warn!(%error, "the {} could not be killed", self.name);
            }
        }
    }

    /// The error of a program that did not start; its own message is for the user, for example about the
    /// store.
    fn startup_error(&self, status: ExitStatus) -> anyhow::Error {
        match fatal_message(&tail(&self.log)) {
            Some(message) => {
                anyhow!("the {} did not start: {message}\n(its log: {})", self.name, self.log.display())
            }
            None => self.exit_error(Some(status)),
        }
    }

    fn exit_error(&self, status: Option<ExitStatus>) -> anyhow::Error {
        // A program that exits by itself says why; without a change, it would do so again.
        let is_own = status.is_some_and(|status| status.code().is_some());
        if let Some(message) = fatal_message(&tail(&self.log)).filter(|_| is_own) {
            return anyhow!("the {} ended: {message}\n(its log: {})", self.name, self.log.display());
        }
        let how = status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
        let mut text = format!(
            "the {} ended unexpectedly ({how}); the same command resumes the job. Its log: {}",
            self.name,
            self.log.display()
        );
        for line in tail(&self.log) {
            text += &format!("\n  | {line}");
        }
        anyhow!(text)
    }
}

async fn address(coordinator: &mut Program, port_file: &Path) -> Result<String> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        if let Ok(text) = fs::read_to_string(port_file)
            && !text.trim().is_empty()
        {
            return Ok(text.trim().to_owned());
        }
        if let Some(status) = coordinator.child.try_wait()? {
            return Err(coordinator.startup_error(status));
        }
        if Instant::now() > deadline {
            bail!(
                "the coordinator was not ready within {} s; see {}",
                READY_LIMIT.as_secs(),
                coordinator.log.display()
            );
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(8192)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

/// The final error of a program, as [`foil_common::telemetry::fatal`] writes it in either format.
fn fatal_message(lines: &[String]) -> Option<String> {
    if let Some(last) = lines.last()
        && let Ok(line) = serde_json::from_str::<serde_json::Value>(last)
    {
        return line["message"].as_str().filter(|_| line["level"] == "ERROR").map(str::to_owned);
    }
    let message =
        |line: &String| PROGRAMS.iter().find_map(|prefix| line.strip_prefix(prefix)).map(str::to_owned);
    let (from, first) = lines.iter().enumerate().rev().find_map(|(at, line)| Some((at, message(line)?)))?;
    Some([&[first], &lines[from + 1..]].concat().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(out: &Path) -> Setup {
        let store = out.join("store").to_string_lossy().into_owned();
        Setup { out: out.into(), store, ranks: 1, device: DeviceKind::Cpu, log_format: LogFormat::Human }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        // The flags every program gets become the script's own arguments.
        command.args(["-c", script, "sh"]);
        command
    }

    #[tokio::test]
    async fn a_dead_child_is_reported_with_its_last_log_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut program =
            Program::start("worker", shell("echo no device >&2; exit 3"), &setup(dir.path())).unwrap();
        let status = program.child.wait().await.unwrap();
        let text = program.exit_error(Some(status)).to_string();
        assert!(
            text.contains("the worker ended unexpectedly (exit status: 3)") && text.ends_with("| no device"),
            "{text}"
        );
        let missing = address(&mut program, &dir.path().join("absent")).await.unwrap_err().to_string();
        assert!(missing.contains("exit status: 3"), "{missing}");

        let fatal = shell("echo starting; echo 'foil-worker: nvidia-smi is missing' >&2; exit 1");
        let mut program = Program::start("agent", fatal, &setup(dir.path())).unwrap();
        let status = program.child.wait().await.unwrap();
        let text = program.exit_error(Some(status)).to_string();
        assert!(text.starts_with("the agent ended: nvidia-smi is missing\n(its log: "), "{text}");
    }

    #[test]
    fn a_coordinator_that_does_not_start_is_reported_by_its_own_error() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let error = "cannot open the store /x: it is a file";
        let human = format!("2026 INFO opening\nfoil: {error}\nand more");
        assert_eq!(fatal_message(&lines(&human)).unwrap(), format!("{error}\nand more"));
        let json = foil_common::telemetry::json_line("ERROR", "foil", error, &[]);
        assert_eq!(fatal_message(&lines(&json)).unwrap(), error);
        assert_eq!(fatal_message(&lines("2026 INFO opening")), None);
    }

    #[tokio::test]
    async fn children_stop_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Program::start("worker", shell("exec sleep 60"), &setup(dir.path())).unwrap();
        let since = Instant::now();
        program.stop().await;
        assert!(since.elapsed() < STOP_LIMIT && program.child.id().is_none());
    }
}
