//! Harness of the end-to-end tests: real processes of `foil` and `foil-worker`, in directories of their own.

// A test that cannot run here says so.
#![allow(clippy::print_stderr)]

mod binaries;
mod conformance;
mod control_group;
mod fault_proxy;
mod namespaces;
mod outcome;
mod paired;
mod prometheus;
mod run;
mod samples;
mod service;
mod slow_link;
mod store_server;

pub use binaries::{foil, foil_worker};
pub use conformance::conforms;
pub use control_group::ControlGroup;
pub use fault_proxy::{FaultProxy, Faults};
pub use namespaces::Namespaces;
pub use outcome::{Estimate, Outcome, Round};
pub use paired::{difference, gold_by_prompt};
pub use prometheus::{objections, page};
pub use run::{Run, SMALL, letters_job};
pub use samples::{Answer, answers_by_prompt, steps};
pub use service::{Process, Service, wait_for};
pub use slow_link::slow_link;
pub use store_server::StoreServer;
