//! The hosts of the processes: network namespaces if they can be created, otherwise this machine.

use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result};
use foil_tests::Namespaces;

use super::Args;

/// Number of hosts: one for the coordinators and this program, and one for each agent.
const HOSTS: u8 = 3;

/// Hosts of a run. On the command line `ADDRESS`, or `ADDRESS,NAME=ADDRESS,NAME=ADDRESS` with agents on
/// separate hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hosts {
    /// Listen address of the coordinators.
    pub(crate) address: String,
    /// Network namespace and address of each agent.
    agents: Vec<(String, String)>,
}

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let address = words.next().unwrap_or_default().to_owned();
        let agent = |word: &str| word.split_once('=').map(|(name, at)| (name.to_owned(), at.to_owned()));
        let agents: Option<Vec<_>> = words.map(agent).collect();
        Ok(Self { address, agents: agents.ok_or_else(|| format!("{text} names no hosts"))? })
    }
}

impl Hosts {
    pub(crate) fn are_separate(&self) -> bool {
        !self.agents.is_empty()
    }

    /// The command of an agent on its host, and the host's address.
    pub(crate) fn command(&self, agent: usize, program: &Path) -> (Command, String) {
        let Some((name, address)) = self.agents.get(agent) else {
            return (Command::new(program), self.address.clone());
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).arg(program);
        (command, address.clone())
    }

    /// Disconnects an agent's host from the network, or reconnects it.
    pub(crate) fn connect(&self, agent: usize, connected: bool) -> Result<()> {
        let Some((name, _)) = self.agents.get(agent) else { return Ok(()) };
        let state = if connected { "up" } else { "down" };
        let status = Command::new("ip").args(["-n", name, "link", "set", "eth0", state]).status();
        anyhow::ensure!(status.context("ip")?.success(), "the link of {name} could not be set {state}");
        Ok(())
    }
}

/// Runs this program again in a network namespace, if one can be created.
pub(crate) fn run_on_hosts(args: &Args) -> Result<bool> {
    let Some(namespaces) = Namespaces::new(HOSTS) else {
        return super::run(args, &"127.0.0.1".parse().expect("an address alone"));
    };
    let agents = (1..HOSTS).map(|host| format!(",{}={}", namespaces.name(host), namespaces.address(host)));
    let hosts = agents.fold(namespaces.address(0), |hosts, agent| hosts + &agent);
    let program = std::env::current_exe().context("this program's own path")?;
    let mut command = namespaces.command(0, None, &program);
    command.args(std::env::args_os().skip(1)).args(["--hosts", &hosts]);
    Ok(command.status().context("ip netns exec")?.success())
}
