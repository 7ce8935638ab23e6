//! The coordinator of Foil and its command line. Nothing here knows tensors.

pub mod cli;
pub mod clock;
pub mod cluster;
mod descriptors;
pub mod driver;
pub mod job;
pub mod journal;
pub mod leadership;
pub mod plan;
mod plural;
pub mod queue;
pub mod resolve;
pub mod rpc;
pub mod schedule;
pub mod secret;
#[cfg(test)]
mod simulation;
pub mod web;
