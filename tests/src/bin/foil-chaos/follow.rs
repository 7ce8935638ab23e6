//! A watcher of one job, who remembers all that was told and when.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backon::Retryable;
use foil_common::rpc;
use foil_proto::v1;
use foil_proto::v1::job_event::Event;
use foil_proto::v1::jobs_client::JobsClient;

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed(Box<v1::JobFailure>),
    Cancelled,
}

#[derive(Debug, Default)]
struct Told {
    events: Vec<(Instant, v1::JobEvent)>,
    verdict: Option<Verdict>,
}

pub(crate) struct Follower {
    job: String,
    urls: String,
    told: Arc<Mutex<Told>>,
}

impl Follower {
    pub(crate) fn start(urls: String, job: String) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let follower = Self { job: job.clone(), urls: urls.clone(), told: Arc::clone(&told) };
        thread::spawn(move || on_runtime(follow(&urls, &job, &told)));
        follower
    }

    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.told().verdict.clone()
    }

    /// Waits for the job's end; gives how it ended and all that was told meanwhile.
    pub(crate) fn finish(&self, patience: Duration) -> Result<(Verdict, Vec<v1::JobEvent>)> {
        let begun = Instant::now();
        loop {
            let told = self.told();
            if let Some(verdict) = &told.verdict {
                let events = told.events.iter().map(|(_, event)| event.clone()).collect();
                return Ok((verdict.clone(), events));
            }
            drop(told);
            if begun.elapsed() > patience {
                bail!("job {} did not end within {patience:?}", self.job);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that the job has committed, as its coordinator lists it now.
    pub(crate) fn artifacts(&self) -> Result<Vec<v1::Artifact>> {
        let listing = async {
            let jobs = JobsClient::new(rpc::connect(&self.urls)?);
            let (mut all, mut page_token) = (Vec::<v1::Artifact>::new(), String::new());
            loop {
                let request = v1::ListPartsRequest { job_id: self.job.clone(), page_size: 0, page_token };
                let ask = || async { jobs.clone().list_artifacts(request.clone()).await };
                // A standby refuses and a dead leader does not answer; the line turns to the next by itself.
                let page = ask.retry(rpc::backoff()).when(rpc::is_unavailable).await?.into_inner();
                for artifact in page.artifacts {
                    // One that goes over several pages has a part of its objects on each.
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

    /// When the job went on, after this time.
    pub(crate) fn progress_after(&self, time: Instant) -> Option<Instant> {
        let told = self.told();
        let later = told.events.iter().filter(|(at, _)| *at > time);
        let is_progress = |event: &v1::JobEvent| {
            matches!(
                event.event,
                Some(Event::PhaseProgress(_) | Event::PhaseCommitted(_) | Event::CheckpointCommitted(_))
            )
        };
        later.filter(|(_, event)| is_progress(event)).map(|(at, _)| *at).next()
    }

    /// Attempts that were begun again since the last commit.
    pub(crate) fn fruitless_attempts(&self) -> u32 {
        let told = self.told();
        let (mut latest, mut at_commit) = (1, 1);
        for (_, event) in &told.events {
            match &event.event {
                Some(Event::PhaseStarted(started)) => latest = started.attempt,
                Some(Event::PhaseCommitted(_) | Event::CheckpointCommitted(_)) => at_commit = latest,
                _ => {}
            }
        }
        latest.saturating_sub(at_commit)
    }

    pub(crate) fn has_checkpoint(&self) -> bool {
        let told = self.told();
        told.events.iter().any(|(_, event)| matches!(event.event, Some(Event::CheckpointCommitted(_))))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Follows a job to its end through whatever happens to coordinators.
async fn follow(urls: &str, job: &str, told: &Mutex<Told>) {
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
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                ended = verdict(&event).or(ended);
                told.events.push((Instant::now(), event));
            }
            // The first event is the job as it stands, so its end is told before what led to it.
            if let Some(verdict) = ended {
                told.lock().unwrap_or_else(PoisonError::into_inner).verdict = Some(verdict);
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn verdict(event: &v1::JobEvent) -> Option<Verdict> {
    let Some(Event::Job(job)) = &event.event else { return None };
    match job.state() {
        v1::JobState::Succeeded => Some(Verdict::Succeeded),
        v1::JobState::Failed => Some(Verdict::Failed(Box::new(job.failure.clone().unwrap_or_default()))),
        v1::JobState::Cancelled => Some(Verdict::Cancelled),
        _ => None,
    }
}
