//! Job after job, while one thing after another goes wrong.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use foil_coordinator::job::ATTEMPTS_WITHOUT_COMMIT;

use super::Args;
use super::audit;
use super::follow::{Follower, Verdict};
use super::hosts::Hosts;
use super::tally::Tally;
use super::trouble::Trouble;
use super::world::{Quiet, World};

/// Between the last sign of progress and the next trouble, in milliseconds.
const PAUSES: std::ops::Range<u64> = 200..2500;
/// What was on its way when a process died is no sign that the job goes on.
const ECHO: Duration = Duration::from_millis(300);
/// That may end without a commit before a job is given up.
const ATTEMPTS: u32 = ATTEMPTS_WITHOUT_COMMIT as u32;
/// For a job to go on after a trouble, and for it to end.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) fn run(args: &Args, hosts: &Hosts, quiet: &Quiet, tally: &mut Tally) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let mut world = World::start(args, hosts, "storm", &[])?;
    while tally.troubles() < args.kills {
        let begun = Instant::now();
        let follower = Follower::start(world.urls(), world.submit()?);
        while follower.verdict().is_none() && tally.troubles() < args.kills {
            thread::sleep(Duration::from_millis(random.u64(PAUSES)));
            // A job that is struck once more without progress is rightly ended as a poison job.
            while follower.fruitless_attempts() + 1 >= ATTEMPTS && follower.verdict().is_none() {
                thread::sleep(Duration::from_millis(20));
            }
            if follower.verdict().is_some() {
                break;
            }
            let trouble = Trouble::draw(&mut random, &world);
            let at = Instant::now();
            if !trouble.inflict(&mut world, &mut random)? {
                continue;
            }
            world.revive();
            let recovered = recovery(&follower, at);
            tally.trouble(trouble, recovered);
            let after = match recovered {
                Some(took) => format!("goes on after {:.1} s", took.as_secs_f64()),
                None => "the job ended meanwhile".to_owned(),
            };
            println!("{:4}/{} {:15} {after}", tally.troubles(), args.kills, trouble.name());
        }
        judge(&world, &follower, quiet, "storm", tally)?;
        tally.job(begun.elapsed());
    }
    tally.struck = world.proxy.as_ref().map_or(0, foil_tests::FaultProxy::struck);
    Ok(())
}

/// How long a job stood still; none if it did not go on, or ended at once.
fn recovery(follower: &Follower, at: Instant) -> Option<Duration> {
    let begun = Instant::now();
    loop {
        if let Some(progress) = follower.progress_after(at + ECHO) {
            return Some(progress - at);
        }
        if follower.verdict().is_some() || begun.elapsed() > PATIENCE {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a job's end, and compares it with an undisturbed one.
pub(super) fn judge(
    world: &World,
    follower: &Follower,
    quiet: &Quiet,
    what: &str,
    tally: &mut Tally,
) -> Result<()> {
    let (verdict, live) = follower.finish(PATIENCE + 2 * quiet.took)?;
    let Verdict::Succeeded = verdict else {
        tally.failed.push(format!("{what}: job {} ended as {verdict:?}", follower.job()));
        return Ok(());
    };
    let kept = follower.artifacts()?;
    tally.audit(&audit::audit(&live, &kept, &world.logs("agent"), follower.job()));
    if world.weights(follower.job())? == quiet.weights {
        tally.equal += 1;
    } else {
        tally.failed.push(format!("{what}: the weights of job {} differ", follower.job()));
    }
    Ok(())
}
