//! libtorch's collectives. A [`Store`] lets processes find one another, a [`ProcessGroup`] moves tensors between them
//! (Gloo on CPU, NCCL on GPUs), and a [`Reducer`] adds gradients over the ranks while backward runs.

mod group;
mod reducer;
mod store;

pub use group::{ProcessGroup, ProcessGroupConfig, nccl_built};
pub use reducer::{BucketSizes, Reducer, TraceEvent};
pub use store::Store;
