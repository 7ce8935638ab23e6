//! Hosts for tests: network namespaces joined by a bridge, if the test runs as root and `ip` exists.

use std::path::Path;
use std::process::{Command, Stdio};

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Hosts 10.77.N.1 …, each a network namespace, on a bridge in a separate namespace.
pub struct Namespaces {
    prefix: String,
    subnet: u8,
    hosts: u8,
}

impl Namespaces {
    /// `None`, with a message on standard error, if namespaces cannot be created.
    pub fn new(hosts: u8) -> Option<Self> {
        let id = std::process::id();
        let made = Self { prefix: format!("foil{id}"), subnet: (id % 250) as u8 + 1, hosts };
        if !nix::unistd::geteuid().is_root() || !succeeds("ip", &["netns", "add", &made.switch()]) {
            eprintln!("skipped: network namespaces need root and iproute2");
            return None;
        }
        let switch = made.switch();
        let joined = succeeds("ip", &["-n", &switch, "link", "add", "br0", "type", "bridge"])
            && succeeds("ip", &["-n", &switch, "link", "set", "br0", "up"])
            && (0..hosts).all(|host| made.join(host));
        if !joined {
            eprintln!("skipped: this machine's kernel cannot join network namespaces");
            return None;
        }
        Some(made)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    /// The namespace's name.
    pub fn name(&self, host: u8) -> String {
        format!("{}-{host}", self.prefix)
    }

    pub fn address(&self, host: u8) -> String {
        format!("10.77.{}.{}", self.subnet, host + 1)
    }

    fn join(&self, host: u8) -> bool {
        let (name, switch, port) = (self.name(host), self.switch(), format!("port{host}"));
        let address = format!("{}/24", self.address(host));
        succeeds("ip", &["netns", "add", &name])
            && succeeds(
                "ip",
                &[
                    "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                    &name,
                ],
            )
            && succeeds("ip", &["-n", &switch, "link", "set", &port, "master", "br0"])
            && succeeds("ip", &["-n", &switch, "link", "set", &port, "up"])
            && succeeds("ip", &["-n", &name, "address", "add", &address, "dev", "eth0"])
            && succeeds("ip", &["-n", &name, "link", "set", "eth0", "up"])
            && succeeds("ip", &["-n", &name, "link", "set", "lo", "up"])
    }

    /// A command on a host, where the directory `hidden` is empty: real hosts share no disk.
    pub fn command(&self, host: u8, hidden: Option<&Path>, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host)]);
        if let Some(hidden) = hidden {
            let script = format!("mount -t tmpfs none '{}' && exec \"$0\" \"$@\"", hidden.display());
            command.args(["unshare", "--mount", "sh", "-c", &script]);
        }
        command.arg(program);
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for host in 0..self.hosts {
            succeeds("ip", &["netns", "delete", &self.name(host)]);
        }
        succeeds("ip", &["netns", "delete", &self.switch()]);
    }
}
