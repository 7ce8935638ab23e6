use proptest::prelude::*;

use super::*;

fn supply(free: usize, connected: usize) -> BTreeMap<String, Supply> {
    [("cpu".to_owned(), Supply { free, connected, excluded: 0 })].into()
}

fn starts(job: &str, ranks: usize) -> Demand {
    Demand { job: job.to_owned(), kind: "cpu".to_owned(), ranks, starts: true, passed_over: true }
}

fn lacks(job: &str, ranks: usize) -> Demand {
    Demand { starts: false, ..starts(job, ranks) }
}

fn reason(grant: &Grant) -> &str {
    match grant {
        Grant::Full => "",
        Grant::Partial(_, wait) | Grant::Wait(wait) => &wait.reason,
    }
}

#[test]
fn a_job_too_large_for_the_cluster_is_passed_over_and_says_so() {
    let grants = allocate(&supply(2, 2), &[starts("typo", 80), starts("small", 2), starts("next", 1)]);
    assert_eq!(reason(&grants[0]), "waiting for 80 cpu devices; the workers connected now have 2");
    assert_eq!(grants[1], Grant::Full);
    assert_eq!(reason(&grants[2]), "waiting for 1 cpu device; 0 of 2 free; second in the queue");
    let patient = Demand { passed_over: false, ..starts("typo", 80) };
    let grants = allocate(&supply(2, 2), &[patient, starts("small", 2)]);
    assert!(matches!(grants[1], Grant::Wait(_)), "workers may be on their way");
}

#[test]
fn a_job_that_fits_blocks_those_behind_it() {
    let grants = allocate(&supply(2, 4), &[starts("large", 3), starts("small", 1)]);
    assert_eq!(reason(&grants[0]), "waiting for 3 cpu devices; 2 of 4 free");
    let kept = "waiting for 1 cpu device; 2 of 4 free, kept for a job before this one; second in the queue";
    assert_eq!(reason(&grants[1]), kept);
}

#[test]
fn a_running_attempt_gets_its_missing_ranks_before_another_starts() {
    let grants = allocate(&supply(1, 4), &[starts("first", 3), lacks("running", 2)]);
    let Grant::Partial(1, wait) = &grants[1] else { panic!("{grants:?}") };
    assert_eq!(wait.reason, "waiting for 1 more cpu device; 0 of 4 free");
    assert!(matches!(grants[0], Grant::Wait(_)));
}

#[test]
fn kinds_do_not_wait_for_each_other() {
    let mut both = supply(0, 1);
    both.insert("cuda".to_owned(), Supply { free: 1, connected: 1, excluded: 8 });
    let cuda = |job: &str, ranks| Demand { kind: "cuda".to_owned(), ..starts(job, ranks) };
    let grants = allocate(&both, &[starts("a", 1), cuda("b", 1), cuda("c", 2)]);
    assert_eq!(grants[1], Grant::Full);
    let expected =
        "waiting for 2 cuda devices; the workers connected now have 1 (and 8 on workers that are excluded)";
    assert_eq!(reason(&grants[2]), expected);
}

fn demands() -> impl Strategy<Value = Vec<Demand>> {
    let demand = (1..9_usize, any::<bool>(), any::<bool>()).prop_map(|(ranks, starts, passed_over)| Demand {
        job: String::new(),
        kind: "cpu".to_owned(),
        ranks,
        starts,
        passed_over,
    });
    proptest::collection::vec(demand, 0..12)
}

proptest! {
    #[test]
    fn no_device_is_allocated_twice_and_no_job_is_overtaken(
        demands in demands(), connected in 0..12_usize, held in 0..12_usize,
    ) {
        let free = connected.saturating_sub(held);
        let grants = allocate(&supply(free, connected), &demands);
        let given = |index: usize| match &grants[index] {
            Grant::Full => demands[index].ranks,
            Grant::Partial(part, _) => *part,
            Grant::Wait(_) => 0,
        };
        let total: usize = (0..demands.len()).map(given).sum();
        prop_assert!(total <= free);
        let mut positions = Vec::new();
        for (index, demand) in demands.iter().enumerate() {
            match &grants[index] {
                Grant::Full => {}
                Grant::Partial(part, wait) => {
                    prop_assert!(!demand.starts && *part > 0 && *part < demand.ranks);
                    positions.push(wait.position);
                }
                Grant::Wait(wait) => {
                    positions.push(wait.position);
                    let wanted = format!("waiting for {} ", demand.ranks);
                    prop_assert!(wait.reason.starts_with(&wanted), "{}", wait.reason);
                }
            }
            let waits = !matches!(grants[index], Grant::Full);
            let in_time = demand.ranks <= connected || !demand.passed_over;
            if demand.starts && waits && in_time {
                for (later, other) in demands.iter().enumerate().skip(index + 1) {
                    prop_assert!(!other.starts || given(later) == 0, "{later} overtook {index}");
                }
            }
        }
        positions.sort_unstable();
        prop_assert!(positions.iter().zip(1..).all(|(position, place)| *position == place));
    }

    /// Each job holds its devices for one turn: every job that fits the cluster runs, whatever else is in the queue.
    #[test]
    fn every_job_that_fits_runs_eventually(ranks in proptest::collection::vec(1..9_usize, 1..12), connected in 1..8_usize) {
        let mut queue: Vec<Demand> = ranks.iter().map(|ranks| starts("", *ranks)).collect();
        for _ in 0..ranks.len() {
            let grants = allocate(&supply(connected, connected), &queue);
            let mut grants = grants.iter();
            queue.retain(|_| grants.next() != Some(&Grant::Full));
        }
        prop_assert!(queue.iter().all(|left| left.ranks > connected), "{queue:?}");
    }
}
