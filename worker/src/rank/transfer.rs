//! Objects by the coordinator's Artifacts service, for the device thread.

use std::future::Future;
use std::path::Path;

use foil_common::rpc::artifacts::{self, TransferError, Writer};
use foil_proto::v1;
use tokio::runtime::Handle;
use tonic::transport::Channel;

use super::cache::{ObjectError, Objects};

/// Blocks its caller, which must be no thread of the runtime. On a connection of its own, so that no message of the
/// session waits behind bytes.
pub(super) struct Transfer {
    runtime: Handle,
    channel: Channel,
    writer: Writer,
}

impl Transfer {
    pub(super) fn new(runtime: Handle, channel: Channel, job_id: &str, attempt: u32) -> Self {
        Self { runtime, channel, writer: Writer::rank(job_id, attempt) }
    }

    fn wait<T>(
        &self,
        key: &str,
        transfer: impl Future<Output = Result<T, TransferError>>,
    ) -> Result<T, ObjectError> {
        self.runtime.block_on(transfer).map_err(|error| match error {
            TransferError::Stale { message, .. } => ObjectError::Stale { message },
            TransferError::File { path, source } => ObjectError::Disk { path, source },
            other => ObjectError::Store { key: key.to_owned(), message: other.to_string() },
        })
    }
}

impl Objects for Transfer {
    fn download(&self, object: &v1::Object, file: &Path) -> Result<(), ObjectError> {
        self.wait(&object.key, artifacts::download_to_file(&self.channel, object, file))
    }

    fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<v1::Object, ObjectError> {
        self.wait(key, artifacts::upload_bytes(&self.channel, key, &self.writer, bytes.into()))
    }

    fn upload_file(&self, key: &str, file: &Path) -> Result<v1::Object, ObjectError> {
        self.wait(key, artifacts::upload_file(&self.channel, key, &self.writer, file))
    }
}
