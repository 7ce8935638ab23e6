//! What the coordinator, the client and the workers of Foil share. Nothing here knows tensors.

pub mod conform;
pub mod contain;
pub mod data;
pub mod datasets;
pub mod drift;
pub mod exposition;
pub mod failpoint;
pub mod figures;
pub mod file_names;
pub mod ids;
pub mod input_file;
pub mod letters;
pub mod listen;
pub mod memory;
pub mod model;
pub mod plural;
pub mod private;
pub mod redact;
pub mod rpc;
#[cfg(test)]
mod shared;
pub mod shortage;
pub mod shutdown;
pub mod spec;
pub mod stage;
pub mod storage;
pub mod telemetry;
pub mod text;
pub mod version;
