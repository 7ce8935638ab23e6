//! libtorch's collectives: a [`Store`] for the rendezvous, a [`ProcessGroup`] for collectives (Gloo on CPU,
//! NCCL on GPUs), a [`Reducer`] that sums gradients over the ranks during the backward pass,
//! [`FlatParameters`] for parameters of which each rank updates a part, and a [`ShardStore`] for parameters
//! that are sharded over the ranks.

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
