//! The files of a Hugging Face model directory: `config.json` and the headers of the safetensors files of a
//! decoder of the Llama family. Weights are not read.
//!
//! Clients, the coordinator and ranks read a directory through this module, so that a model that a rank would
//! refuse is refused before a job is queued.

mod config;
mod contents;
mod error;
mod head;
mod names;
mod scan;
mod weights;

pub use config::{DecoderConfig, Family, RopeConfig, RopeScaling};
pub use contents::{has_other_weights, instead, refuse_adapter};
pub use error::ModelFilesError;
pub use head::HeadKind;
pub use names::{EMBEDDINGS, INDEX, LM_HEAD, SCORE, SINGLE};
pub use weights::{TensorEntry, WeightFiles, header_length, shards};
