//! `foil pull`: downloads artifacts.

use anyhow::{Result, bail};

use super::args::PullArgs;
use super::download::artifact;
use super::progress::Progress;
use super::trackers::{EVENT_FILES, Mirror};
use super::{card, report, results, stdout};
use foil_coordinator::job::find_artifact;

pub(crate) async fn pull(args: &PullArgs) -> Result<()> {
    let (name, wanted) = match args.what.split_once('/') {
        Some((job, artifact)) => (job, Some(artifact)),
        None => (args.what.as_str(), None),
    };
    let client = args.client.connect()?;
    let job = client.find(name).await?;
    let line = client.line();
    let mut progress = Progress::new(true);
    match wanted {
        Some(EVENT_FILES) => {
            let trackers = Mirror::new(&args.dir).fetch(&line, &job.id).await?;
            if !trackers.iter().any(|tracker| tracker.tracker == EVENT_FILES) {
                bail!("job {} has no event files; its trackers.report_to does not name tensorboard", job.id);
            }
        }
        Some(wanted) => {
            let found = find_artifact(&job, wanted).map_err(anyhow::Error::msg)?;
            artifact(&line, found, &args.dir, &progress).await?;
            if results::is_model(found) {
                card::write(&args.dir, &card::Provenance::new(&job, found, &[]))?;
            }
        }
        None => {
            if job.artifacts.is_empty() {
                bail!("job {} is {} and has no results to pull", job.id, report::state_name(&job));
            }
            results::download_results(&line, &job, &args.dir, &[], &progress).await?;
        }
    }
    progress.finish();
    stdout::line(&args.dir.display().to_string())?;
    Ok(())
}
