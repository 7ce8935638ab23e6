//! libtorch's collectives: a [`Store`] for the rendezvous, a [`ProcessGroup`] for collectives (Gloo on CPU,
//! NCCL on GPUs), a [`Reducer`] that sums gradients over the ranks during the backward pass,
//! [`FlatParameters`] of which each rank updates a part, and a [`ShardStore`] for parameters that no rank
//! holds whole.

mod flat;
mod group;
mod reducer;
mod shards;
mod store;

pub use flat::FlatParameters;
pub use group::{ProcessGroup, ProcessGroupConfig, nccl_built, waited};
pub use reducer::{BucketSizes, Reducer, TraceEvent};
pub use shards::{ShardStore, Unit};
pub use store::Store;
