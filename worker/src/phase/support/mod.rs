//! Parts shared by several phases.

pub(super) mod baseline;
pub(super) mod checkpoints;
pub(super) mod completions;
pub(super) mod dialogue;
pub(super) mod disk;
pub(super) mod drift;
pub(super) mod error;
pub(super) mod gang;
pub(super) mod models;
pub(super) mod pairs;
pub(super) mod policy_batch;
pub(super) mod policy_rows;
pub(super) mod records;
pub(super) mod residency;
pub(super) mod rows;
pub(super) mod step_log;
