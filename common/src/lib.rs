//! Code shared by the coordinator, the client and the workers. Nothing here depends on tensors.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests own their clock and their randomness"))]

pub mod activity;
pub mod conform;
pub mod contain;
pub mod data;
pub mod datasets;
pub mod drift;
pub mod exit;
pub mod exposition;
pub mod failpoint;
pub mod failure;
pub mod ids;
pub mod input_file;
pub mod letters;
pub mod listen;
pub mod log_line;
pub mod logs;
pub mod memory;
pub mod model;
pub mod oom;
pub mod otlp;
pub mod plural;
pub mod private;
pub mod redact;
pub mod rpc;
pub mod safe_path;
pub mod selection;
pub mod shutdown;
pub mod spec;
pub mod stats;
pub mod storage;
pub mod telemetry;
pub mod test_models;
pub mod text;
pub mod tls;
pub mod version;
