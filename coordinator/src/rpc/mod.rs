//! gRPC services.

pub mod artifacts;

mod admission;
mod amend;
mod connections;
mod evidence;
mod jobs;
mod limits;
mod lineage;
mod plausible;
mod serve;
pub(crate) mod status;
#[cfg(test)]
mod tests;
mod workers;

pub use connections::Limits;
pub use jobs::JobsService;
pub use jobs::is_of_workers;
pub use serve::{Serve, ServeError, serve};
pub use workers::WorkersService;
