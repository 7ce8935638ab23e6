//! The summary of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Args;
use super::audit::Findings;
use super::fault::Fault;

#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) baseline_time: Duration,
    /// Recovery times by fault; `None` if the job ended before it recovered or did not recover.
    faults: BTreeMap<Fault, Vec<Option<Duration>>>,
    jobs: u32,
    disturbed: Duration,
    /// Jobs that ended with the weights of the baseline.
    pub(crate) equal: u32,
    /// Number of requests to the store that failed because of an injected fault.
    pub(crate) store_requests_failed: u64,
    commits: usize,
    steps: usize,
    replayed: usize,
    lost: Vec<String>,
    twice: Vec<String>,
    /// Number of failpoint cases; `reached` counts those that reached their failpoint.
    pub(crate) cases: u32,
    pub(crate) reached: u32,
    pub(crate) failed: Vec<String>,
}

impl Summary {
    pub(crate) fn fault(&mut self, fault: Fault, recovered: Option<Duration>) {
        self.faults.entry(fault).or_default().push(recovered);
    }

    pub(crate) fn faults(&self) -> u32 {
        self.faults.values().map(|of_kind| of_kind.len() as u32).sum()
    }

    pub(crate) fn job(&mut self, took: Duration) {
        self.jobs += 1;
        self.disturbed += took;
    }

    pub(crate) fn audit(&mut self, findings: &Findings) {
        self.commits += findings.commits;
        self.steps += findings.steps;
        self.replayed += findings.replayed;
        self.lost.extend_from_slice(&findings.lost);
        self.twice.extend_from_slice(&findings.twice);
    }

    pub(crate) fn passed(&self) -> bool {
        self.lost.is_empty() && self.twice.is_empty() && self.failed.is_empty() && self.reached == self.cases
    }

    pub(crate) fn print(&self, args: &Args) {
        println!("seed                            {}", args.seed);
        let kinds = self.faults.iter().map(|(kind, of_kind)| format!("{} {}", kind.name(), of_kind.len()));
        println!(
            "faults survived                 {} ({})",
            self.faults(),
            kinds.collect::<Vec<_>>().join(", ")
        );
        println!("store requests failed            {}", self.store_requests_failed);
        println!("commits lost                    {} of {}", self.lost.len(), self.commits);
        println!("committed steps executed twice  {} of {}", self.twice.len(), self.steps);
        println!("uncommitted steps replayed      {}", self.replayed);
        let jobs = self.jobs + self.cases;
        let equal = if self.equal == jobs { "final hash equal" } else { "final hash NOT equal" };
        println!("{equal:31} in {} of {jobs} jobs", self.equal);
        self.print_recovery("recovery from a death", Fault::is_death);
        self.print_recovery("recovery from other faults", |fault| !fault.is_death());
        if self.jobs > 0 {
            let goodput =
                self.baseline_time.as_secs_f64() * f64::from(self.jobs) / self.disturbed.as_secs_f64();
            println!("goodput                         {goodput:.2} of the baseline");
        }
        if self.cases > 0 {
            println!("failpoints reached              {} of {}", self.reached, self.cases);
        }
        for (what, found) in [("lost", &self.lost), ("twice", &self.twice), ("FAILED", &self.failed)] {
            found.iter().for_each(|one| println!("{what}: {one}"));
        }
    }

    fn print_recovery(&self, what: &str, kind: impl Fn(Fault) -> bool) {
        let of_kind = self.faults.iter().filter(|(fault, _)| kind(**fault));
        let mut times: Vec<Duration> =
            of_kind.flat_map(|(_, times)| times.iter().flatten().copied()).collect();
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else { return };
        let quantile = |q: f64| times[(last as f64 * q).round() as usize].as_secs_f64();
        println!(
            "{what:31} p50 {:.1} s, p99 {:.1} s, max {:.1} s",
            quantile(0.5),
            quantile(0.99),
            quantile(1.0)
        );
    }
}
