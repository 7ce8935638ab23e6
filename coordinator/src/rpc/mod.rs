//! gRPC services.

pub mod artifacts;
#[doc(hidden)]
pub mod fuzzing;

mod access;
mod admission;
mod agents;
mod auth;
mod connections;
mod deletion;
mod device_warning;
mod grpc_web;
mod inputs;
mod jobs;
mod limits;
mod lineage;
mod listing;
mod logs;
mod mapped_body;
mod normalize;
mod plausibility;
pub(crate) mod results;
mod serve;
pub(crate) mod status;
mod storage;
mod submission;
mod tenants;
#[cfg(test)]
mod tests;
mod trackers;
mod verify;
mod watch;
mod workers;

pub use agents::AgentsService;
pub use connections::Limits;
pub use device_warning::is_device_warning;
pub use jobs::JobsService;
pub use results::ResultsService;
pub use serve::{Serve, ServeError, serve};
pub use storage::StorageService;
pub use trackers::TrackersService;
pub use workers::WorkersService;
