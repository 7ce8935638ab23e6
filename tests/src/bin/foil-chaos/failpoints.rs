//! Triggers every named failpoint in turn, each in a separate job.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use foil_common::failpoint::{COORDINATOR_SITES, RANK_SITES};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cluster::{Baseline, Cluster, children};
use super::hosts::Hosts;
use super::schedule::verify;
use super::summary::Summary;
use super::watcher::Watcher;
use super::{Args, Failpoints};

/// Timeout of the first checkpoint and of a job.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(args: &Args, hosts: &Hosts, baseline: &Baseline, summary: &mut Summary) -> Result<()> {
    let actions: &[&str] = match args.failpoints {
        Failpoints::None => &[],
        Failpoints::Kill => &["kill"],
        Failpoints::Matrix => &["kill", "error", "delay"],
    };
    let sites = RANK_SITES.into_iter().chain(COORDINATOR_SITES);
    for site in sites.filter(|site| site.starts_with(&args.only)) {
        for action in actions {
            summary.cases += 1;
            let plan = format!("{site}={action}@{}", hit_number(site));
            if let Err(error) = case(args, hosts, baseline, &plan, summary) {
                summary.failed.push(format!("{plan}: {error:#}"));
            }
        }
    }
    Ok(())
}

/// The hit at which a failpoint triggers. It is not the first one where a later one tests more.
fn hit_number(site: &str) -> u32 {
    match site {
        "train.forward" | "train.backward" | "train.optimizer" | "checkpoint.upload"
        | "checkpoint.report" => 3,
        "log.append" | "log.appended" => 7,
        "phase.upload" | "phase.report" | "artifact.receive" => 2,
        _ => 1,
    }
}

fn case(args: &Args, hosts: &Hosts, baseline: &Baseline, plan: &str, summary: &mut Summary) -> Result<()> {
    let begun = Instant::now();
    let marker = tempfile::tempdir()?;
    let reached = marker.path().join("reached");
    let environment = [
        ("FOIL_FAILPOINT".to_owned(), plan.to_owned()),
        ("FOIL_FAILPOINT_ONCE".to_owned(), reached.display().to_string()),
    ];
    let mut cluster = Cluster::start(args, hosts, &plan.replace(['=', '@'], "-"), &environment)?;
    cluster.restart_dead();
    let watcher = Watcher::start(cluster.urls(), cluster.submit()?);
    if plan.starts_with("checkpoint.download") {
        kill_ranks_after_checkpoint(&cluster, &watcher)?;
    }
    while watcher.outcome().is_none() && begun.elapsed() < 3 * PATIENCE {
        // A coordinator or an agent may have died at its failpoint.
        cluster.restart_dead();
        thread::sleep(Duration::from_millis(100));
    }
    verify(&cluster, &watcher, baseline, plan, summary)?;
    if reached.exists() {
        summary.reached += 1;
    } else {
        summary.failed.push(format!("{plan}: the failpoint was never reached"));
    }
    println!("{plan:40} {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Kills the ranks of an agent once there is a checkpoint to resume from.
fn kill_ranks_after_checkpoint(cluster: &Cluster, watcher: &Watcher) -> Result<()> {
    let begun = Instant::now();
    while !watcher.has_checkpoint() {
        ensure!(begun.elapsed() < PATIENCE, "there was no checkpoint");
        thread::sleep(Duration::from_millis(5));
    }
    let ranks = children(cluster.agents[1].process().id());
    ensure!(!ranks.is_empty(), "there was no rank to kill");
    for rank in ranks {
        // The rank may have ended by itself in between.
        let _ = kill(Pid::from_raw(rank), Signal::SIGKILL);
    }
    Ok(())
}
