//! The object store: opening it by URL, create-once writes, the log, hashed objects.
//!
//! One dependency carries Foil from a laptop's directory to S3, Google Cloud Storage and Azure. All durable
//! state is written by [`Store::create`], which writes a key at most once; large immutable files are
//! [hashed objects](object), which become visible only when they are whole.

mod error;
#[cfg(test)]
pub(crate) mod fault;
mod health;
pub mod key;
pub mod log;
pub mod object;
mod open;
mod store;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use store::{ByteStream, Listed, Nap, Put, Store};
