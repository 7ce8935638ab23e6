mod preempt;
mod releases;
mod simulation;

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A queue with devices of one kind, and a tenant without limits.
fn queue(free: usize, connected: usize, demands: &[Demand]) -> Queue {
    let supply = Supply { free, connected, ..Supply::default() };
    let supply = [(DeviceKind::Cpu, vec![supply])].into();
    let mut demands = demands.to_vec();
    demands.iter_mut().zip(0..).for_each(|(demand, job)| demand.job = job);
    Queue { supply, demands, shares: vec![Share::default()], ..Queue::default() }
}

/// A job that waits to start, for so long that none may overtake it.
fn starts(ranks: usize) -> Demand {
    let (waited, known) = (HOUR, HOUR);
    Demand {
        job: 0,
        tenant: 0,
        kind: DeviceKind::Cpu,
        release: None,
        ranks,
        priority: 0,
        waited,
        known,
        claim: Claim::Start,
    }
}

/// A job that has waited for this many seconds.
fn waits(ranks: usize, seconds: u64) -> Demand {
    let waited = Duration::from_secs(seconds);
    Demand { waited, known: waited, ..starts(ranks) }
}

fn lacks(ranks: usize, held: usize, stalled: bool) -> Demand {
    Demand { claim: Claim::Replace { held, stalled }, ..starts(ranks) }
}

fn reasons(queue: &mut Queue) -> Vec<String> {
    let reason = |grant: Grant| match grant {
        Grant::Full => String::new(),
        Grant::Partial(_, wait) | Grant::Wait(wait) => wait.view("research").reason,
    };
    allocate(queue).grants.into_iter().map(reason).collect()
}

/// The jobs that get all they lack.
fn started(queue: &mut Queue) -> Vec<usize> {
    let grants = allocate(queue).grants;
    (0..grants.len()).filter(|index| grants[*index] == Grant::Full).collect()
}

#[test]
fn the_highest_priority_goes_first_and_then_the_earliest() {
    let of = |priority| Demand { priority, ..starts(2) };
    let mut queue = queue(4, 4, &[of(0), of(-100), of(100), of(0)]);
    assert_eq!(started(&mut queue), [0, 2]);
}

#[test]
fn waiting_raises_a_priority_so_that_none_is_starved() {
    let old = Demand { priority: -100, ..waits(2, 101 * 60) };
    let younger = Demand { priority: -100, ..waits(2, 100 * 60) };
    let new = waits(2, 10);
    assert_eq!(started(&mut queue(2, 2, &[new, old])), [1], "101 points outweigh 100");
    assert_eq!(started(&mut queue(2, 2, &[new, younger])), [0], "100 do not");
}

#[test]
fn a_job_too_large_for_the_cluster_is_passed_over_and_says_so() {
    let found = reasons(&mut queue(2, 2, &[starts(80), starts(2), starts(1)]));
    assert_eq!(found[0], "waiting for 80 cpu devices; the workers connected now have 2");
    assert_eq!(found[1], "");
    assert_eq!(found[2], "waiting for 1 cpu device; 0 of 2 free; second in the queue");
    let new = Demand { known: Duration::from_secs(2), ..starts(80) };
    assert_eq!(
        started(&mut queue(2, 2, &[new, starts(2)])),
        [] as [usize; 0],
        "workers may be about to join"
    );
}

#[test]
fn a_smaller_job_goes_ahead_of_a_blocked_one_until_that_has_waited_long_enough() {
    for (seconds, passes) in [(2, false), (3, true), (299, true), (300, false)] {
        let mut queue = queue(2, 4, &[waits(3, seconds), waits(1, 1)]);
        let expected: &[usize] = if passes { &[1] } else { &[] };
        assert_eq!(started(&mut queue), expected, "after {seconds} s");
    }
    let found = reasons(&mut queue(2, 4, &[starts(3), starts(1)]));
    assert_eq!(found[0], "waiting for 3 cpu devices; 2 of 4 free");
    let kept = "waiting for 1 cpu device; 2 of 4 free, kept for a job before this one; second in the queue";
    assert_eq!(found[1], kept);
}

#[test]
fn a_job_behind_two_blocked_ones_may_not_pass_the_one_that_has_waited_long_enough() {
    let urgent = Demand { priority: 500, ..waits(4, 10) };
    let mut queue = queue(2, 4, &[starts(3), urgent, waits(1, 1)]);
    assert_eq!(started(&mut queue), [] as [usize; 0]);
}

#[test]
fn a_running_attempt_gets_its_missing_ranks_before_another_starts() {
    let mut queue = queue(1, 4, &[starts(3), lacks(2, 1, false)]);
    let grants = allocate(&mut queue).grants;
    let Grant::Partial(1, wait) = &grants[1] else { panic!("{grants:?}") };
    assert_eq!(wait.view("").reason, "waiting for 1 more cpu device; 0 of 4 free");
    assert!(matches!(grants[0], Grant::Wait(_)));
}

#[test]
fn of_two_half_started_attempts_the_last_gives_its_devices_back() {
    let both = [lacks(1, 3, true), lacks(2, 2, true)];
    assert_eq!(allocate(&mut queue(0, 5, &both)).yields, [1]);
    let urgent = [both[0], Demand { priority: 5, ..both[1] }];
    assert_eq!(allocate(&mut queue(0, 5, &urgent)).yields, [0], "the one of lower priority");
    let empty = [lacks(2, 1, true), lacks(1, 0, true)];
    assert_eq!(
        allocate(&mut queue(0, 1, &empty)).yields,
        [0],
        "an attempt without devices has nothing to give"
    );
    let working = [both[0], lacks(2, 2, false)];
    assert_eq!(allocate(&mut queue(0, 5, &working)).yields, [] as [usize; 0], "the other attempt will end");
    let new = [both[0], Demand { known: Duration::from_secs(59), ..both[1] }];
    assert_eq!(allocate(&mut queue(0, 5, &new)).yields, [] as [usize; 0], "its ranks may come back");
    let mut coming = queue(0, 5, &both);
    coming.supply.get_mut(&DeviceKind::Cpu).unwrap()[0].releasing = 3;
    assert_eq!(allocate(&mut coming).yields, [] as [usize; 0], "others are about to give theirs back");
}

#[test]
fn an_attempt_that_the_workers_left_are_too_few_for_makes_room_for_others() {
    let stalled = lacks(2, 2, true);
    assert_eq!(allocate(&mut queue(0, 3, &[stalled, starts(1)])).yields, [0]);
    assert_eq!(allocate(&mut queue(0, 4, &[stalled, starts(1)])).yields, [] as [usize; 0], "others may end");
    assert_eq!(allocate(&mut queue(0, 3, &[stalled])).yields, [] as [usize; 0], "no job waits for them");
    assert_eq!(
        allocate(&mut queue(0, 3, &[stalled, starts(9)])).yields,
        [] as [usize; 0],
        "no waiting job can use them"
    );
}

#[test]
fn a_stalled_attempt_makes_room_in_its_tenants_quota_too() {
    let full = Share { jobs: 1, max_jobs: Some(1), ..Share::default() };
    for (tenant, expected) in [(0, &[0][..]), (1, &[])] {
        let other = Demand { tenant, ..starts(1) };
        let mut queue = queue(0, 1, &[lacks(2, 1, true), other]);
        queue.shares = vec![full.clone(), full.clone()];
        assert_eq!(allocate(&mut queue).yields, expected, "tenant {tenant}");
    }
}

#[test]
fn kinds_do_not_wait_for_each_other() {
    let cuda = |ranks| Demand { kind: DeviceKind::Cuda, ..starts(ranks) };
    let mut both = queue(0, 1, &[starts(1), cuda(1), cuda(2)]);
    let cuda = Supply { free: 1, connected: 1, releasing: 0, excluded: 8 };
    both.supply.insert(DeviceKind::Cuda, vec![cuda]);
    let found = reasons(&mut both);
    assert_eq!(found[1], "");
    let expected =
        "waiting for 2 cuda devices; the workers connected now have 1 (and 8 on workers that are excluded)";
    assert_eq!(found[2], expected);
}

/// A tenant with limits, and one without.
fn shared(free: usize, demands: &[Demand], limited: Share) -> Queue {
    Queue { shares: vec![limited, Share::default()], ..queue(free, 8, demands) }
}

fn portion(used: usize, max: usize) -> Share {
    let portion = Portion { used, max: Some(max), reserved: false };
    Share { devices: [(DeviceKind::Cpu, portion)].into(), ..Share::default() }
}

#[test]
fn a_tenants_quota_keeps_its_jobs_waiting_and_nobody_elses() {
    let other = Demand { tenant: 1, ..starts(3) };
    let mut queue = shared(8, &[starts(1), other, starts(5)], portion(4, 4));
    let found = reasons(&mut queue);
    assert_eq!(found[0], "waiting for 1 cpu device; tenant research uses 4 of its 4 cpu devices");
    assert_eq!(found[1], "");
    let more =
        "waiting for 5 cpu devices; tenant research may use 4 cpu devices at once; second in the queue";
    assert_eq!(found[2], more);
    let full = Share { jobs: 1, max_jobs: Some(1), ..Share::default() };
    let found = reasons(&mut shared(8, &[starts(1), other], full));
    assert_eq!(found[0], "waiting for 1 cpu device; tenant research runs 1 of its 1 job");
}

#[test]
fn jobs_that_start_use_up_their_tenants_quota() {
    let one = Share { max_jobs: Some(1), ..Share::default() };
    assert_eq!(started(&mut shared(8, &[starts(1), starts(1)], one)), [0]);
    assert_eq!(
        started(&mut shared(8, &[starts(2), starts(2), starts(1)], portion(0, 3))),
        [0],
        "one is kept"
    );
    let newer = [starts(2), waits(2, 20), waits(1, 10)];
    assert_eq!(
        started(&mut shared(8, &newer, portion(0, 3))),
        [0, 2],
        "backfill also applies within a quota"
    );
}

fn demands() -> impl Strategy<Value = Vec<Demand>> {
    let demand = (1..9_usize, any::<bool>(), 0..700_u64, -2..3_i32).prop_map(
        |(ranks, is_start, seconds, priority)| {
            let claim = if is_start { Claim::Start } else { Claim::Replace { held: 1, stalled: false } };
            Demand { priority, claim, ..waits(ranks, seconds) }
        },
    );
    proptest::collection::vec(demand, 0..12)
}

proptest! {
    #[test]
    fn no_device_is_allocated_twice_and_positions_are_those_of_the_queue(
        demands in demands(), connected in 0..12_usize, held in 0..12_usize,
    ) {
        let free = connected.saturating_sub(held);
        let mut queue = queue(free, connected, &demands);
        let grants = allocate(&mut queue).grants;
        let mut positions = Vec::new();
        let mut total = 0;
        for (demand, grant) in queue.demands.iter().zip(&grants) {
            match grant {
                Grant::Full => total += demand.ranks,
                Grant::Partial(part, wait) => {
                    prop_assert!(!demand.starts() && *part > 0 && *part < demand.ranks);
                    prop_assert_eq!(wait.lacking, demand.ranks - part);
                    total += part;
                    positions.push((demand.turn(&queue.policy), wait.position));
                }
                Grant::Wait(wait) => {
                    prop_assert_eq!(wait.lacking, demand.ranks);
                    positions.push((demand.turn(&queue.policy), wait.position));
                }
            }
        }
        prop_assert!(total <= free);
        positions.sort_unstable();
        prop_assert!(positions.iter().zip(1..).all(|((_, position), place)| *position == place));
    }
}
