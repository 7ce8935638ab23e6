//! Every named failpoint in turn: a job of its own each.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use foil_common::failpoint::{COORDINATOR_SITES, RANK_SITES};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::follow::Follower;
use super::hosts::Hosts;
use super::storm::judge;
use super::tally::Tally;
use super::world::{Quiet, World, children};
use super::{Args, Sites};

/// For the first checkpoint, and for a job to end.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(args: &Args, hosts: &Hosts, quiet: &Quiet, tally: &mut Tally) -> Result<()> {
    let actions: &[&str] = match args.failpoints {
        Sites::None => &[],
        Sites::Kill => &["kill"],
        Sites::Matrix => &["kill", "error", "delay"],
    };
    let sites = RANK_SITES.into_iter().chain(COORDINATOR_SITES);
    for site in sites.filter(|site| site.starts_with(&args.only)) {
        for action in actions {
            tally.sites += 1;
            let plan = format!("{site}={action}@{}", visit(site));
            if let Err(error) = case(args, hosts, quiet, &plan, tally) {
                tally.failed.push(format!("{plan}: {error:#}"));
            }
        }
    }
    Ok(())
}

/// The visit at which something happens: not the first where a later one says more.
fn visit(site: &str) -> u32 {
    match site {
        "train.forward" | "train.backward" | "train.optimizer" | "checkpoint.upload"
        | "checkpoint.report" => 3,
        "log.append" | "log.appended" => 7,
        "phase.upload" | "phase.report" | "artifact.receive" => 2,
        _ => 1,
    }
}

fn case(args: &Args, hosts: &Hosts, quiet: &Quiet, plan: &str, tally: &mut Tally) -> Result<()> {
    let begun = Instant::now();
    let marker = tempfile::tempdir()?;
    let reached = marker.path().join("reached");
    let environment = [
        ("FOIL_FAILPOINT".to_owned(), plan.to_owned()),
        ("FOIL_FAILPOINT_ONCE".to_owned(), reached.display().to_string()),
    ];
    let mut world = World::start(args, hosts, &plan.replace(['=', '@'], "-"), &environment)?;
    world.revive();
    let follower = Follower::start(world.urls(), world.submit()?);
    if plan.starts_with("checkpoint.download") {
        break_after_checkpoint(&world, &follower)?;
    }
    while follower.verdict().is_none() && begun.elapsed() < 3 * PATIENCE {
        // Also after a site that a coordinator or an agent has died at.
        world.revive();
        thread::sleep(Duration::from_millis(100));
    }
    judge(&world, &follower, quiet, plan, tally)?;
    if reached.exists() {
        tally.reached += 1;
    } else {
        tally.failed.push(format!("{plan}: never reached, so this proves nothing"));
    }
    println!("{plan:40} {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Kills a rank when there is something to go on from.
fn break_after_checkpoint(world: &World, follower: &Follower) -> Result<()> {
    let begun = Instant::now();
    while !follower.has_checkpoint() {
        ensure!(begun.elapsed() < PATIENCE, "there was no checkpoint");
        thread::sleep(Duration::from_millis(5));
    }
    let ranks = children(world.agents[1].process().id());
    ensure!(!ranks.is_empty(), "there was no rank to kill");
    for rank in ranks {
        // One that has ended by itself meanwhile is gone as well.
        let _ = kill(Pid::from_raw(rank), Signal::SIGKILL);
    }
    Ok(())
}
