//! Bindings of libtorch that `tch` lacks.
//!
//! - [`c10d`]: rendezvous, process groups and data-parallel gradients.
//! - [`ops`]: fused operations of a decoder layer, token sampling, log-probabilities and AdamW.
//! - [`autograd`]: backward passes and activation checkpointing.
//! - [`runtime`] and [`CpuMemory`]: settings of libtorch, and memory use of its tensors.
//! - [`FileReader`], [`upload()`] and [`Downloads`]: tensors from files and numbers, to the device and from
//!   it.
//!
//! The C++ side is in `cpp`, in folders of the same names. No C++ exception crosses into Rust: every failure
//! is an [`Error`].
//!
//! Nothing here is `Sync`: the ranks of a group must issue the same collectives in the same order, so one
//! thread of each process owns the group.
#![expect(clippy::self_named_module_files, reason = "cxx names its header after the file of the bridge")]

pub mod autograd;
pub mod c10d;
mod download;
mod error;
mod ffi;
mod memory;
mod net;
pub mod ops;
mod read;
pub mod runtime;
mod upload;

pub use download::{Downloads, host_buffer};
pub use error::{Error, Result};
pub use ffi::{AdamW, SampledToken, Segment};
pub use memory::{CpuMemory, device as device_memory};
pub use net::network_interface;
pub use read::FileReader;
pub use upload::{Numbers, upload};
