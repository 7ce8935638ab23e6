//! Real processes over real sockets on this machine: each test starts this very binary again, once for every rank.

mod adamw;
mod collectives;
mod failures;
mod harness;
mod nccl;
mod reducer;
