//! The guarantees of the queue, checked at each step.

use std::collections::BTreeSet;

use super::*;

/// The time from which nothing behind a job may start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    pub(super) at: u64,
    /// Upper bound on the time until the work before the job is done.
    pub(super) bound: u64,
}

impl World {
    /// Checks a decision before it is carried out.
    pub(super) fn check(&self, queue: &Queue, allocation: &Allocation) {
        let seed = self.seed;
        let mut given = [0; 2];
        for (demand, grant) in queue.demands.iter().zip(&allocation.grants) {
            match grant {
                Grant::Full => given[demand.kind as usize] += demand.ranks,
                Grant::Partial(part, _) => {
                    assert!(!demand.starts(), "seed {seed}: a job starts with a part of its devices");
                    given[demand.kind as usize] += part;
                }
                Grant::Wait(_) => {}
            }
        }
        for kind in KINDS {
            assert!(
                given[kind as usize] <= queue.supply[&kind][0].free,
                "seed {seed}: a device is given twice"
            );
        }
        let mut victims = BTreeSet::new();
        for preemption in &allocation.preemptions {
            assert!(victims.insert(preemption.job), "seed {seed}: preempted twice");
            self.check_preemption(queue, *preemption, allocation);
        }
    }

    fn check_preemption(&self, queue: &Queue, preemption: Preemption, allocation: &Allocation) {
        let seed = self.seed;
        let victim = queue.running.iter().find(|running| running.job == preemption.job).unwrap();
        let at = queue.demands.iter().position(|demand| demand.job == preemption.by).unwrap();
        let by = &queue.demands[at];
        assert!(victim.priority < i64::from(by.priority), "seed {seed}: {preemption:?} of no lower priority");
        assert!(victim.ran >= self.policy.preempt_exempt, "seed {seed}: {preemption:?} thrashes");
        let of_same = allocation.preemptions.iter().filter(|other| other.by == preemption.by);
        let held = |job: usize| queue.running.iter().find(|running| running.job == job).unwrap().held;
        let taken: usize = of_same.map(|other| held(other.job)).sum();
        let (Grant::Wait(wait) | Grant::Partial(_, wait)) = &allocation.grants[at] else {
            panic!("seed {seed}: {preemption:?} for a job that waits for nothing");
        };
        assert!(taken - victim.held < wait.lacking, "seed {seed}: {preemption:?} is not needed");
    }

    /// Checks a start against the jobs before it that keep waiting.
    pub(super) fn check_start(&mut self, queue: &Queue, allocation: &Allocation, started: &Demand) {
        let (seed, now) = (self.seed, self.now);
        self.starts += 1;
        let shares = self.shares();
        for (demand, grant) in queue.demands.iter().zip(&allocation.grants) {
            let is_before =
                demand.kind == started.kind && demand.turn(&self.policy) < started.turn(&self.policy);
            if !is_before
                || *grant == Grant::Full
                || !self.could_run(demand, &shares)
                || self.is_kept_by_quota(queue, demand, &shares)
            {
                continue;
            }
            let waited = demand.waited;
            assert!(waited < self.policy.backfill, "seed {seed}: at {now} {started:?} passes {demand:?}");
            self.passes += 1;
        }
        let job = &mut self.jobs[started.job];
        if let Some(due) = job.due.take()
            && !self.faults
        {
            let (waited, bound) = (now - due.at, due.bound);
            assert!(
                waited <= bound,
                "seed {seed}: {started:?} was due {waited} s ago, and its bound is {bound} s"
            );
        }
        let waits_on = job.made_room_for.take().filter(|by| {
            let waits = matches!(self.jobs[*by].stage, Stage::Waiting { .. });
            let by = queue.demands.iter().find(|demand| demand.job == *by);
            let could =
                |by: &Demand| self.could_run(by, &shares) && !self.is_kept_by_quota(queue, by, &shares);
            waits && by.is_some_and(could)
        });
        assert_eq!(waits_on, None, "seed {seed}: {started:?} takes back the devices it gave up");
    }

    /// Records that the room made by preempted jobs was taken, by the job that it was made for or by one
    /// before it.
    pub(super) fn room_is_taken(&mut self, queue: &Queue, taker: &Demand) {
        let turn = |job: usize| {
            queue.demands.iter().find(|other| other.job == job).map(|other| other.turn(&self.policy))
        };
        let by = taker.turn(&self.policy);
        for other in &mut self.jobs {
            other.made_room_for.take_if(|room| turn(*room).is_none_or(|turn| by <= turn));
        }
    }

    /// True if the job fits into the cluster and its tenant's quota, apart from what others use.
    fn could_run(&self, demand: &Demand, shares: &[Share]) -> bool {
        let share = &shares[demand.tenant];
        let portion = share.devices.get(&demand.kind).copied().unwrap_or_default();
        demand.ranks <= self.connected[demand.kind as usize]
            && share.max_jobs.is_none_or(|max| share.jobs < max)
            && portion.max.is_none_or(|max| portion.used + demand.ranks <= max)
    }

    /// True if the rest of the tenant's quota is reserved for a job before this one.
    fn is_kept_by_quota(&self, queue: &Queue, demand: &Demand, shares: &[Share]) -> bool {
        queue.demands.iter().any(|other| {
            let waits = matches!(self.jobs[other.job].stage, Stage::Waiting { .. });
            let is_before = other.turn(&self.policy) < demand.turn(&self.policy);
            let of_same = other.tenant == demand.tenant && other.kind == demand.kind;
            let is_due = other.waited >= self.policy.backfill;
            waits && is_before && of_same && is_due && other.starts() && !self.could_run(other, shares)
        })
    }

    pub(super) fn can_ever_run(&self, job: usize) -> bool {
        let limits = &self.limits[self.jobs[job].tenant];
        let empty: Vec<Share> = self.limits.iter().map(|_| limits.clone()).collect();
        self.could_run(&self.demand(job), &empty)
    }

    fn demand(&self, job: usize) -> Demand {
        let Job { kind, ranks, priority, tenant, .. } = self.jobs[job];
        Demand { job, tenant, kind, ranks, priority, ..starts(ranks) }
    }

    /// Checks that a device is idle only if no waiting job could use it, or if it is reserved for a job
    /// before that one.
    pub(super) fn check_idle(&self, queue: &Queue) {
        let shares = self.shares();
        for demand in queue.demands.iter().filter(|demand| demand.starts()) {
            let is_waiting = matches!(self.jobs[demand.job].stage, Stage::Waiting { .. });
            let held = self.held(demand.kind, false) + self.held(demand.kind, true);
            let free = self.connected[demand.kind as usize].saturating_sub(held);
            if !is_waiting || demand.ranks > free || !self.could_run(demand, &shares) {
                continue;
            }
            let releasing = self.held(demand.kind, true);
            let keeps = |other: &&Demand| {
                let is_before = other.turn(&self.policy) < demand.turn(&self.policy);
                let waits = matches!(self.jobs[other.job].stage, Stage::Waiting { .. });
                let is_new = other.known < self.policy.settling;
                let is_due = other.waited >= self.policy.backfill;
                is_before
                    && waits
                    && (is_new || is_due || other.ranks <= free + releasing)
                    && (other.kind == demand.kind || other.tenant == demand.tenant)
            };
            let kept = queue.demands.iter().any(|other| keeps(&other));
            assert!(
                kept,
                "seed {}: at {} {free} devices are idle, and {demand:?} waits",
                self.seed, self.now
            );
        }
    }

    /// Records when a job becomes due, and how much work is before it.
    pub(super) fn note_due(&mut self, queue: &Queue, demand: &Demand) {
        let job = self.jobs[demand.job];
        let waits = matches!(job.stage, Stage::Waiting { .. });
        if !waits || job.due.is_some() || demand.waited < self.policy.backfill {
            return;
        }
        // The work that is running or yet to arrive and the work that waits before the job, done
        // sequentially; all work if its tenant's quota may delay the job.
        let share = &self.limits[job.tenant];
        let is_limited =
            share.max_jobs.is_some() || share.devices.values().any(|portion| portion.max.is_some());
        let is_behind = |other: &&Demand| other.turn(&self.policy) > demand.turn(&self.policy);
        let behind = queue.demands.iter().filter(|other| !is_limited && is_behind(other));
        let behind: BTreeSet<usize> = behind.filter(|other| other.starts()).map(|other| other.job).collect();
        let before = (0..self.jobs.len()).filter(|at| *at != demand.job && !behind.contains(at));
        let work: u64 = before.map(|at| self.jobs[at].work).sum();
        let last = self.jobs.iter().map(|job| job.arrival).max().unwrap_or(0);
        let attempts = 4 * self.jobs.len() as u64;
        let overhead = attempts * (TEARDOWN + 2 * STEP);
        let bound = work + overhead + last.saturating_sub(self.now);
        self.jobs[demand.job].due = Some(Due { at: self.now, bound });
    }
}
