//! Experiment trackers of a job: TensorBoard's event files on this machine, and the status of the trackers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use foil_common::plural::counted;
use foil_common::rpc::{LeaderChannel, UNARY_DEADLINE, request};
use foil_proto::v1;
use foil_proto::v1::trackers_client::TrackersClient;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::download;
use super::progress::Progress;

/// The folder of event files in a directory of results, and what `foil pull` calls them.
pub(crate) const EVENT_FILES: &str = "tensorboard";
/// Polling interval for new event files.
const INTERVAL: Duration = Duration::from_secs(2);
/// Polling interval for deliveries of a job that has ended.
const END_INTERVAL: Duration = Duration::from_millis(200);
/// Time after a job's end for which a run waits for its trackers.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_IN_TROUBLE: Duration = Duration::from_secs(5);

/// A job's trackers, and the event files after the first `after`.
pub(crate) async fn ask(
    line: &LeaderChannel,
    job: &str,
    after: u32,
) -> Result<v1::GetTrackersResponse, Status> {
    let message = v1::GetTrackersRequest { job_id: job.to_owned(), after_event_files: after };
    let asked = TrackersClient::new(line.clone()).get_trackers(request(message, UNARY_DEADLINE)).await;
    asked.map(tonic::Response::into_inner)
}

/// A folder that follows the event files of a job.
#[derive(Debug)]
pub(crate) struct Mirror {
    dir: PathBuf,
    /// Number of the job's event files that are downloaded.
    have: u32,
}

impl Mirror {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), have: 0 }
    }

    /// Downloads the files that are missing; returns the status of the trackers.
    pub(crate) async fn fetch(&mut self, line: &LeaderChannel, job: &str) -> Result<Vec<v1::TrackerStatus>> {
        loop {
            let v1::GetTrackersResponse { trackers, event_files } = ask(line, job, self.have).await?;
            if event_files.is_empty() {
                return Ok(trackers);
            }
            let number = u32::try_from(event_files.len())?;
            download::quietly(line, &event_files, &self.dir).await?;
            self.have += number;
        }
    }

    /// Follows the job forever. Failures are retried: the job does not depend on them.
    pub(crate) async fn follow(&mut self, line: &LeaderChannel, job: &str) {
        loop {
            sleep(INTERVAL).await;
            if let Err(error) = self.fetch(line, job).await {
                tracing::debug!("cannot fetch TensorBoard's event files: {error:#}");
            }
        }
    }

    /// Waits until the trackers have received all data of an ended job. For those that take longer, prints
    /// what to do.
    pub(crate) async fn finish(&mut self, line: &LeaderChannel, job: &str, progress: &Progress) {
        let since = Instant::now();
        let mut spinner = None;
        let late = loop {
            let late: Vec<_> = match self.fetch(line, job).await {
                Ok(trackers) => trackers.into_iter().filter(|tracker| !tracker.complete).collect(),
                Err(error) => {
                    progress.line(&format!("warning: cannot see how far the job's trackers are: {error:#}"));
                    Vec::new()
                }
            };
            // A tracker that reports a problem will not recover in a moment.
            let is_hopeless = late.iter().all(|tracker| !tracker.problem.is_empty());
            let waited = since.elapsed();
            if late.is_empty() || waited > PATIENCE || (is_hopeless && waited > PATIENCE_IN_TROUBLE) {
                break late;
            }
            let names: Vec<&str> = late.iter().map(|tracker| tracker.tracker.as_str()).collect();
            spinner.get_or_insert_with(|| {
                progress.spinner(&format!("waiting for {} to take the last metrics", names.join(" and ")))
            });
            sleep(END_INTERVAL).await;
        };
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        for tracker in &late {
            progress.line(&late_line(tracker));
        }
    }
}

fn late_line(tracker: &v1::TrackerStatus) -> String {
    let why = if tracker.problem.is_empty() { "it is slow" } else { &tracker.problem };
    format!(
        "warning: {} has not taken all metrics: {why}. `foil serve` on the store of this run, with the same \
         environment, sends the rest",
        tracker.tracker
    )
}

/// Lines about trackers for people.
pub(crate) fn lines(trackers: &[v1::TrackerStatus]) -> Vec<String> {
    let line = |tracker: &v1::TrackerStatus| {
        let state = match (tracker.complete, tracker.problem.as_str()) {
            (true, _) => "complete".to_owned(),
            (false, "") => format!("{} delivered", counted(tracker.phases_delivered, "phase")),
            (false, problem) => {
                format!("{} delivered, then: {problem}", counted(tracker.phases_delivered, "phase"))
            }
        };
        let page = if tracker.url.is_empty() { String::new() } else { format!(", {}", tracker.url) };
        format!("tracker {}: {state}{page}", tracker.tracker)
    };
    trackers.iter().map(line).collect()
}

/// Whether a specification reports the job to any tracker.
pub(crate) fn any(spec: &v1::JobSpec) -> bool {
    let named = spec.trackers.as_ref().map(|trackers| trackers.report_to.as_slice()).unwrap_or_default();
    named.iter().any(|name| name != "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(complete: bool, problem: &str, url: &str) -> v1::TrackerStatus {
        let (tracker, phases_delivered) = ("mlflow".to_owned(), 3);
        v1::TrackerStatus { tracker, complete, phases_delivered, problem: problem.into(), url: url.into() }
    }

    #[test]
    fn a_tracker_says_how_far_it_is_and_why() {
        let told = lines(&[
            status(true, "", "http://m/#/runs/1"),
            status(false, "", ""),
            status(false, "MLflow answers 403", ""),
        ]);
        assert_eq!(
            told,
            [
                "tracker mlflow: complete, http://m/#/runs/1",
                "tracker mlflow: 3 phases delivered",
                "tracker mlflow: 3 phases delivered, then: MLflow answers 403"
            ]
        );
        let late = late_line(&status(false, "MLflow is away", ""));
        assert!(late.contains("mlflow has not taken all metrics: MLflow is away. `foil serve` on"), "{late}");
    }

    #[test]
    fn none_is_no_tracker() {
        let spec = |names: &[&str]| {
            let report_to = names.iter().map(|name| (*name).to_owned()).collect();
            let trackers = Some(v1::TrackerSpec { report_to, ..Default::default() });
            v1::JobSpec { trackers, ..Default::default() }
        };
        assert!(any(&spec(&["mlflow"])) && any(&spec(&["all"])));
        assert!(!any(&spec(&["none"])) && !any(&spec(&[])) && !any(&v1::JobSpec::default()));
    }
}
