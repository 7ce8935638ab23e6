//! How a task gets its objects and tells of its progress: what ranks and phases have in common.

pub mod artifact_cache;
#[cfg(test)]
pub mod memory_objects;
pub mod progress;
pub mod stop;
mod thread_bytes;
pub(crate) mod transfer;
