//! The object store: opened by URL, with create-once writes, the log and hashed objects.
//!
//! The `object_store` crate supports local directories, S3, Google Cloud Storage and Azure. All durable state
//! is written by [`Store::create`], which writes a key at most once; large immutable files are [hashed
//! objects](object), which become visible only when they are complete.

mod chunks;
mod copy;
mod error;
#[cfg(test)]
pub(crate) mod fault;
mod health;
pub mod key;
pub mod log;
mod nap;
pub mod object;
mod open;
mod remote;
mod scan;
mod store;
#[cfg(test)]
mod tests;
mod urls;

pub use copy::{Copied, CopyError, copy};
pub use error::StoreError;
pub use nap::Nap;
pub use remote::RemoteFile;
pub use scan::Scanned;
pub use store::{ByteStream, Listed, Put, Store};
pub use urls::{UrlUpload, Urls};
