//! libtorch's collectives: a [`Store`] for the rendezvous, a [`ProcessGroup`] for collectives (Gloo on CPU,
//! NCCL on GPUs), and a [`Reducer`] that sums gradients over the ranks during the backward pass.

mod group;
mod reducer;
mod store;

pub use group::{ProcessGroup, ProcessGroupConfig, nccl_built};
pub use reducer::{BucketSizes, Reducer, TraceEvent};
pub use store::Store;
