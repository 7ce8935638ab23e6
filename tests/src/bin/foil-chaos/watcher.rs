//! A watcher of one job that records all events with their times.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backon::Retryable;
use foil_common::rpc;
use foil_proto::v1;
use foil_proto::v1::job_event::Event;
use foil_proto::v1::jobs_client::JobsClient;

/// The outcome of a job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum JobOutcome {
    Succeeded,
    Failed(Box<v1::JobFailure>),
    Cancelled,
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<(Instant, v1::JobEvent)>,
    outcome: Option<JobOutcome>,
}

pub(crate) struct Watcher {
    job: String,
    urls: String,
    log: Arc<Mutex<Log>>,
}

impl Watcher {
    pub(crate) fn start(urls: String, job: String) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let watcher = Self { job: job.clone(), urls: urls.clone(), log: Arc::clone(&log) };
        thread::spawn(move || on_runtime(follow(&urls, &job, &log)));
        watcher
    }

    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    pub(crate) fn outcome(&self) -> Option<JobOutcome> {
        self.log().outcome.clone()
    }

    /// Waits for the job to end. Returns its outcome and all events.
    pub(crate) fn finish(&self, patience: Duration) -> Result<(JobOutcome, Vec<v1::JobEvent>)> {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if let Some(outcome) = &log.outcome {
                let events = log.events.iter().map(|(_, event)| event.clone()).collect();
                return Ok((outcome.clone(), events));
            }
            drop(log);
            if begun.elapsed() > patience {
                bail!("job {} did not end within {patience:?}", self.job);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// All committed artifacts of the job, as the coordinator lists them at this point.
    pub(crate) fn artifacts(&self) -> Result<Vec<v1::Artifact>> {
        let listing = async {
            let jobs = JobsClient::new(rpc::connect(&self.urls)?);
            let (mut all, mut page_token) = (Vec::<v1::Artifact>::new(), String::new());
            loop {
                let request = v1::ListPartsRequest { job_id: self.job.clone(), page_size: 0, page_token };
                let ask = || async { jobs.clone().list_artifacts(request.clone()).await };
                // A standby refuses and a dead leader does not answer. The channel fails over by itself.
                let page = ask.retry(rpc::backoff()).when(rpc::is_unavailable).await?.into_inner();
                for artifact in page.artifacts {
                    // An artifact on several pages has some of its objects on each.
                    match all.last_mut().filter(|last| last.name == artifact.name) {
                        Some(last) => last.objects.extend(artifact.objects),
                        None => all.push(artifact),
                    }
                }
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return anyhow::Ok(all);
                }
            }
        };
        let limited = async { tokio::time::timeout(Duration::from_secs(60), listing).await };
        on_runtime(limited).context("the job's artifacts were not listed")?
    }

    /// Time of the first progress after `time`.
    pub(crate) fn progress_after(&self, time: Instant) -> Option<Instant> {
        let log = self.log();
        let later = log.events.iter().filter(|(at, _)| *at > time);
        let is_progress = |event: &v1::JobEvent| {
            matches!(
                event.event,
                Some(Event::PhaseProgress(_) | Event::PhaseCommitted(_) | Event::CheckpointCommitted(_))
            )
        };
        later.filter(|(_, event)| is_progress(event)).map(|(at, _)| *at).next()
    }

    /// Number of attempts started since the last commit, after the first.
    pub(crate) fn attempts_since_commit(&self) -> u32 {
        let log = self.log();
        let (mut latest, mut at_commit) = (1, 1);
        for (_, event) in &log.events {
            match &event.event {
                Some(Event::PhaseStarted(started)) => latest = started.attempt,
                Some(Event::PhaseCommitted(_) | Event::CheckpointCommitted(_)) => at_commit = latest,
                _ => {}
            }
        }
        latest.saturating_sub(at_commit)
    }

    pub(crate) fn has_checkpoint(&self) -> bool {
        let log = self.log();
        log.events.iter().any(|(_, event)| matches!(event.event, Some(Event::CheckpointCommitted(_))))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Watches a job until it ends, across deaths of coordinators.
async fn follow(urls: &str, job: &str, log: &Mutex<Log>) {
    let mut revision = 0;
    let line = rpc::connect(urls).expect("addresses");
    loop {
        let request = v1::WatchJobRequest { id: job.to_owned(), after_revision: revision };
        let mut jobs = JobsClient::new(line.clone());
        if let Ok(stream) = jobs.watch(request).await {
            let mut stream = stream.into_inner();
            let mut ended = None;
            while let Ok(Some(event)) = stream.message().await {
                revision = revision.max(event.revision);
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                ended = outcome(&event).or(ended);
                log.events.push((Instant::now(), event));
            }
            // The first event is the current job, so the job's end may precede the events that led to it.
            if let Some(outcome) = ended {
                log.lock().unwrap_or_else(PoisonError::into_inner).outcome = Some(outcome);
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn outcome(event: &v1::JobEvent) -> Option<JobOutcome> {
    let Some(Event::Job(job)) = &event.event else { return None };
    match job.state() {
        v1::JobState::Succeeded => Some(JobOutcome::Succeeded),
        v1::JobState::Failed => Some(JobOutcome::Failed(Box::new(job.failure.clone().unwrap_or_default()))),
        v1::JobState::Cancelled => Some(JobOutcome::Cancelled),
        _ => None,
    }
}
