//! The decoder of the Llama family, its heads, and Hugging Face directories.
//!
//! A [`LanguageModel`] or a [`RewardModel`] is a decoder with a head. The decoder computes hidden states, and
//! the head converts selected hidden states to logits or scores. Losses are functions of those and live in
//! `objective`.

mod adapter;
mod attention;
mod batch;
mod decoder;
mod error;
mod finite;
mod head;
mod inference;
mod kv_cache;
mod language_model;
mod layer;
mod parameters;
mod reward_model;
mod rotary;
mod saving;
mod shards;
mod units;
pub(crate) mod weights;
pub(crate) mod writer;

pub use adapter::Adapter;
pub use batch::{BatchRows, PackedBatch, packed_rows};

pub use decoder::Precision;
pub use error::ModelError;
pub use foil_common::model::{DecoderConfig, Family, HeadKind, ModelFilesError, RopeConfig, RopeScaling};
pub use foil_common::spec::SaveDtype;
pub use head::{Head, Model};
pub use inference::Inference;
pub use kv_cache::KvCache;
pub use language_model::{LanguageModel, LmHead};
pub use parameters::{Holding, Parameters};
pub use reward_model::{RewardModel, ScoreHead};
pub use saving::SavedWeights;
pub use shards::{ShardPlacement, Shards};
pub use units::ShardedUnit;
pub(crate) use units::{flatten, overlap, shard_range};
pub use writer::Sink;

#[cfg(test)]
mod tests;
