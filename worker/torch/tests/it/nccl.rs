use foil_torch::Error;
use foil_torch::c10d::{BucketSizes, ProcessGroup, ProcessGroupConfig, Reducer, Store, nccl_built};
use tch::{Cuda, Device, Kind, Tensor};

use crate::harness::{HOST, TIMEOUT};

fn config() -> ProcessGroupConfig {
    ProcessGroupConfig { rank: 0, world: 1, timeout: TIMEOUT, address: HOST.to_owned() }
}

#[test]
fn nccl_on_one_gpu() {
    let store = Store::host(HOST, TIMEOUT).unwrap();
    let group = ProcessGroup::nccl(&store, config());
    if !nccl_built() {
        assert!(matches!(group, Err(Error::NcclMissing)));
        println!("skipped: this build has no NCCL");
        return;
    }
    if !Cuda::is_available() {
        assert!(matches!(group, Err(Error::NoCudaDevice)));
        println!("skipped: no CUDA device");
        return;
    }
    let group = group.unwrap();
    let mut tensor = Tensor::full([1000], 2.5, (Kind::Float, Device::Cuda(0)));
    group.all_reduce(&mut tensor).unwrap();
    group.broadcast(&mut tensor, 0).unwrap();
    assert_eq!(tensor.sum(Kind::Double).double_value(&[]), 2500.0);
    assert_eq!(group.all_gather(&tensor).unwrap().size(), [1, 1000]);
    assert_eq!(group.reduce_scatter(&tensor.view([1, 1000])).unwrap().size(), [1000]);
    // CPU tensors use Gloo in the same group.
    let mut count = Tensor::from_slice(&[3_i64]);
    group.all_reduce(&mut count).unwrap();
    group.barrier().unwrap();

    let parameters = [tensor.set_requires_grad(true)];
    let mut reducer = Reducer::new(&group, &parameters, BucketSizes::default()).unwrap();
    let loss = || Ok::<_, Error>(parameters[0].square().sum(Kind::Float));
    reducer.warm_up(loss).unwrap();
    reducer.reduce(&loss().unwrap()).unwrap();
    assert_eq!(reducer.gradients()[0].double_value(&[7]), 5.0);
    drop(reducer);
    group.shutdown().unwrap();
}
