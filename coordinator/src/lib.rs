//! The coordinator of Foil. It handles no tensors; its command line is the nested crate `cli`.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests own their clock and their randomness"))]

pub mod audit;
pub mod auth;
pub mod clock;
pub mod cluster;
pub mod collector;
pub mod descriptors;
pub mod driver;
#[cfg(test)]
mod failing_store;
pub mod inputs;
pub mod job;
pub mod journal;
pub mod leadership;
pub mod lease;
pub mod plan;
pub mod queue;
pub mod resolve;
pub mod rpc;
pub mod schedule;
pub mod secret;
#[cfg(test)]
mod simulation;
pub mod tenant;
pub mod trackers;
pub mod web;

pub use rpc::{Serve, ServeError, serve};
