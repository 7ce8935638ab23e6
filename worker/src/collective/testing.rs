//! Gangs for tests.

use std::thread;
use std::time::Duration;

use tch::Device;

use super::{Gang, PortRange, RankConfig, Rendezvous, RendezvousHost};

/// A prefix as the coordinator sends it.
const PREFIX: &str = "r01.policy.train/1";

/// A rank on this machine's CPU.
pub(crate) fn rank_config() -> RankConfig {
    RankConfig {
        address: "127.0.0.1".to_owned(),
        ports: PortRange::ANY,
        device: Device::Cpu,
        timeout: Duration::from_secs(120),
    }
}

/// Runs `work` on each rank of a gang whose ranks are threads of this process, and returns the results by
/// rank.
pub(crate) fn in_threads<T: Send>(world: usize, work: impl Fn(&Gang) -> T + Sync) -> Vec<T> {
    let run = |gang: Gang| {
        let result = work(&gang);
        gang.shutdown().unwrap();
        result
    };
    let host = RendezvousHost::open(rank_config()).unwrap();
    let rendezvous = |rank| Rendezvous {
        rank,
        world,
        host: host.address().to_owned(),
        port: host.port(),
        prefix: PREFIX.to_owned(),
    };
    let others: Vec<Rendezvous> = (1..world).map(rendezvous).collect();
    thread::scope(|scope| {
        let join = |rendezvous| scope.spawn(move || run(Gang::join(rendezvous, &rank_config()).unwrap()));
        let others: Vec<_> = others.iter().map(join).collect();
        let first = run(host.gather(world, PREFIX).unwrap());
        std::iter::once(first).chain(others.into_iter().map(|rank| rank.join().unwrap())).collect()
    })
}
