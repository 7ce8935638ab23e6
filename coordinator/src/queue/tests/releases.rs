//! Workers of several releases, as during an upgrade.

use super::*;

/// A queue with two releases of workers, each given as its free devices and all its devices.
fn mixed(first: (usize, usize), second: (usize, usize), demands: &[Demand]) -> Queue {
    let supply = |(free, connected)| Supply { free, connected, ..Supply::default() };
    let supply = [(DeviceKind::Cpu, vec![supply(first), supply(second)])].into();
    Queue { supply, ..queue(0, 0, demands) }
}

/// A job that holds `held` ranks of a release and lacks others.
fn lacks_of(release: usize, ranks: usize, held: usize) -> Demand {
    Demand { release: Some(release), ..lacks(ranks, held, true) }
}

#[test]
fn a_job_starts_on_one_release_or_not_at_all() {
    let allocation = allocate(&mut mixed((2, 2), (2, 2), &[starts(3)]));
    let Grant::Wait(wait) = &allocation.grants[0] else { panic!("{allocation:?}") };
    assert_eq!(wait.cause, WaitCause::TooLarge);
    let expected = "waiting for 3 cpu devices; the workers connected now have 2 (and 2 on workers of another version \
                    or build)";
    assert_eq!(wait.view("").reason, expected);
    let allocation = allocate(&mut mixed((1, 4), (3, 3), &[starts(3), starts(1), starts(1)]));
    assert_eq!(allocation.grants[..2], [Grant::Full, Grant::Full], "each in the pool where it fits");
    assert_eq!(allocation.releases[..2], [1, 0]);
    assert!(matches!(allocation.grants[2], Grant::Wait(_)), "nothing is left");
}

#[test]
fn a_job_waits_where_there_are_the_most_devices_and_keeps_them_there_alone() {
    let allocation = allocate(&mut mixed((1, 4), (1, 2), &[starts(3), starts(1), starts(1)]));
    let Grant::Wait(wait) = &allocation.grants[0] else { panic!("{allocation:?}") };
    assert_eq!((wait.cause, wait.connected, allocation.releases[0]), (WaitCause::Devices, 4, 0));
    assert_eq!(
        (&allocation.grants[1], allocation.releases[1]),
        (&Grant::Full, 1),
        "the other pool is not reserved"
    );
    assert!(matches!(&allocation.grants[2], Grant::Wait(_)), "the first pool is reserved");
}

#[test]
fn an_attempt_gets_ranks_of_its_own_release() {
    let allocation = allocate(&mut mixed((0, 2), (4, 4), &[lacks_of(0, 1, 1)]));
    assert!(matches!(&allocation.grants[0], Grant::Wait(_)), "{allocation:?}");
    assert_eq!(allocation.yields, [] as [usize; 0], "its own workers may come back");
    let allocation = allocate(&mut mixed((1, 2), (4, 4), &[lacks_of(0, 1, 1)]));
    assert_eq!((&allocation.grants[0], allocation.releases[0]), (&Grant::Full, 0));
    let none = Demand { release: None, ..lacks(2, 0, true) };
    let allocation = allocate(&mut mixed((1, 2), (2, 2), &[none]));
    assert_eq!(
        (&allocation.grants[0], allocation.releases[0]),
        (&Grant::Full, 1),
        "without ranks, any pool will do"
    );
}

#[test]
fn an_attempt_moves_to_another_release_as_a_whole() {
    assert_eq!(allocate(&mut mixed((0, 1), (2, 2), &[lacks_of(0, 1, 1)])).yields, [0]);
    assert_eq!(allocate(&mut mixed((0, 1), (0, 2), &[lacks_of(0, 1, 1)])).yields, [0], "others may end");
    assert_eq!(
        allocate(&mut mixed((0, 1), (1, 1), &[lacks_of(0, 1, 1)])).yields,
        [] as [usize; 0],
        "too few"
    );
    let new = Demand { known: Duration::from_secs(59), ..lacks_of(0, 1, 1) };
    assert_eq!(
        allocate(&mut mixed((0, 1), (2, 2), &[new])).yields,
        [] as [usize; 0],
        "its ranks may come back"
    );
}

#[test]
fn preemption_takes_ranks_of_one_release() {
    let urgent = Demand { priority: 100, ..waits(4, 10) };
    let ran = Duration::from_secs(600);
    let runs = |job, release, held| Running { job, kind: DeviceKind::Cpu, release, held, priority: 0, ran };
    let running = vec![runs(7, 0, 4), runs(8, 1, 2)];
    let mut queue = Queue { running: running.clone(), ..mixed((0, 4), (2, 4), &[urgent]) };
    assert_eq!(allocate(&mut queue).preemptions, [Preemption { job: 8, by: 0 }], "half of it is free");
    let mut queue = Queue { running, ..mixed((0, 4), (1, 3), &[urgent]) };
    assert_eq!(allocate(&mut queue).preemptions, [Preemption { job: 7, by: 0 }]);
}
