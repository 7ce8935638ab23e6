//! The records that chunks store as objects and report, in the schemas of `proto/foil/v1`.

pub(in crate::phase) use foil_proto::v1::{
    Calibration as CalibrationRecord, LogProbsBatch, MemoryShortage, Metric, Moments as MomentsRecord,
    PairScore, PairScores, RewardScore, RewardScores, Sample, SampleBatch, SampleLogProbs,
};
