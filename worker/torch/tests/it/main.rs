//! Tests with real processes and sockets on this machine. Each test starts this binary again, once per rank.

#![allow(clippy::disallowed_methods, reason = "tests own their clock")]
// A failed setup fails the test.
#![allow(clippy::unwrap_used)]

mod adamw;
mod collectives;
mod failures;
mod flat;
mod harness;
mod nccl;
mod other_devices;
mod overlap;
mod reducer;
mod shards;
