//! libtorch's own collectives (c10d) for Rust, and the few ATen calls that `tch` does not bind.
//!
//! A [`Store`] lets processes find one another, a [`ProcessGroup`] moves tensors between them (Gloo on CPU, NCCL on
//! GPUs), and a [`Reducer`] adds gradients over the ranks while backward runs. No C++ exception crosses into Rust:
//! every failure is an [`Error`] value.
//!
//! Nothing in here is `Sync`: the ranks of a group must issue the same collectives in the same order, so one
//! thread of each process owns the group.

mod aten;
mod checkpoint;
mod error;
mod ffi;
mod group;
mod layers;
mod memory;
mod process;
mod reducer;
mod store;

pub use aten::{
    AdamW, AdamWState, disable_cudnn_attention, fused_adamw, interface_of, keep_freed_memory,
    set_deterministic, use_cpu_loops,
};
pub use checkpoint::checkpoint;
pub use error::{Error, Result};
pub use ffi::{Drawn, Segment};
pub use group::{Member, ProcessGroup, nccl_built};
pub use layers::{
    Cached, PackedWeight, Rotation, add_rms_norm, attention, decode_attention, draw_tokens, gather_rows,
    linear_by_output, log_prob_gradient, preset_gradients, rms_norm, rotary, swiglu, target_log_probs,
};
pub use memory::CpuMemory;
pub use process::wait_for_end;
pub use reducer::{BucketSizes, Reducer, TraceEvent, backward, drop_gradients, touch, zero_gradients};
pub use store::Store;
