//! The one task that owns all state.
//!
//! Commands come in by an inbox, decisions are made by [`core`], events go to the journal, and nothing leaves the
//! process (a command to a rank, an answer to a user) before the events decided on until then are durable.

pub mod core;

mod command;
mod handle;
mod links;
mod shell;
mod sweeping;
mod telemetry;

pub use command::{Found, Page, Query, StreamEnd, Subscription};
pub use handle::{Handle, Stopped};
pub use shell::{Driver, DriverError, Settings};
