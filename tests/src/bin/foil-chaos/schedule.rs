//! A random schedule of faults over a sequence of jobs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use foil_common::spec::Scheduling;

use super::Args;
use super::audit;
use super::cluster::{Baseline, Cluster};
use super::fault::Fault;
use super::hosts::Hosts;
use super::summary::Summary;
use super::watcher::{JobOutcome, Watcher};

/// Range of pauses before the next fault, in milliseconds.
const PAUSES: std::ops::Range<u64> = 200..2500;
/// Events this soon after a fault were in flight before it and do not count as progress.
const IN_FLIGHT: Duration = Duration::from_millis(300);
/// Number of attempts without a commit after which a job fails.
const ATTEMPTS: u32 = Scheduling::RETRIES + 1;
/// Timeout of recovery and of a job.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) fn run(args: &Args, hosts: &Hosts, baseline: &Baseline, summary: &mut Summary) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let mut cluster = Cluster::start(args, hosts, "schedule", &[])?;
    while summary.faults() < args.kills {
        let begun = Instant::now();
        let watcher = Watcher::start(cluster.urls(), cluster.submit()?);
        while watcher.outcome().is_none() && summary.faults() < args.kills {
            thread::sleep(Duration::from_millis(random.u64(PAUSES)));
            // Without progress, another fault would correctly fail the job as a poison job.
            while watcher.attempts_since_commit() + 1 >= ATTEMPTS && watcher.outcome().is_none() {
                thread::sleep(Duration::from_millis(20));
            }
            if watcher.outcome().is_some() {
                break;
            }
            let fault = Fault::random(&mut random, &cluster);
            let at = Instant::now();
            if !fault.inject(&mut cluster, &mut random)? {
                continue;
            }
            cluster.restart_dead();
            let recovered = recovery(&watcher, at);
            summary.fault(fault, recovered);
            let after = match recovered {
                Some(took) => format!("recovered after {:.1} s", took.as_secs_f64()),
                None => "the job ended meanwhile".to_owned(),
            };
            println!("{:4}/{} {:15} {after}", summary.faults(), args.kills, fault.name());
        }
        verify(&cluster, &watcher, baseline, "schedule", summary)?;
        summary.job(begun.elapsed());
    }
    summary.store_requests_failed = cluster.proxy.as_ref().map_or(0, foil_tests::FaultProxy::failed);
    Ok(())
}

/// Time until the job made progress; `None` if it ended or did not recover.
fn recovery(watcher: &Watcher, at: Instant) -> Option<Duration> {
    let begun = Instant::now();
    loop {
        if let Some(progress) = watcher.progress_after(at + IN_FLIGHT) {
            return Some(progress - at);
        }
        if watcher.outcome().is_some() || begun.elapsed() > PATIENCE {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a job to end, and compares its weights with the baseline.
pub(super) fn verify(
    cluster: &Cluster,
    watcher: &Watcher,
    baseline: &Baseline,
    what: &str,
    summary: &mut Summary,
) -> Result<()> {
    let (outcome, live) = watcher.finish(PATIENCE + 2 * baseline.took)?;
    let JobOutcome::Succeeded = outcome else {
        summary.failed.push(format!("{what}: job {} ended as {outcome:?}", watcher.job()));
        return Ok(());
    };
    let kept = watcher.artifacts()?;
    summary.audit(&audit::audit(&live, &kept, &cluster.logs("agent"), watcher.job()));
    if cluster.weights(watcher.job())? == baseline.weights {
        summary.equal += 1;
    } else {
        summary.failed.push(format!("{what}: the weights of job {} differ", watcher.job()));
    }
    Ok(())
}
