//! Gangs for tests.

use std::thread;
use std::time::Duration;

use tch::Device;

use super::{Gang, Host, Place, Rendezvous};

/// As the coordinator gives them.
const PREFIX: &str = "r01.policy.train/1";

/// On the CPU of this machine.
pub(crate) fn place() -> Place {
    Place { address: "127.0.0.1".to_owned(), device: Device::Cpu, timeout: Duration::from_secs(120) }
}

/// What `work` gives as each rank of a gang whose ranks are threads of this process, by rank. All leave in order.
pub(crate) fn in_threads<T: Send>(world: usize, work: impl Fn(&Gang) -> T + Sync) -> Vec<T> {
    let play = |gang: Gang| {
        let given = work(&gang);
        gang.leave().unwrap();
        given
    };
    let host = Host::open(place()).unwrap();
    let rendezvous = |rank| Rendezvous {
        rank,
        world,
        host: host.address().to_owned(),
        port: host.port(),
        prefix: PREFIX.to_owned(),
    };
    let others: Vec<Rendezvous> = (1..world).map(rendezvous).collect();
    thread::scope(|scope| {
        let join = |rendezvous| scope.spawn(move || play(Gang::join(rendezvous, &place()).unwrap()));
        let others: Vec<_> = others.iter().map(join).collect();
        let first = play(host.gather(world, PREFIX).unwrap());
        std::iter::once(first).chain(others.into_iter().map(|rank| rank.join().unwrap())).collect()
    })
}
