//! The single task that owns all state.
//!
//! Commands arrive in an inbox, [`core`] makes the decisions, events go to the journal, and nothing leaves
//! the process (a command to a rank, an answer to a user) before all events decided so far are durable.

pub mod core;

mod command;
mod garbage;
mod handle;
mod settings;
mod shell;
mod streams;
mod telemetry;
mod user_handle;

pub use self::core::{DeleteError, Holder, PinError, Refusal};
pub use command::{Found, Page, PinChange, Query, Stopped, StreamEnd, SubmitError, Subscription};
pub use handle::Handle;
pub use settings::Settings;
pub use shell::{Driver, DriverError};
pub use user_handle::UserHandle;
pub(crate) use user_handle::whole_lines;
