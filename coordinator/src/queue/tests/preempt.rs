use super::*;

fn runs(job: usize, held: usize, priority: i64, minutes: u64) -> Running {
    Running { job, kind: DeviceKind::Cpu, release: 0, held, priority, ran: Duration::from_secs(60 * minutes) }
}

fn urgent(ranks: usize) -> Demand {
    Demand { priority: 100, ..waits(ranks, 10) }
}

/// The jobs preempted for an urgent job of `ranks` ranks while `free` devices are free.
fn preempted(ranks: usize, free: usize, running: &[Running]) -> Vec<usize> {
    let connected = free + running.iter().map(|running| running.held).sum::<usize>();
    let mut queue = Queue { running: running.to_vec(), ..queue(free, connected, &[urgent(ranks)]) };
    allocate(&mut queue).preemptions.iter().map(|preemption| preemption.job).collect()
}

#[test]
fn the_lowest_priority_is_taken_then_the_fewest_then_the_youngest() {
    let running = [runs(7, 2, 0, 50), runs(8, 2, -5, 50), runs(9, 2, -5, 10)];
    assert_eq!(preempted(2, 0, &running), [9], "the youngest of the lowest priority");
    assert_eq!(preempted(4, 0, &running), [8, 9]);
    assert_eq!(preempted(5, 0, &running), [7, 8, 9]);
    assert_eq!(preempted(3, 2, &running), [9], "free devices count");
    assert_eq!(preempted(2, 2, &running), [] as [usize; 0]);
    let running = [runs(7, 1, 0, 10), runs(8, 1, 0, 11), runs(9, 3, 0, 90), runs(10, 4, 0, 95)];
    assert_eq!(preempted(3, 0, &running), [9], "one is fewer than two");
    assert_eq!(preempted(4, 0, &running), [10]);
    assert_eq!(preempted(5, 0, &running), [7, 10]);
    let running = [runs(7, 1, 0, 10), runs(8, 1, 0, 11), runs(9, 2, 0, 90), runs(10, 4, 0, 95)];
    assert_eq!(preempted(6, 0, &running), [9, 10], "two are fewer than three");
    let running = [runs(7, 1, -9, 10), runs(8, 4, 0, 11)];
    assert_eq!(preempted(4, 0, &running), [8], "unneeded victims are spared");
}

#[test]
fn a_job_with_too_little_below_it_preempts_nothing() {
    assert_eq!(preempted(4, 0, &[runs(7, 2, 0, 10), runs(8, 2, 100, 10)]), [] as [usize; 0], "an equal");
    assert_eq!(preempted(4, 0, &[runs(7, 4, 101, 10)]), [] as [usize; 0], "a job that has become urgent");
    assert_eq!(preempted(4, 0, &[runs(7, 4, 0, 1)]), [] as [usize; 0], "it has only just started");
    assert_eq!(preempted(4, 0, &[runs(7, 4, 0, 2)]), [7]);
}

#[test]
fn waiting_alone_preempts_nothing() {
    let running = vec![runs(7, 4, 50, 500)];
    let mut queue = Queue { running, ..queue(0, 4, &[waits(4, 6000)]) };
    assert_eq!(allocate(&mut queue).preemptions, []);
}

#[test]
fn devices_that_are_coming_are_waited_for_and_kept() {
    let running = vec![runs(7, 2, 0, 10)];
    let mut queue = Queue { running, ..queue(0, 4, &[urgent(2), waits(1, 1)]) };
    let supply = &mut queue.supply.get_mut(&DeviceKind::Cpu).unwrap()[0];
    (supply.releasing, supply.free) = (1, 1);
    let allocation = allocate(&mut queue);
    assert_eq!(allocation.preemptions, []);
    let Grant::Wait(wait) = &allocation.grants[0] else { panic!("{allocation:?}") };
    assert_eq!(
        wait.view("").reason,
        "waiting for 2 cpu devices; 1 of 4 free, the others are being given back"
    );
    assert!(matches!(allocation.grants[1], Grant::Wait(_)), "it must not take the device in between");
}

#[test]
fn two_urgent_jobs_do_not_take_the_same_devices() {
    let running = vec![runs(7, 2, 0, 10), runs(8, 2, 0, 20), runs(9, 4, 0, 30)];
    let mut queue = Queue { running, ..queue(0, 8, &[urgent(2), urgent(4)]) };
    let expected = [Preemption { job: 7, by: 0 }, Preemption { job: 9, by: 1 }];
    assert_eq!(allocate(&mut queue).preemptions, expected);
}

#[test]
fn a_stalled_attempt_may_preempt_and_a_working_one_may_not() {
    for stalled in [true, false] {
        let lacking = Demand { priority: 100, ..lacks(1, 3, stalled) };
        let mut queue = Queue { running: vec![runs(7, 1, 0, 10)], ..queue(0, 4, &[lacking]) };
        assert_eq!(allocate(&mut queue).preemptions.len(), usize::from(stalled));
    }
}

#[test]
fn a_job_that_only_its_quota_keeps_waiting_preempts_nothing() {
    let running = vec![runs(7, 4, 0, 10)];
    let mut queue = Queue { running, ..queue(0, 4, &[urgent(2)]) };
    queue.shares = vec![portion(3, 4)];
    assert_eq!(allocate(&mut queue).preemptions, []);
}
