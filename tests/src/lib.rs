//! Harness of the end-to-end tests, which run real processes of `foil` and `foil-worker` in temporary
//! directories.

#![allow(clippy::disallowed_methods, reason = "end-to-end tests own their clock and their randomness")]
// Skipped tests print the reason.
#![allow(clippy::print_stderr)]

mod binaries;
mod certificates;
mod cgroup;
mod conformance;
mod fake_gpu;
mod fault_proxy;
mod http_server;
mod mlflow_server;
mod namespaces;
mod otlp_collector;
mod outcome;
mod paired;
mod prometheus;
mod run;
mod samples;
mod service;
mod slow_link;
mod store_server;

pub use binaries::{foil, foil_worker};
pub use certificates::{Ca, Certificate};
pub use cgroup::Cgroup;
pub use conformance::check_store;
pub use fake_gpu::{DeviceMemory, Event, FakeGpu, Trace};
pub use fault_proxy::{FaultProxy, Faults};
pub use http_server::{HttpRequest, HttpServer, NO_ANSWER};
pub use mlflow_server::{MlflowServer, SentRun};
pub use namespaces::{Link, Namespaces};
pub use otlp_collector::{OtlpCollector, SentSpan};
pub use outcome::{Estimate, Outcome, Round};
pub use paired::{difference, gold_by_prompt};
pub use prometheus::{lint_errors, metric_names, page, promtool};
pub use run::{Run, SMALL, letters_job};
pub use samples::{Completion, completions_by_prompt, steps};
pub use service::{Process, Service, wait_for};
pub use slow_link::slow_link;
pub use store_server::StoreServer;
