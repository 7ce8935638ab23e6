//! The curves of training steps, reduced as they are read.

use foil_proto::v1;
use tonic::Status;

use super::cache::{Cache, Size};
use super::curves::{MAX_METRICS, Reducer, restrict};
use super::read::Reader;
use crate::driver::UserHandle;
use crate::job::JobState;
use crate::plan::Phase;
use crate::rpc::status::{bad_field, bad_token, no_job, stopped};

const DEFAULT_POINTS: u32 = 500;
const POINTS: std::ops::RangeInclusive<u32> = 2..=2000;
const MAX_PHASES: usize = 100;
/// Number of values beyond which a page takes no further phase.
const PAGE_VALUES: usize = 40_000;
/// Maximum number of bytes of the running phase's lines requested from the driver at a time.
const LINES_BYTES: usize = 256 << 10;
const CACHE_BYTES: usize = 32 << 20;

/// Reads the curves of steps. Cheap to clone; clones share their cache.
#[derive(Debug, Clone)]
pub(super) struct Steps {
    reader: Reader,
    curves: Cache<v1::PhaseSteps>,
}

impl Size for v1::PhaseSteps {
    fn bytes(&self) -> usize {
        let curves = self.curves.iter().map(|curve| 3 * curve.mean.len() * size_of::<f64>());
        self.step.len() * size_of::<u32>() + curves.sum::<usize>()
    }
}

/// A training phase of the plan that has begun.
struct Begun {
    phase: Phase,
    /// The phase's lines if it is committed; none while it is running.
    lines: Option<v1::Object>,
}

impl Steps {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader, curves: Cache::new(CACHE_BYTES) }
    }

    pub(super) async fn get(
        &self,
        driver: &UserHandle,
        request: v1::GetStepsRequest,
    ) -> Result<v1::GetStepsResponse, Status> {
        let v1::GetStepsRequest { job_id, phases, metrics, max_points, page_token, after_step } = request;
        let max_points = if max_points == 0 { DEFAULT_POINTS } else { max_points };
        if !POINTS.contains(&max_points) {
            let (min, max) = (POINTS.start(), POINTS.end());
            return Err(bad_field("max_points", &format!("found {max_points}, expected {min} to {max}")));
        }
        for (field, found, max) in
            [("phases", phases.len(), MAX_PHASES), ("metrics", metrics.len(), MAX_METRICS)]
        {
            if found > max {
                return Err(bad_field(field, &format!("found {found}, expected at most {max}")));
            }
        }
        let from: usize = match page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| bad_token())?,
        };
        let begun = driver.inspect(&job_id, move |state| begun(state, &phases, from)).await;
        let (begun, more) = begun.map_err(stopped)?.ok_or_else(|| no_job(&job_id))??;
        let (mut response, mut values) = (v1::GetStepsResponse::default(), 0);
        let count = begun.len();
        for (at, begun) in begun.into_iter().enumerate() {
            let mut steps = self.curves(driver, &job_id, &begun, max_points).await?;
            restrict(&mut steps, &metrics, after_step);
            values += steps.curves.iter().map(|curve| 3 * curve.mean.len()).sum::<usize>();
            response.phases.push(steps);
            let is_last = at + 1 == count;
            if values >= PAGE_VALUES || is_last {
                if !is_last || more {
                    response.next_page_token = (from + at + 1).to_string();
                }
                break;
            }
        }
        Ok(response)
    }

    async fn curves(
        &self,
        driver: &UserHandle,
        job: &str,
        begun: &Begun,
        max_points: u32,
    ) -> Result<v1::PhaseSteps, Status> {
        let Begun { phase, lines } = begun;
        let Some(object) = lines else {
            return self.running(driver, job, phase, max_points).await;
        };
        let read = async {
            let mut reducer = Reducer::new(phase, max_points);
            self.reader.each_line(object, |line, _| reducer.line(line, &object.key)).await?;
            Ok(reducer.finish(phase, false))
        };
        let curves = self.curves.get(&format!("{}/{max_points}", object.key), read).await?;
        Ok(v1::PhaseSteps::clone(&curves))
    }

    /// The steps so far of a running phase. Its lines are append-only while it runs.
    async fn running(
        &self,
        driver: &UserHandle,
        job: &str,
        phase: &Phase,
        max_points: u32,
    ) -> Result<v1::PhaseSteps, Status> {
        let mut reducer = Reducer::new(phase, max_points);
        let mut from = 0;
        loop {
            let lines = driver.running_steps(job, &phase.id, from, LINES_BYTES).await.map_err(stopped)?;
            // It may have been committed or interrupted in the meantime.
            let Some(lines) = lines.filter(|lines| !lines.is_empty()) else { break };
            from += lines.len();
            for line in lines.lines() {
                reducer.line(line.as_bytes(), &phase.id)?;
            }
        }
        Ok(reducer.finish(phase, true))
    }
}

/// Maximum number of phases per page.
const PAGE_PHASES: usize = 64;

/// The phases to show on a page, starting with number `from`, and whether there are more.
fn begun(state: &JobState, wanted: &[String], from: usize) -> Result<(Vec<Begun>, bool), Status> {
    let is_gang = |id: &String| state.phases.iter().any(|phase| phase.id == *id && phase.work.is_gang());
    if let Some(unknown) = wanted.iter().find(|id| !is_gang(id)) {
        let problem = format!(
            "the job has no phase {} that trains; ListPhases has those of kind sft, train_reward and train_policy",
            crate::rpc::status::echo(unknown)
        );
        return Err(bad_field("phases", &problem));
    }
    let runs = state.current_attempt().is_some();
    let committed = state.committed.len();
    let reached = state.phases.iter().enumerate().take(committed + usize::from(runs));
    let mut found = reached
        .filter(|(_, phase)| {
            phase.work.is_gang() && (wanted.is_empty() || wanted.iter().any(|id| phase.id == *id))
        })
        .map(|(at, phase)| {
            let done = state.committed.get(at);
            let lines = done.and_then(|done| done.steps.as_ref()?.objects.first().cloned());
            (done.is_some(), Begun { phase: phase.clone(), lines })
        })
        // Committed by a version that stored no steps.
        .filter(|(is_done, begun)| !is_done || begun.lines.is_some())
        .map(|(_, begun)| begun)
        .skip(from);
    let page: Vec<Begun> = found.by_ref().take(PAGE_PHASES).collect();
    Ok((page, found.next().is_some()))
}
