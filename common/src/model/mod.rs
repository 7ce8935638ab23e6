//! The files of a Hugging Face model directory, understood without reading a weight: what `config.json` and the headers
//! of the safetensors files say of a decoder of the Llama family.
//!
//! Clients, the coordinator and ranks all read a directory through this module, so that what a rank would refuse is
//! refused before a job is queued.

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
