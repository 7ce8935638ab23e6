//! Real processes over real sockets on this machine: each test starts this very binary again, once for every rank.

// A test that cannot set itself up has failed.
#![allow(clippy::unwrap_used)]

mod adamw;
mod collectives;
mod failures;
mod harness;
mod nccl;
mod other_devices;
mod overlap;
mod reducer;
