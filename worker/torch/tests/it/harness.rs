//! Starts the ranks of a test as processes and collects their reports.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use foil_torch::c10d::{ProcessGroup, ProcessGroupConfig, Store};

pub(crate) const HOST: &str = "127.0.0.1";
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A rank process of a test.
pub(crate) struct Rank {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    store: Store,
}

impl Rank {
    /// A new group of all ranks; `name` distinguishes it from the test's other groups.
    pub(crate) fn group(&self, name: &str) -> ProcessGroup {
        self.group_within(name, TIMEOUT)
    }

    pub(crate) fn group_within(&self, name: &str, timeout: Duration) -> ProcessGroup {
        let store = self.store.prefixed(name).unwrap();
        ProcessGroup::gloo(&store, self.config(timeout)).unwrap()
    }

    fn config(&self, timeout: Duration) -> ProcessGroupConfig {
        ProcessGroupConfig { rank: self.rank, world: self.world, timeout, address: HOST.to_owned() }
    }
}

/// The code that a rank runs; returns a report for the test.
pub(crate) type Role = fn(&Rank) -> String;

fn role(name: &str) -> Role {
    match name {
        "collectives" => crate::collectives::rank,
        "peer_gone" => crate::failures::rank_whose_peer_exits,
        "peer_hung" => crate::failures::rank_whose_peer_hangs,
        "unreduced" => crate::failures::rank_with_unused_parameter,
        "disagreement" => crate::failures::rank_with_other_parameters,
        "gradient" => crate::reducer::rank_compares_gradients,
        "overlap" => crate::overlap::rank,
        "shards" => crate::shards::rank,
        "flat" => crate::flat::rank,
        "flat_overlap" => crate::flat::rank_traces,
        "flat_unreduced" => crate::flat::rank_with_unused_parameter,
        "resume" => crate::reducer::rank_resumes,
        other => panic!("no role is called {other}"),
    }
}

/// The entry point of rank processes; does nothing unless the harness starts it.
#[test]
#[ignore = "a rank of the other tests"]
fn rank_process() {
    let Ok(name) = std::env::var("FOIL_TEST_ROLE") else { return };
    let number = |key: &str| std::env::var(key).unwrap().parse::<usize>().unwrap();
    let port = u16::try_from(number("FOIL_TEST_PORT")).unwrap();
    let store = Store::connect(HOST, port, TIMEOUT).unwrap();
    let rank = Rank { rank: number("FOIL_TEST_RANK"), world: number("FOIL_TEST_WORLD"), store };
    let report = role(&name)(&rank);
    rank.store.set(&format!("report/{}", rank.rank), report.as_bytes()).unwrap();
}

/// Runs `role` on `world` processes and returns their reports by rank.
pub(crate) fn run(role: &str, world: usize) -> Vec<String> {
    let store = Store::host(HOST, TIMEOUT).unwrap();
    let ranks: Vec<Child> = (0..world).map(|rank| start(role, rank, world, store.port())).collect();
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rank {rank} of {role} failed: {}\n{text}", output.status);
    }
    let report = |rank| String::from_utf8(store.get(&format!("report/{rank}")).unwrap()).unwrap();
    (0..world).map(report).collect()
}

fn start(role: &str, rank: usize, world: usize, port: u16) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "harness::rank_process", "--ignored", "--nocapture", "--test-threads=1"])
        .env("FOIL_TEST_ROLE", role)
        .env("FOIL_TEST_RANK", rank.to_string())
        .env("FOIL_TEST_WORLD", world.to_string())
        .env("FOIL_TEST_PORT", port.to_string())
        .env("OMP_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
