//! Failures of peers and callers: each must become an error within its timeout.

use std::time::{Duration, Instant};

use foil_torch::Error;
use foil_torch::c10d::{BucketSizes, ProcessGroup, ProcessGroupConfig, Reducer, Store};
use tch::{Device, Kind, Tensor};

use crate::harness::{HOST, Rank, run};

const SHORT: Duration = Duration::from_secs(3);
/// Time after which a test considers a rank hung; machines under load are slow.
const LATE: Duration = Duration::from_secs(45);

fn config(rank: usize, world: usize, address: &str) -> ProcessGroupConfig {
    ProcessGroupConfig { rank, world, timeout: SHORT, address: address.to_owned() }
}

#[test]
fn a_peer_that_never_joins_is_a_timeout() {
    let store = Store::host(HOST, SHORT).unwrap();
    let start = Instant::now();
    let error = ProcessGroup::gloo(&store, config(0, 2, HOST)).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(start.elapsed() < LATE);
}

#[test]
fn a_store_that_nobody_serves_is_a_lost_peer() {
    let unused = std::net::TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap().port();
    let error = Store::connect(HOST, unused, Duration::from_secs(2)).map(|_| ()).unwrap_err();
    assert!(error.is_peer(), "{error:?}");
}

#[test]
fn a_key_that_nobody_sets_is_a_timeout() {
    let store = Store::host(HOST, SHORT).unwrap();
    let error = store.wait("never", Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    store.set("soon", b"now").unwrap();
    store.wait("soon", Duration::from_millis(200)).unwrap();
    assert_eq!(store.get("soon").unwrap(), b"now");
    assert_eq!(store.prefixed("a").unwrap().add("count", 2).unwrap(), 2);
    assert_eq!(store.prefixed("b").unwrap().add("count", 3).unwrap(), 3);
}

#[test]
fn invalid_addresses_and_ranks_are_errors() {
    // 192.0.2.0/24 is reserved for documentation (RFC 5737): no interface has it.
    let error = Store::host("192.0.2.1", SHORT).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error:?}");
    let store = Store::host(HOST, SHORT).unwrap();
    let error = ProcessGroup::gloo(&store, config(0, 1, "192.0.2.1")).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Torch { .. }), "{error:?}");
    let error = ProcessGroup::gloo(&store, config(2, 2, HOST)).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error:?}");
    assert_eq!(foil_torch::network_interface(HOST).unwrap().as_deref(), Some("lo"));
    assert_eq!(foil_torch::network_interface("192.0.2.1").unwrap(), None);
}

pub(crate) fn rank_whose_peer_exits(rank: &Rank) -> String {
    let group = rank.group("gone");
    if rank.rank == 1 {
        return "gone".to_owned();
    }
    let start = Instant::now();
    let error = group.all_reduce(&mut Tensor::from(1.0)).unwrap_err();
    assert!(error.is_peer(), "{error:?}");
    assert!(start.elapsed() < LATE);
    "told".to_owned()
}

#[test]
fn a_peer_that_exits_is_an_error() {
    assert_eq!(run("peer_gone", 2), ["told", "gone"]);
}

pub(crate) fn rank_whose_peer_hangs(rank: &Rank) -> String {
    let group = rank.group_within("hung", SHORT);
    let parameter = Tensor::ones([8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let loss = || Ok::<_, Error>(parameter.square().sum(Kind::Float));
    let mut reducer = Reducer::new(&group, std::slice::from_ref(&parameter), BucketSizes::default()).unwrap();
    reducer.warm_up(loss).unwrap();
    if rank.rank == 1 {
        std::thread::sleep(SHORT * 3);
        return "slept".to_owned();
    }
    let start = Instant::now();
    let error = reducer.reduce(&loss().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(start.elapsed() < LATE);
    "told".to_owned()
}

#[test]
fn a_peer_that_hangs_in_the_backward_pass_is_a_timeout() {
    assert_eq!(run("peer_hung", 2), ["told", "slept"]);
}

pub(crate) fn rank_with_unused_parameter(rank: &Rank) -> String {
    let group = rank.group("unreduced");
    let parameters = [1.0, 2.0].map(|value| Tensor::from(value).set_requires_grad(true));
    let mut reducer = Reducer::new(&group, &parameters, BucketSizes::default()).unwrap();
    let error = reducer.reduce(&parameters[0].square()).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error:?}");
    let error = reducer.warm_up(|| Ok::<_, Error>(parameters[0].square())).unwrap_err();
    assert!(matches!(error, Error::Unreduced { .. }), "{error:?}");
    "told".to_owned()
}

#[test]
fn a_parameter_left_out_of_the_loss_is_an_error() {
    assert_eq!(run("unreduced", 2), ["told", "told"]);
}

pub(crate) fn rank_with_other_parameters(rank: &Rank) -> String {
    let group = rank.group_within("disagreement", SHORT);
    let size = 4 + rank.rank as i64;
    let parameter = Tensor::ones([size], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let error = Reducer::new(&group, &[parameter], BucketSizes::default())
        .map(|_| ())
        .map_err(|error| error.to_string());
    error.err().unwrap_or_default()
}

#[test]
fn ranks_that_disagree_about_shapes_is_an_error() {
    let reports = run("disagreement", 2);
    assert!(reports.iter().any(|report| !report.is_empty()), "no rank noticed");
}
