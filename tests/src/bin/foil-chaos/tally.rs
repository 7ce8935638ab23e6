//! What happened, in figures.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Args;
use super::audit::Findings;
use super::trouble::Trouble;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) undisturbed: Duration,
    /// Of each kind: how long jobs stood still; none if one ended meanwhile or did not go on.
    troubles: BTreeMap<Trouble, Vec<Option<Duration>>>,
    jobs: u32,
    disturbed: Duration,
    /// Jobs with the weights of an undisturbed one.
    pub(crate) equal: u32,
    /// Requests to the store that went wrong.
    pub(crate) struck: u64,
    commits: usize,
    steps: usize,
    replayed: usize,
    lost: Vec<String>,
    twice: Vec<String>,
    /// Cases at failpoints, and how many of them were reached.
    pub(crate) sites: u32,
    pub(crate) reached: u32,
    pub(crate) failed: Vec<String>,
}

impl Tally {
    pub(crate) fn trouble(&mut self, trouble: Trouble, recovered: Option<Duration>) {
        self.troubles.entry(trouble).or_default().push(recovered);
    }

    pub(crate) fn troubles(&self) -> u32 {
        self.troubles.values().map(|of_kind| of_kind.len() as u32).sum()
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

    pub(crate) fn held(&self) -> bool {
        self.lost.is_empty() && self.twice.is_empty() && self.failed.is_empty() && self.reached == self.sites
    }

    pub(crate) fn print(&self, args: &Args) {
        println!("seed                            {}", args.seed);
        let kinds = self.troubles.iter().map(|(kind, of_kind)| format!("{} {}", kind.name(), of_kind.len()));
        println!(
            "kills survived                  {} ({})",
            self.troubles(),
            kinds.collect::<Vec<_>>().join(", ")
        );
        println!("requests of the store struck    {}", self.struck);
        println!("commits lost                    {} of {}", self.lost.len(), self.commits);
        println!("committed steps executed twice  {} of {}", self.twice.len(), self.steps);
        println!("uncommitted steps replayed      {}", self.replayed);
        let cases = self.jobs + self.sites;
        let equal = if self.equal == cases { "final hash equal" } else { "final hash NOT equal" };
        println!("{equal:31} in {} of {cases} jobs", self.equal);
        self.print_recovery("recovery from a death", Trouble::is_death);
        self.print_recovery("recovery from what passes", |trouble| !trouble.is_death());
        if self.jobs > 0 {
            let goodput =
                self.undisturbed.as_secs_f64() * f64::from(self.jobs) / self.disturbed.as_secs_f64();
            println!("goodput                         {goodput:.2} of an undisturbed job's pace");
        }
        if self.sites > 0 {
            println!("failpoints reached              {} of {}", self.reached, self.sites);
        }
        for (what, found) in [("lost", &self.lost), ("twice", &self.twice), ("FAILED", &self.failed)] {
            found.iter().for_each(|one| println!("{what}: {one}"));
        }
    }

    fn print_recovery(&self, what: &str, kind: impl Fn(Trouble) -> bool) {
        let of_kind = self.troubles.iter().filter(|(trouble, _)| kind(**trouble));
        let mut times: Vec<Duration> =
            of_kind.flat_map(|(_, times)| times.iter().flatten().copied()).collect();
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else { return };
        let at = |share: f64| times[(last as f64 * share).round() as usize].as_secs_f64();
        println!("{what:31} p50 {:.1} s, p99 {:.1} s, longest {:.1} s", at(0.5), at(0.99), at(1.0));
    }
}
