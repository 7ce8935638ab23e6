//! Tests with real processes and sockets on this machine: each test starts this binary again, once per rank.

// A failed setup fails the test.
#![allow(clippy::unwrap_used)]

mod adamw;
mod collectives;
mod failures;
mod harness;
mod nccl;
mod other_devices;
mod overlap;
mod reducer;
