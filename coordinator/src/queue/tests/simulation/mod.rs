//! Random mixes of jobs on random clusters, driven by [`allocate`] alone: which jobs start, wait or give
//! devices back, and whether the guarantees of the queue hold.
//!
//! Checked at every step: no device is given twice; a job starts with all its devices; nothing starts while a
//! job before it has waited for [`Policy::backfill`] and could run; no device is idle that a job could use,
//! unless it is reserved for a job before it; preemption goes from higher to lower priority, takes no more
//! than it needs, and spares attempts that have only just started; a preempted job does not start again
//! before the job that it made room for. At the end: every job that fits its cluster and its quota has run,
//! and after it became due, it waited no longer than the work before it took.

mod check;

use self::check::Due;
use super::*;
use crate::simulation::rng::SimRng;

const MIXES: u64 = 200;
/// Environment variable with the first seed; a fresh one is printed.
const SEED: &str = "FOIL_QUEUE_SEED";
const STEP: u64 = 5;
/// Time that an attempt takes to end.
const TEARDOWN: u64 = 2 * STEP;
const LIMIT: u64 = 400_000;
const KINDS: [DeviceKind; 2] = [DeviceKind::Cpu, DeviceKind::Cuda];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unsubmitted,
    Waiting { since: u64 },
    Running { since: u64, waited: u64, held: usize, lacks_since: Option<u64> },
    Ending { until: u64, held: usize },
    Done,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    arrival: u64,
    kind: DeviceKind,
    ranks: usize,
    priority: i32,
    tenant: usize,
    /// Remaining seconds of work.
    work: u64,
    stage: Stage,
    /// The job that this one made room for, until that job starts.
    made_room_for: Option<usize>,
    due: Option<Due>,
}

struct World {
    seed: u64,
    now: u64,
    rng: SimRng,
    policy: Policy,
    jobs: Vec<Job>,
    /// Devices, by kind.
    connected: [usize; 2],
    limits: Vec<Share>,
    /// Whether ranks are lost.
    faults: bool,
    starts: usize,
    preemptions: usize,
    yields: usize,
    passes: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng(seed);
        let connected = [1 + rng.below(8), rng.below(6)];
        let tenants = 1 + rng.below(3);
        let limits = (0..tenants).map(|_| limits(&mut rng)).collect();
        let mut jobs: Vec<Job> = (0..6 + rng.below(24)).map(|_| job(&mut rng, tenants, connected)).collect();
        jobs.sort_by_key(|job| job.arrival);
        let faults = rng.one_in(2);
        let policy = Policy::default();
        let (starts, preemptions, yields, passes) = (0, 0, 0, 0);
        Self {
            seed,
            now: 0,
            rng,
            policy,
            jobs,
            connected,
            limits,
            faults,
            starts,
            preemptions,
            yields,
            passes,
        }
    }

    fn play(&mut self) {
        while self.now < LIMIT {
            self.advance();
            let mut queue = self.queue();
            let allocation = allocate(&mut queue);
            self.check(&queue, &allocation);
            self.apply(&queue, &allocation);
            // Devices given to an attempt that gives its own back in the same step are free for the next
            // step.
            if allocation.yields.is_empty() && allocation.preemptions.is_empty() {
                self.check_idle(&queue);
            }
            if (0..self.jobs.len()).all(|job| self.jobs[job].stage == Stage::Done || !self.can_ever_run(job))
            {
                return;
            }
            self.now += STEP;
        }
        let left = self.jobs.iter().enumerate().filter(|(_, job)| job.stage != Stage::Done);
        panic!(
            "seed {}: on {:?}, these never ended: {:#?}",
            self.seed,
            self.connected,
            left.collect::<Vec<_>>()
        );
    }

    /// Advances time: jobs arrive, work, end and lose ranks.
    fn advance(&mut self) {
        let now = self.now;
        for index in 0..self.jobs.len() {
            let job = &mut self.jobs[index];
            match job.stage {
                Stage::Unsubmitted if job.arrival <= now => job.stage = Stage::Waiting { since: now },
                Stage::Ending { until, .. } if until <= now => {
                    job.stage = if job.work == 0 { Stage::Done } else { Stage::Waiting { since: now } };
                }
                Stage::Running { held, lacks_since: None, .. } => {
                    job.work = job.work.saturating_sub(STEP);
                    if job.work == 0 {
                        job.stage = Stage::Ending { until: now + TEARDOWN, held };
                    }
                }
                _ => {}
            }
            if self.faults && now < LIMIT / 20 && self.rng.one_in(200) {
                self.lose_ranks(index);
            }
        }
    }

    /// A job loses some ranks; sometimes their devices are lost too.
    fn lose_ranks(&mut self, index: usize) {
        let lost = 1 + self.rng.below(self.jobs[index].ranks);
        let with_devices = self.rng.one_in(3);
        let job = &mut self.jobs[index];
        let Stage::Running { held, lacks_since, .. } = &mut job.stage else { return };
        let lost = lost.min(*held);
        *held -= lost;
        lacks_since.get_or_insert(self.now);
        // Some devices are left, so that jobs can end.
        let connected = &mut self.connected[job.kind as usize];
        if with_devices && *connected > lost {
            *connected -= lost;
        }
    }

    fn held(&self, kind: DeviceKind, ending: bool) -> usize {
        let held = |job: &&Job| match job.stage {
            Stage::Running { held, .. } if !ending => held,
            Stage::Ending { held, .. } if ending => held,
            _ => 0,
        };
        self.jobs.iter().filter(|job| job.kind == kind).map(|job| held(&job)).sum()
    }

    fn shares(&self) -> Vec<Share> {
        let mut shares = self.limits.clone();
        for job in &self.jobs {
            if matches!(job.stage, Stage::Running { .. } | Stage::Ending { .. }) {
                shares[job.tenant].jobs += 1;
                shares[job.tenant].devices.entry(job.kind).or_default().used += job.ranks;
            }
        }
        shares
    }

    fn queue(&self) -> Queue {
        let seconds = |since: u64| Duration::from_secs(self.now - since);
        let supply = KINDS.map(|kind| {
            let connected = self.connected[kind as usize];
            let releasing = self.held(kind, true);
            let free = connected.saturating_sub(self.held(kind, false) + releasing);
            (kind, vec![Supply { free, releasing, connected, excluded: 0 }])
        });
        let mut queue = Queue { supply: supply.into(), shares: self.shares(), ..Queue::default() };
        for (index, job) in self.jobs.iter().enumerate() {
            let Job { kind, ranks, priority, tenant, .. } = *job;
            let demand = Demand { job: index, tenant, kind, ranks, priority, ..starts(ranks) };
            match job.stage {
                Stage::Waiting { since } => {
                    queue.demands.push(Demand { waited: seconds(since), known: seconds(since), ..demand });
                }
                Stage::Running { since, waited, held, lacks_since } => {
                    let priority = self.policy.aged(priority, Duration::from_secs(waited));
                    queue.running.push(Running {
                        job: index,
                        kind,
                        release: 0,
                        held,
                        priority,
                        ran: seconds(since),
                    });
                    if let Some(since) = lacks_since {
                        let claim = Claim::Replace { held, stalled: true };
                        let (waited, known) = (seconds(since), seconds(since));
                        let release = (held > 0).then_some(0);
                        let lacks = Demand { ranks: ranks - held, release, waited, known, claim, ..demand };
                        queue.demands.push(lacks);
                    }
                }
                Stage::Unsubmitted | Stage::Ending { .. } | Stage::Done => {}
            }
        }
        queue
    }

    fn apply(&mut self, queue: &Queue, allocation: &Allocation) {
        let (now, seed) = (self.now, self.seed);
        for Preemption { job, by } in allocation.preemptions.iter().copied() {
            self.preemptions += 1;
            self.jobs[job].made_room_for = Some(by);
            self.end(job);
        }
        for &job in &allocation.yields {
            self.yields += 1;
            self.end(job);
        }
        let mut started = Vec::new();
        for (demand, grant) in queue.demands.iter().zip(&allocation.grants) {
            let given = match grant {
                Grant::Full => demand.ranks,
                Grant::Partial(given, _) => *given,
                Grant::Wait(_) => 0,
            };
            let job = &mut self.jobs[demand.job];
            match &mut job.stage {
                Stage::Waiting { since } if given > 0 => {
                    let waited = now - *since;
                    job.stage = Stage::Running { since: now, waited, held: given, lacks_since: None };
                    started.push(demand);
                }
                Stage::Running { held, lacks_since, .. } => {
                    *held += given;
                    lacks_since.take_if(|_| *held == job.ranks);
                    if given > 0 {
                        self.room_is_taken(queue, demand);
                    }
                }
                _ => assert!(given == 0 || matches!(job.stage, Stage::Ending { .. }), "seed {seed}"),
            }
        }
        for demand in &started {
            self.room_is_taken(queue, demand);
        }
        for demand in started {
            self.check_start(queue, allocation, demand);
        }
        for demand in &queue.demands {
            self.note_due(queue, demand);
        }
    }

    fn end(&mut self, job: usize) {
        let Stage::Running { held, .. } = self.jobs[job].stage else { panic!("only what runs ends") };
        self.jobs[job].stage = Stage::Ending { until: self.now + TEARDOWN, held };
    }
}

fn limits(rng: &mut SimRng) -> Share {
    let max_jobs = rng.one_in(4).then(|| 1 + rng.below(4));
    let max = rng.one_in(3).then(|| 1 + rng.below(6));
    let portion = Portion { max, ..Portion::default() };
    Share { max_jobs, devices: [(DeviceKind::Cpu, portion)].into(), ..Share::default() }
}

fn job(rng: &mut SimRng, tenants: usize, connected: [usize; 2]) -> Job {
    let kind = if connected[1] > 0 && rng.one_in(3) { DeviceKind::Cuda } else { DeviceKind::Cpu };
    // One job in sixteen may be too large.
    let most = connected[kind as usize] + usize::from(rng.one_in(16));
    Job {
        arrival: STEP * (rng.next() % 800),
        kind,
        ranks: 1 + rng.below(most),
        priority: [-100, 0, 0, 0, 7, 100][rng.below(6)],
        tenant: rng.below(tenants),
        work: STEP * (1 + rng.next() % if rng.one_in(4) { 1000 } else { 60 }),
        stage: Stage::Unsubmitted,
        made_room_for: None,
        due: None,
    }
}

#[test]
fn two_hundred_random_mixes_keep_every_promise() {
    let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let first: u64 = given.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    println!("{SEED}={first} plays these {MIXES} mixes again");
    let (mut starts, mut preemptions, mut yields, mut passes) = (0, 0, 0, 0);
    for seed in first..first + MIXES {
        let mut world = World::new(seed);
        world.play();
        starts += world.starts;
        preemptions += world.preemptions;
        yields += world.yields;
        passes += world.passes;
    }
    println!("{starts} starts, {preemptions} preemptions, {yields} yields, {passes} jobs passed");
    assert!(starts > 1500 && preemptions > 100 && yields > 8 && passes > 10, "the mixes are too tame");
}
