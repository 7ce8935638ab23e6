//! `foil ui`: the coordinator's page, or that of a finished run's directory.

pub(crate) mod browser;
pub(crate) mod local_run;

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use foil_common::{shutdown, telemetry};

use self::local_run::{InUse, LocalRun};
use super::client_args::{ClientArgs, job_or_directory};
use super::run::lock::Program;
use super::stdout;

#[derive(Debug, Args)]
pub(crate) struct UiArgs {
    /// A job: its id, a prefix of it, or its name (its newest job); or the directory of a `foil run`. A run
    /// in progress has its own page; an ended run is served on this machine only, until ctrl-c. Default: the
    /// list of jobs
    #[arg(value_name = "JOB|DIR", value_parser = job_or_directory)]
    what: Option<String>,
    /// Print the URL only.
    #[arg(long)]
    no_browser: bool,
    /// Port of a directory's page; 0 selects a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn ui(args: &UiArgs) -> Result<()> {
    if let Some(directory) = args.what.as_deref().map(run_directory).transpose()?.flatten() {
        return serve(directory, args).await;
    }
    args.what.iter().for_each(|what| note_run(what));
    let client = args.client.connect()?;
    let path = match &args.what {
        None => {
            client.reach().await?;
            String::new()
        }
        Some(what) => format!("jobs/{}", client.find(what).await?.id),
    };
    // The leader's, once it has answered.
    let url = format!("{}/{path}", client.line().url().trim_end_matches('/'));
    show(&url, args.no_browser)
}

async fn serve(directory: &Path, args: &UiArgs) -> Result<()> {
    let stop = shutdown::on_signal()?;
    let run = match LocalRun::open(directory, args.port, telemetry::install_metrics()?).await {
        Ok(run) => run,
        // A run in progress serves its page itself.
        Err(error) => match error.downcast_ref() {
            Some(InUse::Served { by, .. }) if by.program == Program::Run => {
                return show(&by.page(), args.no_browser);
            }
            _ => return Err(error),
        },
    };
    if let Err(error) = run.announce() {
        tracing::warn!(%error, "cannot write the lock file of {}", directory.display());
    }
    show(&run.page(), args.no_browser)?;
    stdout::note("serving the run on this machine; ctrl-c ends it");
    stop.requested().await;
    run.close().await
}

/// A directory on this machine, by its path; `None` if a job is meant. A name that is both a job's and a
/// directory's means the job, unless the directory is a run's.
///
/// # Errors
/// A path at which there is no directory.
pub(crate) fn run_directory(what: &str) -> Result<Option<&Path>> {
    let path = Path::new(what);
    let is_path = what.contains(std::path::MAIN_SEPARATOR) || what == "." || what == "..";
    if is_path && !path.is_dir() {
        bail!("{what} is no directory; give that of a `foil run`, or a job's id or name");
    }
    Ok((is_path || (path.is_dir() && local_run::is_run(path))).then_some(path))
}

/// Tells of a run of this name in the directory that `foil run` uses by default, since a job is meant.
pub(crate) fn note_run(name: &str) {
    let directory = Path::new("runs").join(name);
    if local_run::is_run(&directory) {
        let directory = directory.display();
        stdout::note(&format!(
            "asking the coordinator for the job {name}; for the run in {directory}, give that path"
        ));
    }
}

/// Prints a page's URL, and opens it if there is a display.
pub(crate) fn show(url: &str, no_browser: bool) -> Result<()> {
    stdout::line(url)?;
    if !no_browser {
        browser::open(url);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_meant_by_its_path_or_if_a_run_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_owned();
        let found = |what| run_directory(what).unwrap();
        assert_eq!(found(&path), Some(dir.path()));
        let absent = run_directory("runs/absent").unwrap_err().to_string();
        assert!(absent.contains("runs/absent is no directory"), "{absent}");
        assert_eq!(found("letters-that-is-no-directory"), None);
        assert!(found(".").is_some());
        // Tests run in the crate's own directory.
        assert_eq!(found("src"), None, "it is not a run's directory, so a job may have this name");
    }
}
