//! The records that chunks store as objects and report, in their schema of `proto/foil/v1`.

use prost::Message;

use super::error::samples_error;
use crate::phase::PhaseError;
use crate::task::Object;
use crate::task_io::artifact_cache::ArtifactCache;

pub(in crate::phase) use foil_proto::v1::{
    Calibration as CalibrationRecord, MemoryShortage, Metric, Moments as MomentsRecord, PairScore,
    PairScores, ReferenceLogProbs as LogProbsBatch, RewardScore, RewardScores, Sample, SampleBatch,
    SampleLogProbs,
};

/// Reads the record that an object holds.
pub(in crate::phase) fn read_record<R: Message + Default>(
    cache: &mut ArtifactCache,
    object: &Object,
) -> Result<R, PhaseError> {
    let bytes = cache.read(object)?;
    R::decode(bytes.as_slice()).map_err(|error| samples_error(object, error.to_string()))
}
