//! Transfers between ranks and the store itself, by URLs that this service signs.

use std::time::Duration;

use foil_common::failpoint;
use foil_proto::v1;
use tonic::Status;

use super::status::{bad_field, busy, from_store};
use super::{ArtifactsService, access, is_log};
use crate::rpc::auth::Caller;
use crate::rpc::status::being_deleted;

/// Validity of a URL for reading; a read that is interrupted later gets another one.
const READ_VALIDITY: Duration = Duration::from_secs(15 * 60);
/// Validity of an upload's URLs. An upload that takes longer goes through the coordinator.
const WRITE_VALIDITY: Duration = Duration::from_secs(3600);
/// Maximum size of an upload's id and ETags.
const MAX_ID_BYTES: usize = 4096;
const MAX_ETAGS: usize = 1024;

impl ArtifactsService {
    /// The answer to a rank that reads a large object by URL; `None` if the object goes through this service.
    pub(super) async fn read_by_url(
        &self,
        key: &str,
        stored: &str,
    ) -> Result<Option<v1::GetResponse>, Status> {
        let Some(min) = self.direct else { return Ok(None) };
        let object = self.store.stat_object(stored).await.map_err(|error| from_store(&error))?;
        if object.size < min {
            return Ok(None);
        }
        match self.store.read_url(stored, READ_VALIDITY).await {
            Ok(None) => Ok(None),
            Ok(Some(url)) => {
                metrics::counter!("foil_direct_transfers_total", "direction" => "out").increment(1);
                let object = Some(v1::Object { key: key.to_owned(), ..object });
                Ok(Some(v1::GetResponse { object, url, ..Default::default() }))
            }
            Err(error) => {
                tracing::warn!(%error, "the store signs no URL; the object is sent instead");
                Ok(None)
            }
        }
    }

    pub(super) async fn begin_by_url(
        &self,
        begin: v1::PutBegin,
        caller: &Caller,
    ) -> Result<v1::BeginUploadResponse, Status> {
        caller.changes(&begin.key);
        let announced = access::announced(&begin)?;
        if begin.job_id.is_empty() || is_log(&begin) {
            return Err(bad_field(
                "begin.key",
                "only a rank uploads by URL, and only below its job's phases",
            ));
        }
        let key = access::may_write(&begin, caller, &*self.attempts)?;
        if self.direct.is_none_or(|min| begin.size < min.max(1)) {
            return Ok(v1::BeginUploadResponse::default());
        }
        if let Some(object) = self.already_there(&key, &announced).await? {
            return Ok(v1::BeginUploadResponse { object: Some(object), ..Default::default() });
        }
        let upload = match self.store.begin_url_upload(&key, begin.size, WRITE_VALIDITY).await {
            Ok(Some(upload)) => upload,
            Ok(None) => return Ok(v1::BeginUploadResponse::default()),
            Err(error) => {
                tracing::warn!(%error, "the store takes no upload by URL; the object is received instead");
                return Ok(v1::BeginUploadResponse::default());
            }
        };
        let (upload_id, part_bytes) = (upload.id, upload.part_bytes);
        Ok(v1::BeginUploadResponse { object: None, upload_id, part_bytes, urls: upload.urls })
    }

    pub(super) async fn finish_by_url(
        &self,
        request: v1::FinishUploadRequest,
        caller: &Caller,
    ) -> Result<v1::FinishUploadResponse, Status> {
        let v1::FinishUploadRequest { begin, upload_id, etags } = request;
        let begin = begin.ok_or_else(|| bad_field("begin", "it is missing"))?;
        caller.changes(&begin.key);
        let announced = access::announced(&begin)?;
        if begin.job_id.is_empty() || upload_id.is_empty() || upload_id.len() > MAX_ID_BYTES {
            return Err(bad_field(
                "upload_id",
                "expected the id of an upload that BeginUpload began for a rank",
            ));
        }
        if etags.len() > MAX_ETAGS || etags.iter().any(|etag| etag.is_empty() || etag.len() > MAX_ID_BYTES) {
            return Err(bad_field("etags", "expected the ETag of each part"));
        }
        let key = access::may_write(&begin, caller, &*self.attempts)?;
        if etags.is_empty() {
            self.store.abort_url_upload(&key, &upload_id).await;
            return Ok(v1::FinishUploadResponse::default());
        }
        let _hold = self.in_use.hold([key.clone()]).map_err(|why| being_deleted(&why))?;
        failpoint::hit("artifact.receive").map_err(|injected| busy(&injected.to_string()))?;
        // An upload that became stale in the meantime must not become an object.
        let is_current = || access::may_write(&begin, caller, &*self.attempts).is_ok();
        let finished = self.store.finish_url_upload(&key, &announced, &upload_id, etags, is_current).await;
        let Some(object) = finished.map_err(|error| from_store(&error))? else {
            access::may_write(&begin, caller, &*self.attempts)?;
            return Err(busy("the attempt changed while the upload was finished"));
        };
        metrics::counter!("foil_direct_transfers_total", "direction" => "in").increment(1);
        Ok(v1::FinishUploadResponse { object: Some(object) })
    }
}
