//! Map phases: chunks leased to idle ranks, returned when a rank is lost, leased again when one straggles.

use std::collections::BTreeMap;
use std::time::Duration;

use foil_common::{drift, stats};
use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use super::blame::Sign;
use super::pulse::Pulse;
use super::task;
use super::{Busy, Counter, Decision, Effect, Level, Refusal, Run, Slot, Stage, truthful};
use crate::clock::Now;
use crate::job::rows;
use crate::job::{Change, ChunkDone, Committed, JobState};
use crate::plan::{self, Phase};

/// A chunk is leased again when it takes so many times the median of those done.
const STRAGGLER_RATIO: f64 = 3.0;
/// Chunks quicker than this are not worth computing twice.
const STRAGGLER_FLOOR: Duration = Duration::from_secs(1);
/// Ranks that may die over one chunk before the job is given up.
const DEATHS_PER_CHUNK: u32 = 3;

/// What an attempt remembers of the current map phase beside the durable results.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// Of the chunks done in this attempt.
    seconds: Vec<f64>,
    /// Ranks lost while they held the chunk.
    deaths: BTreeMap<u32, u32>,
}

/// A lease, as its rank holds it.
#[derive(Debug)]
pub struct Chunk {
    /// Index of its phase in the plan: a lease may outlive its phase, where the chunk was leased twice.
    pub(super) phase: usize,
    pub(super) chunk: u32,
    pub(super) lease: u64,
    /// Under which the result is written.
    pub(super) key: String,
    pub(super) since: Duration,
    pub(super) pulse: Pulse,
}

impl Run {
    pub(super) fn advance_map(&mut self, state: &JobState, now: Now, out: &mut Decision) {
        let Some(phase) = state.phase() else { return };
        if state.chunks.len() == phase.chunks as usize {
            self.commit_map(state, phase, now, out);
            return;
        }
        self.hung_chunks(state, now, out);
        while self.closing.is_none() {
            let Some(rank) = self.slots.iter().position(Slot::is_idle) else { break };
            let Some(chunk) = self.next_chunk(state, phase, now, out) else { break };
            self.lease(state, phase, rank, chunk, now, out);
        }
    }

    /// The first chunk nobody works on, else one that straggles.
    fn next_chunk(&self, state: &JobState, phase: &Phase, now: Now, out: &mut Decision) -> Option<u32> {
        let mut leased: BTreeMap<u32, Vec<&Chunk>> = BTreeMap::new();
        for chunk in self.leases_of(self.phase) {
            leased.entry(chunk.chunk).or_default().push(chunk);
        }
        let open =
            (0..phase.chunks).find(|chunk| !state.chunks.contains_key(chunk) && !leased.contains_key(chunk));
        if open.is_some() {
            return open;
        }
        let limit = self.straggler_limit()?;
        let late = leased
            .into_iter()
            .filter_map(|(chunk, leases)| (leases.len() == 1).then(|| (now.since(leases[0].since), chunk)))
            .filter(|(age, _)| *age >= limit)
            .max_by_key(|(age, chunk)| (*age, std::cmp::Reverse(*chunk)))?;
        out.effects.push(Effect::Count(Counter::ChunkReleased));
        out.because(format!(
            "chunk {} straggles ({:.1} s): leased a second time",
            late.1,
            late.0.as_secs_f64()
        ));
        Some(late.1)
    }

    fn straggler_limit(&self) -> Option<Duration> {
        let Stage::Map(map) = &self.stage else { return None };
        let mut seconds = map.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2)?;
        let limit = Duration::try_from_secs_f64(STRAGGLER_RATIO * median).unwrap_or(Duration::MAX);
        Some(limit.max(STRAGGLER_FLOOR))
    }

    fn lease(
        &mut self,
        state: &JobState,
        phase: &Phase,
        rank: usize,
        chunk: u32,
        now: Now,
        out: &mut Decision,
    ) {
        let lease = match task::lease(state, phase, chunk) {
            Ok(lease) => lease,
            Err(error) => return self.cannot_plan(rank, &error, now, out),
        };
        self.leases += 1;
        let (id, held) = (lease_id(self.term, self.leases), self.phase);
        let prefix = chunk_prefix(&self.job, &phase.id, chunk);
        let key = format!("{prefix}{}-{}-{}", self.attempt, self.term, self.leases);
        if let Some(Slot::Up { process, busy }) = self.slots.get_mut(rank) {
            let pulse = Pulse::new(now);
            let (since, key_of_lease) = (now.mono, key.clone());
            *busy = Busy::Chunk(Chunk { phase: held, chunk, lease: id, key: key_of_lease, since, pulse });
            let run = v1::RunChunk {
                lease: id,
                task: Some(lease.task),
                chunk,
                first: lease.first,
                count: lease.count,
                key,
            };
            out.effects.push(Effect::Tell { session: process.session.clone(), command: Command::Chunk(run) });
            self.progressed = true;
        }
    }

    /// The plan promises something the job lacks; no attempt can do better.
    pub(super) fn cannot_plan(&mut self, rank: usize, error: &task::TaskError, now: Now, out: &mut Decision) {
        let failure = v1::TaskFailure {
            phase: self.phase_id.clone(),
            class: "data".to_owned(),
            message: error.to_string(),
            ..Default::default()
        };
        self.fail_at_once(self.symptom(rank, Sign::Said(failure)), now, out);
    }

    pub(super) fn chunk_result(
        &mut self,
        state: &JobState,
        rank: usize,
        result: v1::ChunkResult,
        flaw: Option<&str>,
        now: Now,
        out: &mut Decision,
    ) -> Result<(), Refusal> {
        let Some(object) = &result.object else {
            let text = format!("chunk {} of {} came without its object", result.chunk, result.phase);
            return Err(Refusal::Untrue(text));
        };
        let prefix = chunk_prefix(&self.job, &result.phase, result.chunk);
        if !object.key.starts_with(&prefix) {
            return Err(Refusal::Untrue(format!("{} is not a key of {prefix}", object.key)));
        }
        let known = known_hash(state, &result.phase, result.chunk);
        if known.is_none() && self.closing.is_none() {
            if !self.is_leased(state, rank, &result) {
                let text = format!("chunk {} of {} was not given to rank {rank}", result.chunk, result.phase);
                return Err(Refusal::Untrue(text));
            }
            truthful(flaw)?;
        }
        if let Some(Slot::Up { busy, .. }) = self.slots.get_mut(rank)
            && matches!(busy, Busy::Chunk(chunk) if chunk.lease == result.lease)
        {
            *busy = Busy::Idle;
        }
        if self.closing.is_some() {
            return Ok(());
        }
        if let Some(known) = known {
            self.compare(rank, &result, &known, out);
            return Ok(());
        }
        let Some(phase) =
            state.phase().filter(|phase| phase.id == result.phase && result.chunk < phase.chunks)
        else {
            return Err(Refusal::Invalid(format!(
                "{} has no chunk {} to be done now",
                result.phase, result.chunk
            )));
        };
        too_many(state, phase, &result)?;
        if let Some(figure) = not_finite(&result) {
            let failure = v1::TaskFailure {
                phase: phase.id.clone(),
                chunk: Some(result.chunk),
                class: "nonfinite".to_owned(),
                message: format!("{figure} of chunk {} is not finite", result.chunk),
                ..Default::default()
            };
            self.fail_at_once(self.symptom(rank, Sign::Said(failure)), now, out);
            return Ok(());
        }
        self.accept(result, out);
        Ok(())
    }

    /// Whether the rank holds the lease that it brings a result of, under the key that it was told.
    fn is_leased(&self, state: &JobState, rank: usize, result: &v1::ChunkResult) -> bool {
        let Some(Slot::Up { busy: Busy::Chunk(held), .. }) = self.slots.get(rank) else { return false };
        let phase = state.phases.get(held.phase).map(|phase| phase.id.as_str());
        let key = result.object.as_ref().map(|object| object.key.as_str());
        (held.lease, held.chunk, phase, key)
            == (result.lease, result.chunk, Some(result.phase.as_str()), Some(held.key.as_str()))
    }

    fn accept(&mut self, result: v1::ChunkResult, out: &mut Decision) {
        if let Stage::Map(map) = &mut self.stage {
            map.seconds.push(result.seconds);
        }
        self.losses = 0;
        self.progressed = true;
        let object = v1::Object { path: format!("{:05}", result.chunk), ..result.object.unwrap_or_default() };
        out.changes.push(Change::ChunkDone(ChunkDone {
            phase: result.phase,
            chunk: result.chunk,
            object,
            moments: result.moments,
            calibration: result.calibration,
            seconds: if result.seconds.is_finite() { result.seconds } else { 0.0 },
        }));
    }

    /// A chunk done twice must be the same bytes.
    fn compare(&self, rank: usize, result: &v1::ChunkResult, known: &str, out: &mut Decision) {
        out.effects.push(Effect::Count(Counter::DuplicateChunk));
        let found = result.object.as_ref().map(|object| object.blake3.as_str()).unwrap_or_default();
        if found != known {
            out.effects.push(Effect::Count(Counter::DeterminismAlarm));
            let text = format!(
                "determinism alarm: chunk {} of {} has hash {found} from rank {rank} and {known} from the rank before; the first \
                 result stays. Check that all workers run the same build on the same kind of device",
                result.chunk, result.phase
            );
            out.notice(Level::Error, text);
        }
    }

    fn commit_map(&mut self, state: &JobState, phase: &Phase, now: Now, out: &mut Decision) {
        let mut moments = Vec::new();
        let mut calibration: Option<v1::Calibration> = None;
        // By number, so that the sums' bits do not depend on who finished first.
        for done in state.chunks.values() {
            stats::merge_moments(&mut moments, &done.moments);
            if let Some(chunk) = &done.calibration {
                stats::merge_calibration(calibration.get_or_insert_default(), chunk);
            }
        }
        let objects = state.chunks.values().map(|done| done.object.clone()).collect();
        let committed = Committed {
            phase: phase.id.clone(),
            artifact: self.artifact(phase, objects),
            metrics: finite(stats::metrics(&moments, calibration.as_ref())),
            seconds: now.since(self.phase_since).as_secs_f64(),
            steps: None,
        };
        if let Some(text) = drift::warning(&phase.id, &committed.metrics, state.spec.resources.precision) {
            out.notice(Level::Warning, text);
        }
        out.because(format!("all {} chunks of {} are done", phase.chunks, phase.id));
        out.changes.push(Change::PhaseCommitted(Box::new(committed)));
    }

    pub(super) fn artifact(&self, phase: &Phase, objects: Vec<v1::Object>) -> v1::Artifact {
        let (name, kind) = plan::artifact_name(phase);
        v1::Artifact {
            name,
            kind: kind.to_owned(),
            job_id: self.job.clone(),
            phase: phase.id.clone(),
            round: phase.round,
            attempt: self.attempt,
            objects,
        }
    }

    /// Ranks that hold a chunk and do not move.
    fn hung_chunks(&mut self, state: &JobState, now: Now, out: &mut Decision) {
        let limit = state.spec.resources.hang_timeout;
        for rank in 0..self.slots.len() {
            if let Some(Slot::Up { busy: Busy::Chunk(chunk), .. }) = self.slots.get(rank)
                && now.since(chunk.pulse.moved()) >= limit
            {
                self.lose(rank, Sign::Hang(limit), now, out);
            }
        }
    }

    /// The chunk of the current phase that a rank holds.
    pub(super) fn chunk_of(&self, rank: usize) -> Option<u32> {
        match self.slots.get(rank) {
            Some(Slot::Up { busy: Busy::Chunk(chunk), .. }) if chunk.phase == self.phase => Some(chunk.chunk),
            _ => None,
        }
    }

    /// One more rank died over a chunk; true when that is enough.
    pub(super) fn blame_chunk(&mut self, chunk: u32) -> bool {
        let Stage::Map(map) = &mut self.stage else { return false };
        let deaths = map.deaths.entry(chunk).or_default();
        *deaths += 1;
        *deaths >= DEATHS_PER_CHUNK
    }

    pub(super) fn map_progress(&self, state: &JobState, phase: &Phase) -> Option<v1::PhaseProgress> {
        let rows = |chunk: u32| rows::of_chunk(state, phase, chunk);
        let done: u64 = state.chunks.keys().map(|chunk| rows(*chunk)).sum();
        let mut under_way: BTreeMap<u32, u64> = BTreeMap::new();
        for lease in self.leases_of(self.phase).filter(|lease| !state.chunks.contains_key(&lease.chunk)) {
            let Some(told) = lease.pulse.rows() else { continue };
            let part = rows(lease.chunk).saturating_mul(told.done).checked_div(told.total).unwrap_or(0);
            let most = under_way.entry(lease.chunk).or_default();
            *most = part.max(*most);
        }
        if done == 0
            && under_way.is_empty()
            && let Some(stage) = self.leases_of(self.phase).find_map(|lease| lease.pulse.stage())
        {
            return Some(of_stage(phase, stage));
        }
        Some(v1::PhaseProgress {
            phase: phase.id.clone(),
            done: done + under_way.values().sum::<u64>(),
            total: rows::total(state, phase),
            unit: phase.work.unit().to_owned(),
            step: Vec::new(),
        })
    }

    fn leases_of(&self, phase: usize) -> impl Iterator<Item = &Chunk> {
        self.slots.iter().filter_map(move |slot| match slot {
            Slot::Up { busy: Busy::Chunk(chunk), .. } if chunk.phase == phase => Some(chunk),
            _ => None,
        })
    }
}

/// A phase's progress where a rank is at something other than its rows or steps.
pub(super) fn of_stage(phase: &Phase, stage: &v1::TaskProgress) -> v1::PhaseProgress {
    let v1::TaskProgress { done, total, unit, .. } = stage.clone();
    v1::PhaseProgress { phase: phase.id.clone(), done, total, unit, step: Vec::new() }
}

/// Leases of two coordinators differ.
fn lease_id(term: u64, number: u64) -> u64 {
    (term << 32) | number
}

fn chunk_prefix(job: &str, phase: &str, chunk: u32) -> String {
    format!("jobs/{job}/phases/{phase}/{chunk:05}/")
}

/// The hash of a chunk that is done, in the current phase or in one before.
fn known_hash(state: &JobState, phase: &str, chunk: u32) -> Option<String> {
    match state.done(phase) {
        Some(done) => done.artifact.objects.get(chunk as usize).map(|object| object.blake3.clone()),
        None if state.phase().is_some_and(|current| current.id == phase) => {
            state.chunks.get(&chunk).map(|done| done.object.blake3.clone())
        }
        None => None,
    }
}

/// Refuses figures of more rows than a chunk of the plan can have: a figure counts rows, their samples or, at most, the
/// samples' tokens.
fn too_many(state: &JobState, phase: &Phase, result: &v1::ChunkResult) -> Result<(), Refusal> {
    let (spec, rows) = (&state.spec, rows::of_chunk(state, phase, result.chunk));
    let samples = u64::from(spec.reward_step.samples.max(spec.policy_step.samples).max(2));
    let items = rows.saturating_mul(samples);
    let most = items.saturating_mul(spec.text.max_length as u64);
    if let Some(moments) = result.moments.iter().find(|moments| moments.count > most) {
        let text = format!(
            "{} of chunk {} counts {}; its {rows} rows come to {most} tokens at most",
            moments.name, result.chunk, moments.count
        );
        return Err(Refusal::Untrue(text));
    }
    // Both orders of each pair.
    let bins = result.calibration.iter().flat_map(|calibration| &calibration.count);
    let predictions = bins.fold(0, |sum: u64, count| sum.saturating_add(*count));
    if predictions > items.saturating_mul(2) {
        let text = format!("the calibration of chunk {} counts {predictions} of {rows} rows", result.chunk);
        return Err(Refusal::Untrue(text));
    }
    Ok(())
}

/// The first figure that no sum could hold.
fn not_finite(result: &v1::ChunkResult) -> Option<&str> {
    let bad = |moments: &&v1::Moments| {
        let sums = [moments.sum, moments.sum_of_squares].into_iter().chain(moments.max);
        let of_clusters = moments.clusters.iter().flat_map(|clusters| {
            let closed = [clusters.squared_sums, clusters.sums_by_count, clusters.squared_counts];
            closed.into_iter().chain(clusters.open.iter().map(|open| open.sum))
        });
        sums.chain(of_clusters).any(|number| !number.is_finite())
    };
    if let Some(moments) = result.moments.iter().find(bad) {
        return Some(&moments.name);
    }
    let sums = result.calibration.as_ref().map(|calibration| &calibration.confidence_sum)?;
    sums.iter().any(|sum| !sum.is_finite()).then_some("the calibration")
}

/// What the log and the wire's JSON can hold.
pub(super) fn finite(metrics: Vec<v1::Metric>) -> Vec<v1::Metric> {
    let keep = |metric: &v1::Metric| metric.value.is_finite() && metric.se.is_none_or(f64::is_finite);
    metrics.into_iter().filter(keep).collect()
}
