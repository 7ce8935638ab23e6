//! Hosts for tests: network namespaces joined by a bridge. They require root and `ip`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

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
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (id, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let subnet = (id.wrapping_add(number.wrapping_mul(101)) % 250) as u8 + 1;
        let made = Self { prefix: format!("foil{id}-{number}"), subnet, hosts };
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

    /// A command on a host with its own host name, where the directory `hidden` is empty, since real hosts
    /// share no disk.
    pub fn command(&self, host: u8, hidden: Option<&Path>, program: &Path) -> Command {
        let mut command = Command::new("ip");
        let hide = hidden.map(|hidden| format!("mount -t tmpfs none '{}' &&", hidden.display()));
        let hide = hide.unwrap_or_default();
        let script =
            format!("echo {} > /proc/sys/kernel/hostname && {hide} exec \"$0\" \"$@\"", self.name(host));
        command.args(["netns", "exec", &self.name(host), "unshare", "--uts", "--mount", "sh", "-c", &script]);
        command.arg(program);
        command
    }

    /// Adds a separate link between two hosts, which carries `bytes_per_second` in each direction. `None`,
    /// with a message on standard error, if this machine's kernel cannot shape traffic.
    pub fn link(&self, one: u8, other: u8, bytes_per_second: u32) -> Option<Link> {
        let link = Link {
            ends: [one, other].map(|host| End {
                host,
                namespace: self.name(host),
                address: format!("10.78.{}.{}", self.subnet, host + 1),
            }),
        };
        let [near, far] = &link.ends;
        let mut add = vec!["-n", &near.namespace, "link", "add", Link::DEVICE, "type", "veth"];
        add.extend(["peer", "name", Link::DEVICE, "netns", &far.namespace]);
        let rate = format!("{bytes_per_second}bps");
        let is_made = succeeds("ip", &add) && link.ends.iter().all(|end| end.set_up(&rate));
        if !is_made {
            eprintln!("skipped: this machine's kernel cannot limit the rate of a link");
        }
        is_made.then_some(link)
    }
}

/// A network cable between two hosts.
pub struct Link {
    ends: [End; 2],
}

struct End {
    host: u8,
    namespace: String,
    address: String,
}

impl Link {
    const DEVICE: &str = "cable";

    /// The address of a host on this link.
    pub fn address(&self, host: u8) -> &str {
        let end = self.ends.iter().find(|end| end.host == host);
        &end.expect("a host of the link").address
    }

    /// The bytes sent so far in each direction, including Ethernet headers.
    pub fn crossed(&self) -> [(String, u64); 2] {
        [&self.ends[0], &self.ends[1]].map(|end| (format!("from host {}", end.host), end.sent()))
    }
}

impl End {
    fn set_up(&self, rate: &str) -> bool {
        let (namespace, device) = (self.namespace.as_str(), Link::DEVICE);
        let address = format!("{}/24", self.address);
        succeeds("ip", &["-n", namespace, "address", "add", &address, "dev", device])
            && succeeds("ip", &["-n", namespace, "link", "set", device, "up"])
            && succeeds(
                "tc",
                &[
                    "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst",
                    "256kb", "latency", "100ms",
                ],
            )
    }

    fn sent(&self) -> u64 {
        let counter = format!("/sys/class/net/{}/statistics/tx_bytes", Link::DEVICE);
        let read = Command::new("ip").args(["netns", "exec", &self.namespace, "cat", &counter]).output();
        let text = String::from_utf8(read.expect("ip").stdout).expect("a counter");
        text.trim().parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
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
