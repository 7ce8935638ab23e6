//! The service by hand: `foil serve`, agents, and the client, each a process of its own.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use foil_tests::{Namespaces, Run, SMALL, foil, foil_worker, letters_job};

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(mut command: Command, log: &Path) -> Self {
        let log = File::create(log).expect("a log file");
        let errors = log.try_clone().expect("a log file");
        Self(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("the program starts"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The programs end their own children when they end in order.
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The port that `foil serve --port-file` wrote.
fn port(file: &Path) -> u16 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Ok(port) = text.trim().rsplit(':').next().unwrap_or_default().parse() {
            return port;
        }
        assert!(Instant::now() < deadline, "the coordinator did not say its port");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn client(base: Command, url: &str, arguments: &[&str]) -> String {
    let mut command = base;
    let output = command.args(arguments).env("FOIL_COORDINATOR", url).output().expect("foil starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "foil {arguments:?}: {text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn submit_arguments() -> Vec<&'static str> {
    let mut arguments = vec!["submit", letters_job(), "--set", "resources.ranks=2"];
    for assignment in SMALL {
        arguments.extend(["--set", assignment]);
    }
    arguments
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .read_to_end(&mut bytes)
        .expect("readable");
    bytes
}

#[test]
fn submit_watch_list_and_pull() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let mut serve = Command::new(foil());
    serve
        .args(["serve", "--listen", "127.0.0.1:0", "--store"])
        .arg(at("store"))
        .arg("--port-file")
        .arg(at("port"));
    let _coordinator = Process::start(serve, &at("serve.log"));
    let url = format!("http://127.0.0.1:{}", port(&at("port")));
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", &url, "--ranks", "2"]);
    let _agent = Process::start(agent, &at("agent.log"));

    let submitted = client(Command::new(foil()), &url, &submit_arguments());
    let id = submitted.split_whitespace().last().expect("submit prints the job's id").to_owned();
    client(Command::new(foil()), &url, &["watch", &id]);
    assert!(client(Command::new(foil()), &url, &["list"]).contains(&id));
    let pulled = at("pulled");
    client(Command::new(foil()), &url, &["pull", &format!("{id}/policy@1"), pulled.to_str().expect("UTF-8")]);

    // The same job by `foil run` gives the same policy: it is the same service.
    let run = Run::letters().ranks(2);
    assert!(run.finish().weights().0 == read(&pulled.join("model.safetensors")), "run and submit differ");
}

#[test]
fn two_hosts_that_share_no_disk_play_the_same_game() {
    let Some(hosts) = Namespaces::new(3) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let mut serve = hosts.command(0, None, &foil());
    let listen = format!("{}:0", hosts.address(0));
    serve.args(["serve", "--insecure-listen", "--listen", &listen, "--store"]).arg(at("store"));
    serve.arg("--port-file").arg(at("port"));
    let _coordinator = Process::start(serve, &at("serve.log"));
    let url = format!("http://{}:{}", hosts.address(0), port(&at("port")));
    let agents: Vec<Process> = (1..3)
        .map(|host| {
            // Neither agent sees the store, nor the other's files.
            let mut agent = hosts.command(host, Some(directory.path()), &foil_worker());
            agent.args(["--coordinator", &url, "--ranks", "1", "--advertise-address", &hosts.address(host)]);
            Process::start(agent, &at(&format!("agent-{host}.log")))
        })
        .collect();

    let here = || hosts.command(0, None, &foil());
    let submitted = client(here(), &url, &submit_arguments());
    let id = submitted.split_whitespace().last().expect("submit prints the job's id").to_owned();
    client(here(), &url, &["watch", &id]);
    let pulled = at("pulled");
    client(here(), &url, &["pull", &format!("{id}/policy@1"), pulled.to_str().expect("UTF-8")]);
    drop(agents);

    let on_one_host = Run::letters().ranks(2).finish().weights().0;
    assert!(
        on_one_host == read(&pulled.join("model.safetensors")),
        "two hosts and one give different weights"
    );
}
