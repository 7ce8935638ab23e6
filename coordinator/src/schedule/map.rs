//! Map phases: chunks are leased to idle ranks, returned when a rank is lost, and leased again when one
//! straggles.

use std::collections::BTreeMap;
use std::time::Duration;

use foil_common::{drift, stats};
use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use super::assignment::{Assignment, ChunkLease};
use super::context::{Context, Problem};
use super::ranks::RankSet;
use super::task;
use super::watchdog::ProgressWatchdog;
use super::{ChunkReport, Counter, Level};
use crate::clock::Now;
use crate::job::{Change, ChunkDone, Committed, JobState, rows};
use crate::plan::Phase;

/// A chunk is leased again once it takes this many times the median duration of finished chunks.
const STRAGGLER_RATIO: f64 = 3.0;
/// Minimum duration of a chunk that is worth computing twice.
const STRAGGLER_FLOOR: Duration = Duration::from_secs(1);
/// Number of ranks that may die while holding the same chunk before the job is given up.
const DEATHS_PER_CHUNK: u32 = 3;

/// The current map phase, apart from its durable results.
#[derive(Debug)]
pub(super) struct MapPhase {
    id: String,
    since: Duration,
    /// Durations of the chunks finished in this attempt, in seconds.
    seconds: Vec<f64>,
    /// Number of ranks lost while they held a chunk, by chunk.
    deaths: BTreeMap<u32, u32>,
}

impl MapPhase {
    pub(super) fn new(phase: &Phase, now: Now) -> Self {
        Self { id: phase.id.to_string(), since: now.mono, seconds: Vec::new(), deaths: BTreeMap::new() }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// True once all chunks are done.
    pub(super) fn is_complete(&self, cx: &Context<'_>) -> bool {
        cx.state.phase().is_some_and(|phase| cx.state.chunks.len() == phase.chunks as usize)
    }

    /// Leases chunks to idle ranks while there are both.
    pub(super) fn lease_chunks(&self, ranks: &mut RankSet, cx: &mut Context<'_>) -> Result<(), Problem> {
        let Some(phase) = cx.state.phase() else { return Ok(()) };
        while let Some(rank) = ranks.first_idle()
            && let Some(chunk) = self.next_chunk(phase, ranks, cx)
        {
            lease(phase, rank, chunk, ranks, cx)?;
        }
        Ok(())
    }

    /// The first chunk that no rank works on, or else a straggling one.
    fn next_chunk(&self, phase: &Phase, ranks: &RankSet, cx: &mut Context<'_>) -> Option<u32> {
        let mut leased: BTreeMap<u32, Vec<&ChunkLease>> = BTreeMap::new();
        for lease in ranks.leases_of(&self.id) {
            leased.entry(lease.chunk).or_default().push(lease);
        }
        let is_open = |chunk: &u32| !cx.state.chunks.contains_key(chunk) && !leased.contains_key(chunk);
        let open = (0..phase.chunks).find(is_open);
        if open.is_some() {
            return open;
        }
        let limit = self.straggler_limit()?;
        let (age, chunk) = leased
            .into_iter()
            .filter_map(|(chunk, leases)| (leases.len() == 1).then(|| (cx.now.since(leases[0].since), chunk)))
            .filter(|(age, _)| *age >= limit)
            .max_by_key(|(age, chunk)| (*age, std::cmp::Reverse(*chunk)))?;
        cx.out.count(Counter::ChunkReleased);
        cx.out.because(format!("chunk {chunk} straggles ({:.1} s): leased a second time", age.as_secs_f64()));
        Some(chunk)
    }

    fn straggler_limit(&self) -> Option<Duration> {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2)?;
        let limit = Duration::try_from_secs_f64(STRAGGLER_RATIO * median).unwrap_or(Duration::MAX);
        Some(limit.max(STRAGGLER_FLOOR))
    }

    /// Records that a rank died while holding a chunk; true if that makes it a poison chunk.
    pub(super) fn record_death(&mut self, chunk: u32) -> bool {
        let deaths = self.deaths.entry(chunk).or_default();
        *deaths += 1;
        *deaths >= DEATHS_PER_CHUNK
    }

    /// Records the first result of a chunk, which was leased at `leased_at`.
    pub(super) fn accept(&mut self, result: ChunkReport, leased_at: u64, cx: &mut Context<'_>) {
        self.seconds.push(result.seconds);
        cx.progressed = true;
        let object = v1::Object { path: format!("{:05}", result.chunk), ..result.object };
        cx.out.changes.push(Change::ChunkDone(ChunkDone {
            phase: result.phase,
            chunk: result.chunk,
            object,
            moments: result.moments,
            calibration: result.calibration,
            seconds: if result.seconds.is_finite() { result.seconds } else { 0.0 },
            leased_at,
        }));
    }

    /// Commits the phase with the sums of all chunks.
    pub(super) fn commit(&self, cx: &mut Context<'_>) {
        let Some(phase) = cx.state.phase() else { return };
        let mut moments = Vec::new();
        let mut calibration: Option<v1::Calibration> = None;
        // In chunk order, so that the bits of the sums do not depend on which rank finished first.
        for done in cx.state.chunks.values() {
            stats::merge_moments(&mut moments, &done.moments);
            if let Some(chunk) = &done.calibration {
                stats::merge_calibration(calibration.get_or_insert_default(), chunk);
            }
        }
        let objects = cx.state.chunks.values().map(|done| done.object.clone()).collect();
        let committed = Committed {
            phase: phase.id.to_string(),
            artifact: cx.id.artifact(phase, objects),
            metrics: finite(stats::metrics(&moments, calibration.as_ref())),
            seconds: cx.now.since(self.since).as_secs_f64(),
            steps: None,
        };
        let precision = cx.state.spec.resources.precision;
        if let Some(text) = drift::warning(&phase.id, &committed.metrics, precision) {
            cx.out.notice(Level::Warning, text);
        }
        cx.out.because(format!("all {} chunks of {} are done", phase.chunks, phase.id));
        cx.out.changes.push(Change::PhaseCommitted(Box::new(committed)));
    }

    /// Progress in rows, or the activity of a rank before the first row.
    pub(super) fn progress(&self, ranks: &RankSet, state: &JobState, phase: &Phase) -> v1::PhaseProgress {
        let rows = |chunk: u32| rows::of_chunk(state, phase, chunk);
        let done: u64 = state.chunks.keys().map(|chunk| rows(*chunk)).sum();
        let mut partial: BTreeMap<u32, u64> = BTreeMap::new();
        for lease in ranks.leases_of(&self.id).filter(|lease| !state.chunks.contains_key(&lease.chunk)) {
            let Some(report) = lease.watchdog.rows() else { continue };
            let part = rows(lease.chunk).saturating_mul(report.done).checked_div(report.total).unwrap_or(0);
            let max = partial.entry(lease.chunk).or_default();
            *max = part.max(*max);
        }
        if done == 0
            && partial.is_empty()
            && let Some(activity) = ranks.leases_of(&self.id).find_map(|lease| lease.watchdog.activity())
        {
            return activity_progress(phase, activity);
        }
        v1::PhaseProgress {
            phase: phase.id.to_string(),
            done: done + partial.values().sum::<u64>(),
            total: rows::total(state, phase),
            unit: phase.work.unit().to_owned(),
            step: Vec::new(),
        }
    }
}

fn lease(
    phase: &Phase,
    rank: usize,
    chunk: u32,
    ranks: &mut RankSet,
    cx: &mut Context<'_>,
) -> Result<(), Problem> {
    let task::Lease { task, first, count } =
        task::lease(cx.state, phase, chunk).map_err(|error| error.into_problem(rank, phase))?;
    let number = ranks.next_lease();
    // Leases granted by different coordinators differ.
    let lease = (cx.id.term << 32) | number;
    let key = format!("{}{}-{}-{number}", cx.id.chunk_prefix(&phase.id, chunk), cx.id.attempt, cx.id.term);
    let held = ChunkLease {
        phase: phase.id.to_string(),
        chunk,
        lease,
        key: key.clone(),
        since: cx.now.mono,
        leased_at: cx.now.wall,
        watchdog: ProgressWatchdog::new(cx.now),
    };
    if ranks.assign(rank, Assignment::Chunk(held)) {
        let traceparent = cx.state.trace.chunk(&phase.id, cx.id.attempt, chunk).to_string();
        let leased_at = cx.now.wall;
        let run = v1::RunChunk { lease, task: Some(task), chunk, first, count, key, traceparent, leased_at };
        ranks.send(rank, Command::Chunk(run), cx);
        cx.progressed = true;
    }
    Ok(())
}

/// A phase's progress while a rank is busy with something other than its rows or steps.
pub(super) fn activity_progress(phase: &Phase, activity: &v1::TaskProgress) -> v1::PhaseProgress {
    let v1::TaskProgress { done, total, unit, .. } = activity.clone();
    v1::PhaseProgress { phase: phase.id.to_string(), done, total, unit, step: Vec::new() }
}

/// The metrics that the log and JSON can represent: the finite ones.
pub(super) fn finite(metrics: Vec<v1::Metric>) -> Vec<v1::Metric> {
    let keep = |metric: &v1::Metric| metric.value.is_finite() && metric.se.is_none_or(f64::is_finite);
    metrics.into_iter().filter(keep).collect()
}
