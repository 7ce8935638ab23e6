//! Input and output of tasks, shared by ranks and phases: objects, progress and the stop signal.

pub mod artifact_cache;
#[cfg(test)]
pub mod memory_objects;
pub mod progress;
pub(crate) mod shared_objects;
pub mod stop;
mod thread_bytes;
pub(crate) mod transfer;
mod work_span;

pub use self::work_span::WorkSpan;
