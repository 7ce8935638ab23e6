//! gRPC services.

pub mod artifacts;
