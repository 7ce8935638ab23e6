use std::thread::sleep;
use std::time::{Duration, Instant};

use foil_torch::Error;
use foil_torch::c10d::{BucketSizes, ProcessGroup, Reducer, waited};
use tch::{Device, Kind, Tensor};

use crate::harness::{Rank, run};

pub(crate) fn rank(rank: &Rank) -> String {
    let group = rank.group("collectives");
    let (number, world) = (rank.rank as i64, rank.world as i64);
    for kind in [Kind::Float, Kind::Double, Kind::Int64] {
        let mut tensor = Tensor::full([2, 3], number + 1, (kind, Device::Cpu));
        group.all_reduce(&mut tensor).unwrap();
        assert_eq!(tensor, Tensor::full([2, 3], world * (world + 1) / 2, (kind, Device::Cpu)));

        let mut tensor = Tensor::full([3], number, (kind, Device::Cpu));
        group.broadcast(&mut tensor, rank.world - 1).unwrap();
        assert_eq!(tensor, Tensor::full([3], world - 1, (kind, Device::Cpu)));
    }
    // A leaf that requires a gradient can be sent too, since master weights are broadcast.
    let mut leaf = Tensor::full([4], number, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    group.broadcast(&mut leaf, 0).unwrap();
    assert_eq!(leaf.sum(Kind::Float).double_value(&[]), 0.0);

    let gathered = group.all_gather(&Tensor::from_slice(&[number, 10 * number])).unwrap();
    let numbers = Tensor::arange(world, (Kind::Int64, Device::Cpu));
    assert_eq!(gathered, Tensor::stack(&[&numbers, &(&numbers * 10)], 1));
    let scalars = group.all_gather(&Tensor::from(number)).unwrap();
    assert_eq!(scalars, numbers);

    // Row j of rank i is [i + j, 1]; the sum over i of row `rank` is [sum(i) + world * rank, world].
    let rows = Tensor::stack(&[&(&numbers + number), &numbers.ones_like()], 1).contiguous();
    let part = group.reduce_scatter(&rows.to_kind(Kind::Double)).unwrap();
    let expected = [world * (world - 1) / 2 + world * number, world];
    assert_eq!(part, Tensor::from_slice(&expected).to_kind(Kind::Double));

    rejects_wrong_arguments(rank);
    measures_waiting(rank, &group);
    group.barrier().unwrap();
    let mut noise = Tensor::from_slice(&[0.1 + number as f64, 1e-9 / (number as f64 + 3.0)]);
    group.all_reduce(&mut noise).unwrap();
    group.shutdown().unwrap();
    format!("{:x} {:x}", noise.double_value(&[0]).to_bits(), noise.double_value(&[1]).to_bits())
}

/// Checks that wrong arguments are errors and that nothing is sent.
fn rejects_wrong_arguments(rank: &Rank) {
    let group = rank.group("arguments");
    let gaps = Tensor::zeros([4, 4], (Kind::Float, Device::Cpu)).transpose(0, 1).narrow(0, 0, 2);
    assert!(matches!(group.all_gather(&gaps), Err(Error::Argument { .. })));
    assert!(matches!(group.broadcast(&mut Tensor::from(1.0), rank.world), Err(Error::Argument { .. })));
    assert!(matches!(
        group.reduce_scatter(&Tensor::zeros([7], (Kind::Float, Device::Cpu))),
        Err(Error::Argument { .. })
    ));
    assert!(matches!(group.all_reduce(&mut Tensor::new()), Err(Error::Argument { .. })));
    group.barrier().unwrap();
}

/// Checks that the time of a collective is that for which a rank waits if another one is late.
fn measures_waiting(rank: &Rank, group: &ProcessGroup) {
    let weight = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let parameters = [weight.shallow_clone()];
    let mut reducer = Reducer::new(group, &parameters, BucketSizes::default()).unwrap();
    let loss = || weight.square().sum(Kind::Float);
    reducer.warm_up(|| Ok::<_, Error>(loss())).unwrap();
    let mut tensor = Tensor::ones([4], (Kind::Float, Device::Cpu));
    let sum = |tensor: &mut Tensor| group.all_reduce(tensor).unwrap();
    let measure = |work: &mut dyn FnMut()| {
        group.barrier().unwrap();
        if rank.rank + 1 == rank.world {
            sleep(Duration::from_millis(500));
        }
        let (begun, before) = (Instant::now(), waited());
        work();
        let (took, waited) = (begun.elapsed(), waited() - before);
        assert!(waited <= took, "{waited:?} of {took:?}");
        // The last rank waits for nobody.
        assert!(rank.rank + 1 == rank.world || 2 * waited > took, "{waited:?} of {took:?}");
    };
    measure(&mut || sum(&mut tensor));
    measure(&mut || reducer.reduce(&loss()).unwrap());
    let (before, begun) = (waited(), Instant::now());
    reducer.accumulate(&loss()).unwrap();
    assert_eq!(waited(), before, "nobody is waited for in {:?}", begun.elapsed());
}

#[test]
fn collectives_between_processes() {
    for world in [2, 3] {
        let reports = run("collectives", world);
        assert!(reports.iter().all(|report| *report == reports[0]), "sums differ between ranks: {reports:?}");
    }
}
