//! Checks of the chunk results that ranks report.

use foil_proto::v1;

use super::assignment::ChunkLease;
use super::context::Context;
use super::{ChunkReport, Counter, Level, ProtocolError};
use crate::job::{JobState, rows};
use crate::plan::Phase;

/// Checks that the result is stored below its chunk's prefix.
pub(super) fn check_key(result: &ChunkReport, cx: &Context<'_>) -> Result<(), ProtocolError> {
    let prefix = cx.id.chunk_prefix(&result.phase, result.chunk);
    if result.object.key.starts_with(&prefix) {
        return Ok(());
    }
    Err(ProtocolError::FalseReport(format!("{} is not a key below {prefix}", result.object.key)))
}

/// Checks that the rank holds the lease whose result it reports, under the key that it was assigned.
pub(super) fn check_lease(
    rank: usize,
    result: &ChunkReport,
    held: Option<&ChunkLease>,
) -> Result<(), ProtocolError> {
    let is_leased = held.is_some_and(|held| {
        (held.lease, held.chunk, held.phase.as_str(), held.key.as_str())
            == (result.lease, result.chunk, result.phase.as_str(), result.object.key.as_str())
    });
    if is_leased {
        return Ok(());
    }
    let text = format!("chunk {} of {} was not leased to rank {rank}", result.chunk, result.phase);
    Err(ProtocolError::FalseReport(text))
}

/// The hash of a finished chunk, in the current phase or an earlier one.
pub(super) fn known_hash(state: &JobState, phase: &str, chunk: u32) -> Option<String> {
    match state.done(phase) {
        Some(done) => done.artifact.objects.get(chunk as usize).map(|object| object.blake3.clone()),
        None if state.phase().is_some_and(|current| current.id == phase) => {
            state.chunks.get(&chunk).map(|done| done.object.blake3.clone())
        }
        None => None,
    }
}

/// Compares the second result of a chunk with the first; they must be bit-identical.
pub(super) fn compare(rank: usize, result: &ChunkReport, known: &str, cx: &mut Context<'_>) {
    cx.out.count(Counter::DuplicateChunk);
    let found = &result.object.blake3;
    if found != known {
        cx.out.count(Counter::DeterminismAlarm);
        let text = format!(
            "determinism alarm: chunk {} of {} has hash {found} from rank {rank} and {known} from the rank before; the first \
             result stays. Check that all workers run the same build on the same kind of device",
            result.chunk, result.phase
        );
        cx.out.notice(Level::Error, text);
    }
}

/// Checks the metric sums of a new result. Returns the failure if they are not finite.
pub(super) fn check_metrics(
    result: &ChunkReport,
    cx: &Context<'_>,
) -> Result<Option<v1::TaskFailure>, ProtocolError> {
    let is_current = |phase: &&Phase| phase.id == result.phase && result.chunk < phase.chunks;
    let Some(phase) = cx.state.phase().filter(is_current) else {
        let text = format!("{} has no chunk {} that can be done now", result.phase, result.chunk);
        return Err(ProtocolError::Invalid(text));
    };
    check_counts(cx.state, phase, result)?;
    Ok(first_not_finite(result).map(|metric| v1::TaskFailure {
        phase: phase.id.to_string(),
        chunk: Some(result.chunk),
        class: v1::FailureClass::Nonfinite.into(),
        message: format!("{metric} of chunk {} is not finite", result.chunk),
        ..Default::default()
    }))
}

/// Rejects sums over more items than a chunk of the plan can have: a metric counts rows, their samples or, at
/// most, the samples' tokens.
fn check_counts(state: &JobState, phase: &Phase, result: &ChunkReport) -> Result<(), ProtocolError> {
    let (spec, rows) = (&state.spec, rows::of_chunk(state, phase, result.chunk));
    let samples = u64::from(spec.reward_step.samples.max(spec.policy_step.samples).max(2));
    let items = rows.saturating_mul(samples);
    let max = items.saturating_mul(spec.text.max_length as u64);
    if let Some(moments) = result.moments.iter().find(|moments| moments.count > max) {
        let text = format!(
            "{} of chunk {} counts {}; its {rows} rows have at most {max} tokens",
            moments.name, result.chunk, moments.count
        );
        return Err(ProtocolError::FalseReport(text));
    }
    // Each pair counts in both orders.
    let bins = result.calibration.iter().flat_map(|calibration| &calibration.count);
    let predictions = bins.fold(0, |sum: u64, count| sum.saturating_add(*count));
    if predictions > items.saturating_mul(2) {
        let text = format!("the calibration of chunk {} counts {predictions} of {rows} rows", result.chunk);
        return Err(ProtocolError::FalseReport(text));
    }
    Ok(())
}

/// The first metric whose sums are not finite.
fn first_not_finite(result: &ChunkReport) -> Option<&str> {
    let is_bad = |moments: &&v1::Moments| {
        let sums = [moments.sum, moments.sum_of_squares].into_iter().chain(moments.max);
        let of_clusters = moments.clusters.iter().flat_map(|clusters| {
            let closed = [clusters.squared_sums, clusters.sums_by_count, clusters.squared_counts];
            closed.into_iter().chain(clusters.open.iter().map(|open| open.sum))
        });
        sums.chain(of_clusters).any(|number| !number.is_finite())
    };
    if let Some(moments) = result.moments.iter().find(is_bad) {
        return Some(&moments.name);
    }
    let sums = result.calibration.as_ref().map(|calibration| &calibration.confidence_sum)?;
    sums.iter().any(|sum| !sum.is_finite()).then_some("the calibration")
}
