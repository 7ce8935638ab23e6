use proptest::prelude::*;

use super::*;

fn supply(free: usize, connected: usize) -> BTreeMap<String, Supply> {
    [("cpu".to_owned(), Supply { free, connected, set_aside: 0 })].into()
}

fn starts(job: &str, seats: usize) -> Demand {
    Demand { job: job.to_owned(), kind: "cpu".to_owned(), seats, starts: true, passed_over: true }
}

fn lacks(job: &str, seats: usize) -> Demand {
    Demand { starts: false, ..starts(job, seats) }
}

fn reason(grant: &Grant) -> &str {
    match grant {
        Grant::Whole => "",
        Grant::Part(_, wait) | Grant::Wait(wait) => &wait.reason,
    }
}

#[test]
fn a_job_too_large_for_the_cluster_is_passed_over_and_says_so() {
    let grants = share(&supply(2, 2), &[starts("typo", 80), starts("small", 2), starts("next", 1)]);
    assert_eq!(reason(&grants[0]), "waiting for 80 cpu devices; the workers connected now have 2");
    assert_eq!(grants[1], Grant::Whole);
    assert_eq!(reason(&grants[2]), "waiting for 1 cpu device; 0 of 2 free; second in the queue");
    let patient = Demand { passed_over: false, ..starts("typo", 80) };
    let grants = share(&supply(2, 2), &[patient, starts("small", 2)]);
    assert!(matches!(grants[1], Grant::Wait(_)), "workers may be on their way");
}

#[test]
fn a_job_that_can_be_served_in_time_keeps_those_behind_it_waiting() {
    let grants = share(&supply(2, 4), &[starts("large", 3), starts("small", 1)]);
    assert_eq!(reason(&grants[0]), "waiting for 3 cpu devices; 2 of 4 free");
    let kept = "waiting for 1 cpu device; 2 of 4 free, kept for a job before this one; second in the queue";
    assert_eq!(reason(&grants[1]), kept);
}

#[test]
fn a_running_attempt_is_made_whole_before_another_begins() {
    let grants = share(&supply(1, 4), &[starts("first", 3), lacks("running", 2)]);
    let Grant::Part(1, wait) = &grants[1] else { panic!("{grants:?}") };
    assert_eq!(wait.reason, "waiting for 1 more cpu device; 0 of 4 free");
    assert!(matches!(grants[0], Grant::Wait(_)));
}

#[test]
fn kinds_do_not_wait_for_each_other() {
    let mut both = supply(0, 1);
    both.insert("cuda".to_owned(), Supply { free: 1, connected: 1, set_aside: 8 });
    let cuda = |job: &str, seats| Demand { kind: "cuda".to_owned(), ..starts(job, seats) };
    let grants = share(&both, &[starts("a", 1), cuda("b", 1), cuda("c", 2)]);
    assert_eq!(grants[1], Grant::Whole);
    let expected =
        "waiting for 2 cuda devices; the workers connected now have 1 (and 8 on workers that are set aside)";
    assert_eq!(reason(&grants[2]), expected);
}

fn demands() -> impl Strategy<Value = Vec<Demand>> {
    let demand = (1..9_usize, any::<bool>(), any::<bool>()).prop_map(|(seats, starts, passed_over)| Demand {
        job: String::new(),
        kind: "cpu".to_owned(),
        seats,
        starts,
        passed_over,
    });
    proptest::collection::vec(demand, 0..12)
}

proptest! {
    #[test]
    fn nothing_is_given_twice_and_nobody_is_overtaken(
        demands in demands(), connected in 0..12_usize, held in 0..12_usize,
    ) {
        let free = connected.saturating_sub(held);
        let grants = share(&supply(free, connected), &demands);
        let given = |index: usize| match &grants[index] {
            Grant::Whole => demands[index].seats,
            Grant::Part(part, _) => *part,
            Grant::Wait(_) => 0,
        };
        let total: usize = (0..demands.len()).map(given).sum();
        prop_assert!(total <= free);
        let mut positions = Vec::new();
        for (index, demand) in demands.iter().enumerate() {
            match &grants[index] {
                Grant::Whole => {}
                Grant::Part(part, wait) => {
                    prop_assert!(!demand.starts && *part > 0 && *part < demand.seats);
                    positions.push(wait.position);
                }
                Grant::Wait(wait) => {
                    positions.push(wait.position);
                    let wanted = format!("waiting for {} ", demand.seats);
                    prop_assert!(wait.reason.starts_with(&wanted), "{}", wait.reason);
                }
            }
            let waits = !matches!(grants[index], Grant::Whole);
            let in_time = demand.seats <= connected || !demand.passed_over;
            if demand.starts && waits && in_time {
                for (later, other) in demands.iter().enumerate().skip(index + 1) {
                    prop_assert!(!other.starts || given(later) == 0, "{later} overtook {index}");
                }
            }
        }
        positions.sort_unstable();
        prop_assert!(positions.iter().zip(1..).all(|(position, place)| *position == place));
    }

    /// Jobs hold what they got for a turn each: all that fit the cluster are served, whatever else is in the queue.
    #[test]
    fn every_job_that_fits_is_served_in_the_end(seats in proptest::collection::vec(1..9_usize, 1..12), connected in 1..8_usize) {
        let mut queue: Vec<Demand> = seats.iter().map(|seats| starts("", *seats)).collect();
        for _ in 0..seats.len() {
            let grants = share(&supply(connected, connected), &queue);
            let mut grants = grants.iter();
            queue.retain(|_| grants.next() != Some(&Grant::Whole));
        }
        prop_assert!(queue.iter().all(|left| left.seats > connected), "{queue:?}");
    }
}
