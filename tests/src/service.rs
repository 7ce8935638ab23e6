//! A service of separate processes: `foil serve`, agents, and the client.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{SMALL, binaries, letters_job};

/// Timeout of everything that tests wait for.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

/// A process that is killed on drop.
pub struct Process(Child);

impl Process {
    /// Starts the process and appends its output to the file `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("a log file");
        let errors = log.try_clone().expect("a log file");
        Self(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("the program starts"))
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits for the process to end.
    pub fn finish(mut self) -> ExitStatus {
        wait_for("end of a process", || self.0.try_wait().expect("the process can be waited for"))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("the process can be signalled");
    }

    /// Kills the process with SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().expect("the process can be killed");
        self.0.wait().expect("the process can be waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        // The programs end their children when they stop gracefully.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A coordinator with its standbys, files and addresses.
pub struct Service {
    directory: tempfile::TempDir,
    url: String,
    /// URL of the store; by default a directory in the service's directory.
    store: Option<String>,
    /// Addresses of the standbys, next leader first.
    standbys: Vec<String>,
}

impl Service {
    /// Starts `command` as `foil serve` on a free port of `address`.
    pub fn start(command: Command, address: &str) -> (Self, Process) {
        Self::start_on(command, address, None)
    }

    /// Starts `command` as `foil serve` on a given store.
    pub fn start_on(command: Command, address: &str, store: Option<&str>) -> (Self, Process) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store.map(str::to_owned);
        let mut service = Self { directory, url: String::new(), store, standbys: Vec::new() };
        let coordinator;
        (service.url, coordinator) = service.serve(command, &format!("{address}:0"));
        (service, coordinator)
    }

    /// Restarts the coordinator with the same port and store.
    pub fn restart(&mut self, command: Command) -> Process {
        let listen = self.url.trim_start_matches("http://").to_owned();
        self.serve(command, &listen).1
    }

    /// Starts a standby on the same store.
    pub fn start_standby(&mut self, command: Command) -> Process {
        let (url, process) = self.serve(command, "127.0.0.1:0");
        self.standbys.push(url);
        process
    }

    /// Starts a standby in place of the dead leader, after its first standby has taken over.
    pub fn replace_dead(&mut self, command: Command) -> Process {
        let process = self.restart(command);
        let leader = self.standbys.remove(0);
        self.standbys.push(std::mem::replace(&mut self.url, leader));
        process
    }

    fn serve(&self, mut command: Command, listen: &str) -> (String, Process) {
        let file = self.at("port");
        // An earlier process may have written it.
        let _ = std::fs::remove_file(&file);
        let store = self.store.as_ref().map_or_else(|| self.at("store"), PathBuf::from);
        command.args(["serve", "--insecure-listen", "--listen", listen, "--store"]).arg(store);
        command.arg("--port-file").arg(&file);
        let process = Process::start(command, &self.at("serve.log"));
        let text = wait_for("the coordinator's address", || {
            std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n'))
        });
        (format!("http://{}", text.trim()), process)
    }

    /// The addresses of all coordinators, separated by commas.
    pub fn urls(&self) -> String {
        self.standbys.iter().fold(self.url.clone(), |urls, url| format!("{urls},{url}"))
    }

    /// The leader's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A path in the service's directory.
    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The content of a log file.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    /// Runs `command` as the client and returns its output.
    pub fn client(&self, mut command: Command, arguments: &[&str]) -> String {
        let output =
            command.args(arguments).env("FOIL_COORDINATOR", self.urls()).output().expect("foil starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "foil {arguments:?}: {text}\n{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log("serve.log")
        );
        text
    }

    /// Runs the client on this machine.
    pub fn foil(&self, arguments: &[&str]) -> String {
        self.client(Command::new(binaries::foil()), arguments)
    }

    /// Submits the shrunken letters job for two ranks with the client `command` and returns its id.
    pub fn submit_letters(&self, command: Command) -> String {
        self.submit_letters_with(command, &[])
    }

    /// Submits the shrunken letters job with additional settings.
    pub fn submit_letters_with(&self, command: Command, settings: &[&str]) -> String {
        let mut arguments = vec!["submit", letters_job(), "--set", "resources.ranks=2"];
        arguments.extend(SMALL.iter().chain(settings).flat_map(|assignment| ["--set", assignment]));
        self.client(command, &arguments).trim().to_owned()
    }

    /// The coordinator's view of the job.
    pub fn job(&self, id: &str) -> Value {
        serde_json::from_str(&self.foil(&["get", id, "-o", "json"])).expect("a job in JSON")
    }

    /// Pulls the weights of one of the job's models with the client `command`.
    pub fn weights(&self, command: Command, id: &str, model: &str) -> Vec<u8> {
        let dir = self.at(model);
        self.client(command, &["pull", &format!("{id}/{model}"), dir.to_str().expect("UTF-8")]);
        std::fs::read(dir.join("model.safetensors")).expect("weights are readable")
    }
}

/// Polls `ask` until it returns a value.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
}
