//! Preemption: running jobs give their devices to a waiting job of higher priority.
//!
//! Attempts of the lowest priority are preempted first; within a priority as few as possible, preferring the
//! youngest. An attempt is protected by the priority that its job had when it started, age included: a job
//! that has become urgent by waiting keeps what it got. The waiting job's own age does not count. So A
//! preempts B only if A's priority is above B's, and no two jobs preempt each other in turn.

use std::time::Duration;

use foil_common::spec::DeviceKind;

use super::{Allocation, Claim, Demand, Grant, PoolId, Queue, Supply, WaitCause};

/// An attempt whose devices another job may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    pub job: usize,
    pub kind: DeviceKind,
    /// Index of its ranks' release, among the supplies of its kind.
    pub release: usize,
    /// Number of devices on non-excluded workers.
    pub held: usize,
    /// Priority of the job, including its age, when the attempt started.
    pub priority: i64,
    /// Time since the attempt started.
    pub ran: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preemption {
    /// The job whose attempt ends.
    pub job: usize,
    /// The job that takes its devices.
    pub by: usize,
}

/// Preempts running attempts for the waiting jobs of one pool, which `turns` lists in order; `supply` is what
/// remains for them.
pub(super) fn preempt(
    queue: &Queue,
    pool: PoolId,
    supply: Supply,
    turns: &[usize],
    allocation: &mut Allocation,
) {
    let mut coming = supply.free + supply.releasing;
    let mut chosen: Vec<Running> = Vec::new();
    for &index in turns {
        let demand = &queue.demands[index];
        let Some((lacking, cause)) = lack(&mut allocation.grants[index]) else { continue };
        if lacking > coming {
            let victims = victims(queue, pool, demand, lacking - coming, &chosen);
            if victims.is_empty() {
                match demand.claim {
                    // They get whatever becomes free before all others.
                    Claim::Replace { .. } => coming = 0,
                    // Jobs behind it must not overtake it by preempting others.
                    Claim::Start if demand.reserves(&queue.policy, true) => return,
                    Claim::Start => {}
                }
                continue;
            }
            coming += victims.iter().map(|victim| victim.held).sum::<usize>();
            let preemption = |victim: &Running| Preemption { job: victim.job, by: demand.job };
            allocation.preemptions.extend(victims.iter().map(preemption));
            chosen.extend(victims);
        }
        coming -= lacking;
        *cause = WaitCause::Coming;
    }
}

/// The number of devices that a job could get from others, and its wait cause.
fn lack(grant: &mut Grant) -> Option<(usize, &mut WaitCause)> {
    match grant {
        Grant::Partial(_, wait) | Grant::Wait(wait)
            if matches!(wait.cause, WaitCause::Devices | WaitCause::Kept) =>
        {
            Some((wait.lacking, &mut wait.cause))
        }
        _ => None,
    }
}

/// The attempts that together release at least `need` devices for a job; none if those that may be preempted
/// hold too few.
fn victims(queue: &Queue, pool: PoolId, demand: &Demand, need: usize, chosen: &[Running]) -> Vec<Running> {
    let is_idle_without = !matches!(demand.claim, Claim::Replace { stalled: false, .. });
    if demand.known < queue.policy.settling || !is_idle_without {
        return Vec::new();
    }
    let may = |running: &&Running| {
        (PoolId { kind: running.kind, release: running.release }) == pool
            && running.job != demand.job
            && running.held > 0
            && running.priority < i64::from(demand.priority)
            && running.ran >= queue.policy.preempt_exempt
            && !chosen.contains(running)
    };
    let mut candidates: Vec<Running> = queue.running.iter().filter(may).copied().collect();
    // Within a priority the largest attempt goes first, so that few are preempted.
    candidates.sort_by_key(|running| (running.priority, usize::MAX - running.held, running.ran, running.job));
    let (mut taken, mut held) = (Vec::new(), 0);
    for (at, candidate) in candidates.iter().enumerate() {
        if held >= need {
            break;
        }
        // The youngest attempt that alone suffices for the rest.
        let suffice = candidates[at..].iter().filter(|other| other.priority == candidate.priority);
        let last =
            suffice.filter(|other| held + other.held >= need).min_by_key(|other| (other.ran, other.job));
        let next = *last.unwrap_or(candidate);
        held += next.held;
        taken.push(next);
    }
    if held < need {
        return Vec::new();
    }
    spare(&mut taken, held - need);
    taken
}

/// Drops unneeded victims, highest priority first, as long as their devices fit into `surplus`.
fn spare(taken: &mut Vec<Running>, mut surplus: usize) {
    taken.sort_by_key(|running| (-running.priority, running.held, running.ran));
    taken.retain(|running| {
        let spared = running.held <= surplus;
        surplus -= if spared { running.held } else { 0 };
        !spared
    });
}
