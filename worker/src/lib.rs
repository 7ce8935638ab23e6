//! The worker of Foil: an agent that supervises rank processes, and the rank processes that hold the tensors.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests own their clock and their randomness"))]

pub mod agent;
pub mod collective;
pub mod conform;
pub mod describe;
pub mod evaluate;
#[cfg(test)]
mod fake_coordinator;
pub mod generate;
mod memory;
pub mod model;
pub mod objective;
pub mod phase;
pub mod rank;
pub mod task;
pub mod task_io;
pub mod train;
