//! Failpoints, for tests of recovery: `FOIL_FAILPOINT="train.optimizer=kill@3"` makes the process SIGKILL
//! itself when it passes the site `train.optimizer` for the third time.
//!
//! Several are separated by commas; `@*` acts at every hit. Actions: `kill` (SIGKILL), `crash` (SIGSEGV),
//! `stop` (SIGSTOP: a hang), `panic`, `exhaust` (an allocation larger than any memory, which aborts the
//! process), `error` (the operation fails with [`Injected`]) and `delay` (the thread sleeps for two seconds).
//! With `FOIL_FAILPOINT_ONCE=PATH` only the process that creates that file acts. If the variable is not set,
//! a site costs one load.

#![expect(clippy::disallowed_methods, reason = "the action `delay` sleeps")]

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

const PLAN: &str = "FOIL_FAILPOINT";
const ONCE: &str = "FOIL_FAILPOINT_ONCE";

/// Duration of `delay`.
const DELAY: Duration = Duration::from_secs(2);

/// Sites of rank processes.
pub const RANK_SITES: [&str; 15] = [
    "rank.start",
    "phase.load",
    "phase.generate",
    "phase.score",
    "phase.ref_log_probs",
    "phase.evaluate",
    "gang.join",
    "train.forward",
    "train.backward",
    "train.optimizer",
    "checkpoint.upload",
    "checkpoint.report",
    "checkpoint.download",
    "phase.upload",
    "phase.report",
];

/// Sites of coordinators.
pub const COORDINATOR_SITES: [&str; 5] =
    ["leader.elected", "log.append", "log.appended", "log.compact", "artifact.receive"];

/// All sites; a plan that names another is refused at startup.
fn sites() -> impl Iterator<Item = &'static str> {
    RANK_SITES.into_iter().chain(COORDINATOR_SITES)
}

static FAILPOINTS: OnceLock<Vec<Failpoint>> = OnceLock::new();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Crash,
    Stop,
    Panic,
    Exhaust,
    Error,
    Delay,
}

#[derive(Debug)]
struct Failpoint {
    site: String,
    action: Action,
    /// The hit that acts, from 1; `None` for every hit.
    at: Option<u64>,
    hits: AtomicU64,
    once: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{PLAN}: `{found}` is not of the form SITE=ACTION@N or SITE=ACTION@*; sites: {}; actions: kill, crash, stop, panic, exhaust, error, delay", sites().collect::<Vec<_>>().join(", "))]
pub struct FailpointError {
    found: String,
}

/// The error of an operation at which `error` acts.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("injected failure at failpoint {site}")]
pub struct Injected {
    pub site: &'static str,
}

/// Reads the plan from the environment. Call it once, before any site is passed.
pub fn init() -> Result<(), FailpointError> {
    let plan = std::env::var(PLAN).unwrap_or_default();
    let once = std::env::var_os(ONCE).map(PathBuf::from);
    let failpoints = parse(&plan, once.as_ref())?;
    for failpoint in &failpoints {
        tracing::warn!(site = failpoint.site, at = ?failpoint.at, action = ?failpoint.action, "failpoint armed");
    }
    // A second call keeps the first plan.
    let _ = FAILPOINTS.set(failpoints);
    Ok(())
}

/// Passes a site.
///
/// # Errors
/// [`Injected`] if `error` acts here; never without a plan.
pub fn hit(site: &'static str) -> Result<(), Injected> {
    let Some(failpoints) = FAILPOINTS.get() else { return Ok(()) };
    failpoints.iter().filter(|failpoint| failpoint.site == site).try_for_each(|failpoint| failpoint.hit(site))
}

impl Failpoint {
    fn hit(&self, site: &'static str) -> Result<(), Injected> {
        let hit = self.hits.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::warn!(site, hit, "failpoint hit");
        if self.at.is_some_and(|at| at != hit) || !self.claims() {
            return Ok(());
        }
        tracing::warn!(site, hit, action = ?self.action, "failpoint triggered");
        match self.action {
            Action::Kill => drop(raise(Signal::SIGKILL)),
            // Rust's own handler takes the first one for a stack overflow and uninstalls itself.
            Action::Crash => {
                let _ = raise(Signal::SIGSEGV).and_then(|()| raise(Signal::SIGSEGV));
            }
            Action::Stop => drop(raise(Signal::SIGSTOP)),
            Action::Panic => panic!("failpoint {site} hit {hit} times"),
            Action::Exhaust => drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 62))),
            Action::Error => return Err(Injected { site }),
            Action::Delay => std::thread::sleep(DELAY),
        }
        Ok(())
    }

    /// Whether this process may act: with `FOIL_FAILPOINT_ONCE`, only the one that creates the file.
    fn claims(&self) -> bool {
        self.once
            .as_ref()
            .is_none_or(|marker| OpenOptions::new().write(true).create_new(true).open(marker).is_ok())
    }
}

fn parse(plan: &str, once: Option<&PathBuf>) -> Result<Vec<Failpoint>, FailpointError> {
    plan.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| parse_one(part, once).ok_or_else(|| FailpointError { found: part.to_owned() }))
        .collect()
}

fn parse_one(part: &str, once: Option<&PathBuf>) -> Option<Failpoint> {
    let (site, rest) = part.split_once('=')?;
    let (action, at) = rest.split_once('@')?;
    let action = match action {
        "kill" => Action::Kill,
        "crash" => Action::Crash,
        "stop" => Action::Stop,
        "panic" => Action::Panic,
        "exhaust" => Action::Exhaust,
        "error" => Action::Error,
        "delay" => Action::Delay,
        _ => return None,
    };
    let at = match at {
        "*" => None,
        at => Some(at.parse().ok().filter(|&at| at > 0)?),
    };
    sites().any(|known| known == site).then(|| Failpoint {
        site: site.to_owned(),
        action,
        at,
        hits: AtomicU64::new(0),
        once: once.cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_sites_actions_and_hits() {
        let plan = parse("phase.load=kill@1, train.optimizer=panic@3, log.append=delay@*", None).unwrap();
        let read: Vec<_> = plan.iter().map(|one| (one.site.as_str(), one.action, one.at)).collect();
        let expected = [
            ("phase.load", Action::Kill, Some(1)),
            ("train.optimizer", Action::Panic, Some(3)),
            ("log.append", Action::Delay, None),
        ];
        assert_eq!(read, expected);
        assert!(parse("", None).unwrap().is_empty());
        for wrong in
            ["phase.load", "phase.load=kill", "phase.load=kill@0", "nowhere=kill@1", "phase.load=nap@1"]
        {
            assert!(parse(wrong, None).unwrap_err().to_string().contains(wrong));
        }
    }

    #[test]
    fn acts_at_the_planned_hit_and_only_if_it_claims_the_marker() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("fired");
        let plan = parse("phase.load=error@2", Some(&marker)).unwrap();
        plan[0].hit("phase.load").unwrap();
        assert_eq!(plan[0].hit("phase.load"), Err(Injected { site: "phase.load" }));
        plan[0].hit("phase.load").unwrap();
        let again = parse("phase.load=error@1", Some(&marker)).unwrap();
        again[0].hit("phase.load").unwrap();
        assert_eq!(again[0].hits.load(Ordering::Relaxed), 1);
        let always = parse("phase.load=error@*", None).unwrap();
        assert!((0..3).all(|_| always[0].hit("phase.load").is_err()));
    }
}
