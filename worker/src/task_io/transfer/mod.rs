//! Transfers of objects over the coordinator's Artifacts service, for the device thread.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use foil_common::activity::Activity;
use foil_common::rpc::LeaderChannel;
use foil_common::rpc::artifacts::{self, DirectAccess, Moved, TransferError, Writer};
use foil_common::storage::object::Digest;
use tokio::runtime::Handle;

use super::artifact_cache::{ObjectError, ObjectStore};
use super::progress::Reporter;
use crate::task::Object;

/// The Artifacts service as an object store. Blocks its caller, which must not be a thread of the runtime. It
/// uses a separate connection, so that transfers do not delay messages of the session.
#[derive(Clone)]
pub(crate) struct Transfer {
    runtime: Handle,
    channel: LeaderChannel,
    writer: Writer,
    reports: Reporter,
    direct: Arc<DirectAccess>,
}

impl Transfer {
    pub(crate) fn new(runtime: Handle, channel: LeaderChannel, writer: Writer, reports: Reporter) -> Self {
        Self { runtime, channel, writer, reports, direct: Arc::default() }
    }

    /// Reports `bytes` as they are transferred.
    fn moved(&self, activity: Activity, bytes: u64) -> Moved {
        self.reports.expect(activity, bytes);
        let reports = self.reports.clone();
        Arc::new(move |more| reports.advance(activity, more))
    }

    fn wait<T>(
        &self,
        key: &str,
        transfer: impl Future<Output = Result<T, TransferError>>,
    ) -> Result<T, ObjectError> {
        self.runtime.block_on(transfer).map_err(|error| match error {
            TransferError::Stale { message, .. } => ObjectError::Stale { message },
            error @ (TransferError::Corrupt { .. } | TransferError::NotFound { .. }) => {
                ObjectError::Damaged { key: key.to_owned(), message: error.to_string() }
            }
            TransferError::File { path, source } => ObjectError::Disk { path, source },
            other => ObjectError::Store { key: key.to_owned(), message: other.to_string() },
        })
    }
}

impl ObjectStore for Transfer {
    fn share(&self) -> Box<dyn ObjectStore> {
        Box::new(self.clone())
    }

    fn download(&self, object: &Object, file: &Path) -> Result<(), ObjectError> {
        let moved = self.moved(Activity::Downloading, object.size);
        self.wait(
            &object.key,
            artifacts::download_to_cache(&self.channel, &object.clone().into(), &self.direct, file, &moved),
        )
    }

    fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<Object, ObjectError> {
        let moved = self.moved(Activity::Uploading, bytes.len() as u64);
        let upload = artifacts::upload_bytes(&self.channel, key, &self.writer, bytes.into(), &moved);
        Ok(self.wait(key, upload)?.into())
    }

    fn upload_file(&self, key: &str, file: &Path, digest: &Digest) -> Result<Object, ObjectError> {
        let moved = self.moved(Activity::Uploading, digest.size);
        let (channel, writer, direct) = (&self.channel, &self.writer, &*self.direct);
        let upload = artifacts::upload_file(channel, key, writer, (file, digest), Some(direct), &moved);
        Ok(self.wait(key, upload)?.into())
    }
}

#[cfg(test)]
mod tests;
