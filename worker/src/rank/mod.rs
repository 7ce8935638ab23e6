//! A rank process: one device, one thread that owns every tensor.

pub mod cache;
#[cfg(test)]
pub(crate) mod memory_objects;
pub mod reporter;
