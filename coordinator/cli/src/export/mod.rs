//! `foil report`: one or several jobs as a page that opens without a coordinator, or as tables.

mod arms;
mod gather;
pub(crate) mod html;
mod seeds;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use foil_common::telemetry;
use foil_proto::v1;

use self::gather::Extent;
use super::client::Client;
use super::client_args::{ClientArgs, job_or_directory};
use super::local_file::write_atomic;
use super::stdout;
use super::ui::local_run::LocalRun;
use super::ui::{note_run, run_directory};

/// Maximum number of runs of one report.
const MAX_RUNS: usize = 64;

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Jobs, by id, by a prefix of it or by name, and directories of runs, including runs in progress. Those
    /// with the same name and the same settings but for their seeds form an arm of an experiment; ARM=JOB or
    /// ARM=DIR names another arm.
    #[arg(value_name = "[ARM=]JOB|DIR", required = true, value_parser = job_or_directory)]
    what: Vec<String>,
    /// Output directory of the files: report.html; rounds.md, rounds.csv, rounds.tex, and arms.csv for
    /// several runs.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Formats, separated by commas. html is one file with everything in it.
    #[arg(long = "format", value_enum, value_name = "FORMAT", value_delimiter = ',', default_value = "html")]
    formats: Vec<Format>,
    /// Number of prompts of each set, from the first on, whose completions the page shows.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=5000))]
    prompts: u32,
    /// Title of the page.
    #[arg(long, value_name = "TEXT", default_value = "Foil report")]
    title: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Format {
    /// One page that opens without a network.
    Html,
    /// Tables in Markdown.
    Md,
    /// All metrics, one per line, and their means over seeds.
    Csv,
    /// Tables in LaTeX, for booktabs.
    Latex,
}

pub(crate) async fn report(args: &ReportArgs) -> Result<()> {
    if args.what.len() > MAX_RUNS {
        bail!("found {} runs, expected at most {MAX_RUNS}; make several reports", args.what.len());
    }
    let formats: BTreeSet<Format> = args.formats.iter().copied().collect();
    let extent = Extent { prompts: args.prompts, with_page: formats.contains(&Format::Html) };
    let mut runs = gather_all(args, extent).await?;
    for warning in arms::group(&mut runs)? {
        stdout::note(&format!("warning: {warning}"));
    }
    for path in write(&args.out, &args.title, &formats, runs)? {
        stdout::line(&path.display().to_string())?;
    }
    Ok(())
}

async fn gather_all(args: &ReportArgs, extent: Extent) -> Result<Vec<v1::RunReport>> {
    let (mut runs, mut client, mut metrics) = (Vec::new(), None, None);
    for what in &args.what {
        let (arm, name) = arm(what);
        let mut run = match run_directory(name)? {
            Some(directory) => {
                let metrics = match &metrics {
                    Some(metrics) => metrics,
                    None => metrics.insert(telemetry::install_metrics()?),
                };
                let served = LocalRun::read(directory, metrics.clone()).await?;
                let mut job = served.job.clone();
                if served.is_stopped() {
                    stop(&mut job);
                }
                let run = gather::run(&served.client, job, extent).await;
                served.close().await?;
                let run = run.with_context(|| format!("cannot read {}", directory.display()))?;
                v1::RunReport { directory: folder(directory), ..run }
            }
            None => {
                note_run(name);
                let client: &Client = match &client {
                    Some(client) => client,
                    None => client.insert(args.client.connect()?),
                };
                let job = client.find(name).await?;
                gather::run(client, job, extent).await?
            }
        };
        if let Some(arm) = arm {
            run.arm = arm.to_owned();
        }
        runs.push(run);
    }
    Ok(runs)
}

/// Shows that no process works on a job. Its log ends like that of a job whose next attempt has no devices
/// yet.
fn stop(job: &mut v1::Job) {
    job.set_state(v1::JobState::Queued);
    let reason = "the run was stopped, and the same `foil run` command resumes it".to_owned();
    job.waiting = Some(v1::JobWait { reason, ..Default::default() });
}

/// The arm that an argument names, and the rest.
fn arm(what: &str) -> (Option<&str>, &str) {
    match what.split_once('=') {
        // A directory may have the sign in its name.
        Some((arm, name)) if !arm.is_empty() && !name.is_empty() && !Path::new(what).is_dir() => {
            (Some(arm), name)
        }
        _ => (None, what),
    }
}

/// A directory's name, without its parent folders.
fn folder(directory: &Path) -> String {
    let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes the files; returns their paths.
fn write(
    out: &Path,
    title: &str,
    formats: &BTreeSet<Format>,
    runs: Vec<v1::RunReport>,
) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for format in formats {
        match format {
            Format::Html => {}
            Format::Md => files.push(("rounds.md", tables::markdown(&runs))),
            Format::Csv => {
                files.push(("rounds.csv", tables::csv(&runs)));
                if runs.len() > 1 {
                    files.push(("arms.csv", tables::arms_csv(&runs)));
                }
            }
            Format::Latex => files.push(("rounds.tex", tables::latex(&runs))),
        }
    }
    if formats.contains(&Format::Html) {
        let page = html::page(&gather::report(title, runs))?;
        files.insert(0, ("report.html", page));
    }
    let written = files.into_iter().map(|(name, text)| {
        let path = out.join(name);
        write_atomic(&path, text.as_bytes())?;
        Ok(path)
    });
    written.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::tests::{finished_job, metric};

    /// Runs of two arms. The first has three seeds.
    pub(super) fn runs() -> Vec<v1::RunReport> {
        let run = |arm: &str, seed: u32, gold: f64| {
            let mut job = finished_job();
            job.id = format!("{arm}-{seed}");
            job.spec.get_or_insert_default().seed = Some(seed);
            for round in &mut job.rounds {
                let shift = gold + f64::from(round.round);
                round.policy.retain(|metric| metric.name != "gold_mean");
                round.policy.push(metric("gold_mean", shift, Some(0.06)));
            }
            v1::RunReport { arm: arm.to_owned(), job: Some(job), ..Default::default() }
        };
        vec![run("apo", 0, 1.0), run("apo", 1, 2.0), run("apo", 2, 4.0), run("static_rm", 0, 0.5)]
    }

    #[test]
    fn an_arm_may_be_named_before_a_run() {
        assert_eq!(arm("letters"), (None, "letters"));
        assert_eq!(arm("apo=runs/a"), (Some("apo"), "runs/a"));
        assert_eq!(arm("=x"), (None, "=x"));
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a=b");
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(arm(odd.to_str().unwrap()).0, None);
    }

    #[test]
    fn each_format_has_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let names = |formats: &[Format], runs: Vec<v1::RunReport>| {
            let written = write(dir.path(), "t", &formats.iter().copied().collect(), runs).unwrap();
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(written.iter().all(|path| path.is_file()));
            written.iter().map(name).collect::<Vec<_>>()
        };
        let all = [Format::Latex, Format::Csv, Format::Md, Format::Html];
        assert_eq!(names(&all, runs()), ["report.html", "rounds.md", "rounds.csv", "arms.csv", "rounds.tex"]);
        assert_eq!(names(&[Format::Csv], runs()[..1].to_vec()), ["rounds.csv"]);
    }
}
