//! The progress of a Kubeflow TrainJob.
//!
//! In a TrainJob's pod, Kubeflow Trainer (2.2 or later, with the feature gate TrainJobStatus) provides an
//! address, a token and a CA through environment variables. Each status posted there replaces the previous
//! one, so duplicates are harmless: the latest one counts.

use foil_proto::v1;
use serde_json::{Value, json};

use super::config::{Credential, KubeflowConfig};
use super::http::{Failure, FailureKind, Server};
use super::names;
use super::points::of_phase;
use super::source::PhaseFacts;
use crate::driver::core::Core;
use crate::job::{JobState, JobStatus, Outcome};
use crate::lease::Lease;
use crate::plan::Work;

const NAME: &str = "Kubeflow Trainer";
const ADVICE: &str = "the token of KUBEFLOW_TRAINER_SERVER_TOKEN must be that of a pod of the TrainJob";
/// Size limit of the token's file.
const TOKEN_BYTES: u64 = 64 << 10;
/// Maximum number of metrics in a status.
const METRICS: usize = 64;

/// The status endpoint of a TrainJob.
#[derive(Debug, Clone)]
pub(super) struct TrainJob {
    server: Server,
    config: KubeflowConfig,
}

/// A job's progress.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progress {
    /// From 0 to 100; 100 only for a job that has succeeded.
    percent: u32,
    remaining_seconds: Option<u64>,
    metrics: Vec<(String, f64)>,
    /// True for the job's final status.
    pub(super) is_last: bool,
}

impl TrainJob {
    pub(super) fn new(config: &KubeflowConfig) -> Result<Self, String> {
        Ok(Self { server: Server::new(NAME, config.ca.as_ref(), None)?, config: config.clone() })
    }

    /// Posts a status; `at` is the time, in milliseconds since the Unix epoch.
    pub(super) async fn report(&self, progress: &Progress, at: u64, lease: &Lease) -> Result<(), Failure> {
        let token = self.token().await?;
        let server = self.server.with_credential(Credential::Token(token));
        let request = server.post(self.config.url.as_str(), &status(progress, at));
        let answer = server.send(request, lease).await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(server.refusal(&answer, ADVICE)),
        }
    }

    /// The token. Its file is read each time, because the token is renewed.
    async fn token(&self) -> Result<String, Failure> {
        let file = &self.config.token_file;
        let failed = |problem: String| {
            let why = format!("the token of {NAME} cannot be read from {}: {problem}", file.display());
            Failure::new(FailureKind::Refused, why)
        };
        let size = tokio::fs::metadata(file).await.map_err(|error| failed(error.to_string()))?.len();
        if size > TOKEN_BYTES {
            return Err(failed(format!("it has {size} bytes")));
        }
        let token = tokio::fs::read_to_string(file).await.map_err(|error| failed(error.to_string()))?;
        let token = token.trim();
        match !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(token.to_owned()),
            false => Err(failed("it holds no token".to_owned())),
        }
    }
}

fn status(progress: &Progress, at: u64) -> Value {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(at);
    let metric = |(name, value): &(String, f64)| json!({ "name": name, "value": value.to_string() });
    let mut status = json!({
        "progressPercentage": progress.percent,
        "metrics": progress.metrics.iter().map(metric).collect::<Vec<_>>(),
        "lastUpdatedTime": humantime::format_rfc3339_seconds(at).to_string(),
    });
    if let Some(seconds) = progress.remaining_seconds {
        status["estimatedRemainingSeconds"] = json!(seconds.min(i32::MAX as u64));
    }
    json!({ "trainerStatus": status })
}

/// The progress of a job at `now`, in milliseconds since the Unix epoch.
pub(super) fn progress(core: &Core, job: &str, now: u64) -> Option<Progress> {
    let state = core.state(job)?;
    let running = core.progress(job).filter(|told| state.phase().is_some_and(|phase| phase.id == told.phase));
    let is_last = state.is_ended();
    let succeeded = matches!(state.status, JobStatus::Ended { outcome: Outcome::Succeeded, .. });
    let part = running.map_or(0.0, |told| told.done as f64 / (told.total as f64).max(1.0));
    let done = (state.committed.len() as f64 + part.clamp(0.0, 1.0)) / (state.phases.len() as f64).max(1.0);
    let percent = if succeeded { 100 } else { ((done * 100.0) as u32).min(99) };
    let elapsed = state.times.started.map(|started| now.saturating_sub(started) as f64 / 1000.0);
    let remaining_seconds = match (is_last, elapsed) {
        (true, _) => Some(0),
        (false, Some(elapsed)) if done > 0.0 => Some((elapsed * (1.0 - done) / done) as u64),
        (false, _) => None,
    };
    Some(Progress { percent, remaining_seconds, metrics: metrics(state, running), is_last })
}

fn metrics(state: &JobState, running: Option<&v1::PhaseProgress>) -> Vec<(String, f64)> {
    let round = state.phase().or_else(|| state.phases.last()).map_or(0, |phase| phase.round);
    let mut metrics = vec![
        ("current_round".to_owned(), f64::from(round)),
        ("total_rounds".to_owned(), f64::from(state.spec.rounds)),
    ];
    if let (Some(told), Some(phase)) = (running, state.phase().filter(|phase| phase.work.is_gang())) {
        metrics.push(("current_step".to_owned(), told.done as f64));
        metrics.push(("total_steps".to_owned(), told.total as f64));
        metrics
            .extend(told.step.iter().map(|metric| (names::of_step(phase.work, &metric.name), metric.value)));
    }
    // The metrics of the last evaluation stay while the next round runs.
    let mut evaluated = state.phases.iter().zip(&state.committed).rev();
    let evaluated = evaluated.find(|(phase, _)| phase.work == Work::EvaluatePolicy);
    if let Some((phase, done)) = evaluated {
        let facts = PhaseFacts { phase: phase.clone(), starts: Vec::new(), committed_at: None };
        metrics.extend(
            of_phase(&facts, &done.metrics).into_iter().map(|point| (point.key.to_string(), point.value)),
        );
    }
    metrics.retain(|(_, value)| value.is_finite());
    metrics.truncate(METRICS);
    metrics
}
