use super::*;
use crate::tenant::Quota;

fn job(request_id: &str, ranks: u32, tenant: &str) -> Submitted {
    let mut submitted = Submitted { request_id: request_id.into(), tenant: tenant.into(), ..submitted(&[]) };
    submitted.spec.get_or_insert_default().resources.get_or_insert_default().ranks = Some(ranks);
    submitted
}

fn reason(simulator: &Simulator, id: &str) -> String {
    simulator.core.job_view(id).unwrap().waiting.map(|waiting| waiting.reason).unwrap_or_default()
}

fn cpus(max: u32) -> Quota {
    Quota { devices: [("cpu".to_owned(), max)].into(), ..Quota::default() }
}

fn set(simulator: &mut Simulator, tenant: &str, quota: Quota) {
    simulator.core.set_quota(tenant, quota, simulator.now);
    simulator.flush();
}

#[test]
fn a_quota_holds_across_failovers_and_snapshots() {
    let mut simulator = Simulator::new(6);
    set(&mut simulator, "research", cpus(9));
    set(&mut simulator, "research", cpus(1));
    while simulator.state().committed.is_empty() {
        simulator.step();
    }
    simulator.core.submit("two", job("r2", 2, "research"), simulator.now);
    simulator.core.submit("one", job("r3", 1, "research"), simulator.now);
    simulator.flush();
    simulator.restart();
    // A snapshot keeps the last quota only.
    simulator.log = compact_events(std::mem::take(&mut simulator.log));
    let quotas = simulator.log.iter().filter(|event| matches!(event.change, Change::QuotaSet(_)));
    assert_eq!(quotas.count(), 1);
    simulator.restart();
    assert_eq!(simulator.core.tenant("research").quota, cpus(1));
    while simulator.core.state("one").unwrap().committed.is_empty() {
        simulator.step();
    }
    let too_large = "waiting for 2 cpu devices; tenant research may use 1 cpu device at once";
    assert_eq!(reason(&simulator, "two"), too_large);
    simulator.core.submit("more", job("r4", 1, "research"), simulator.now);
    simulator.core.tick(simulator.now);
    let full = "waiting for 1 cpu device; tenant research uses 1 of its 1 cpu device; second in the queue";
    assert_eq!(reason(&simulator, "more"), full);
    let usage = simulator.core.tenant("research").usage;
    assert_eq!((usage.running_jobs, usage.queued_jobs, usage.devices["cpu"]), (1, 2, 1));
    set(&mut simulator, "research", cpus(4));
    for _ in 0..100_000 {
        if ["one", "two", "more"].iter().all(|id| simulator.core.state(id).unwrap().is_ended()) {
            break;
        }
        simulator.step();
    }
    for id in ["one", "two", "more"] {
        assert_eq!(simulator.core.state(id).unwrap().status.name(), "succeeded", "{id}");
    }
}

#[test]
fn submissions_are_refused_over_the_limits_of_their_own_tenant_only() {
    let mut simulator = Simulator::new(6);
    let queued = Quota { queued_jobs: Some(1), ..Quota::default() };
    set(&mut simulator, "research", queued);
    let check = |simulator: &Simulator, tenant: &str| {
        simulator.core.check_submission(tenant).map_err(|exceeded| exceeded.limit())
    };
    assert_eq!(check(&simulator, "research"), Ok(()));
    simulator.core.submit("waits", job("r2", 80, "research"), simulator.now);
    assert_eq!(check(&simulator, "research"), Err("queued_jobs"));
    assert_eq!(check(&simulator, "default"), Ok(()));
    simulator.core.cancel("waits", simulator.now);
    assert_eq!(check(&simulator, "research"), Ok(()), "a canceled job stops waiting");

    // Objects that two jobs share count once.
    let stored = simulator.core.tenant("research").usage.stored_bytes;
    simulator.core.submit("again", job("r3", 80, "research"), simulator.now);
    assert_eq!(simulator.core.tenant("research").usage.stored_bytes, stored);
    assert!(stored > 0);
    set(&mut simulator, "research", Quota { stored_bytes: Some(stored), ..Quota::default() });
    assert_eq!(check(&simulator, "research"), Err("stored_bytes"));
    set(&mut simulator, "research", Quota { stored_bytes: Some(stored + 1), ..Quota::default() });
    assert_eq!(check(&simulator, "research"), Ok(()));
    let names: Vec<String> =
        simulator.core.tenants_after("", 9).into_iter().map(|tenant| tenant.name).collect();
    assert_eq!(names, ["default", "research"]);
    assert_eq!(simulator.core.tenants_after("default", 9).len(), 1);
}

#[test]
fn what_a_job_writes_counts_for_its_tenant() {
    let mut simulator = Simulator::new(6);
    let before = simulator.core.tenant("default").usage.stored_bytes;
    while simulator.state().committed.len() < 3 {
        simulator.step();
    }
    let after = simulator.core.tenant("default").usage;
    assert!(after.stored_bytes >= before + 3, "{before} bytes, then {after:?}");
    assert_eq!((after.running_jobs, after.devices["cpu"]), (1, 2));
}
