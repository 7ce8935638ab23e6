//! A tenant's limit of stored bytes, enforced on uploads of inputs before their bytes are stored.
//!
//! The log lists the objects of jobs, but not inputs that no job refers to yet. Those are counted in the
//! store, which is rarely listed: uploads since the last listing are added to it, and the store is listed
//! again before an upload is refused.

#![expect(clippy::disallowed_methods, reason = "listings age")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foil_common::storage::Store;
use tokio::time::Instant;
use tonic::Status;

use super::access::AttemptCheck;
use super::status::from_store;
use crate::inputs::{self, INPUTS};
use crate::rpc::status::quota_exceeded;
use crate::tenant::{QuotaExceeded, StoredBytes, Tenant};

/// Age after which the store is listed again, which covers uploads through other coordinators.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Maximum age of a listing that may justify a refusal, because garbage collections delete inputs.
const FRESH: Duration = Duration::from_secs(10);

/// Admits uploads of inputs.
pub(super) struct UploadQuota {
    store: Store,
    fresh: Duration,
    /// Inputs by tenant, for tenants that have a limit.
    tenants: Mutex<HashMap<Tenant, Arc<Inputs>>>,
}

/// The inputs of one tenant.
#[derive(Default)]
struct Inputs {
    /// When the store was last listed. Locked during a listing and while an upload is admitted.
    listed_at: tokio::sync::Mutex<Option<Instant>>,
    bytes: Mutex<Bytes>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    /// Bytes found by the last listing.
    listed: u64,
    /// Bytes of uploads that ended since the last listing began.
    added: u64,
    /// Bytes of uploads in progress, as announced.
    pending: u64,
}

impl UploadQuota {
    pub(super) fn new(store: Store) -> Self {
        Self { store, fresh: FRESH, tenants: Mutex::default() }
    }

    /// Admits an upload of this size; none if the tenant has no limit.
    ///
    /// # Errors
    /// The upload would put the tenant over its limit.
    pub(super) async fn admit(
        &self,
        tenant: &Tenant,
        size: u64,
        quotas: &dyn AttemptCheck,
    ) -> Result<Option<Admitted>, Status> {
        let Some(StoredBytes { stored, max }) = quotas.stored_bytes(tenant).await? else { return Ok(None) };
        let inputs = self.of(tenant);
        let mut listed_at = inputs.listed_at.lock().await;
        let is_older = |at: Option<Instant>, age| at.is_none_or(|at| at.elapsed() >= age);
        let total = || stored.saturating_add(inputs.total());
        let exceeds = || total().saturating_add(size) > max;
        if is_older(*listed_at, MAX_AGE) || (exceeds() && is_older(*listed_at, self.fresh)) {
            let began = Instant::now();
            self.list(tenant, &inputs).await?;
            *listed_at = Some(began);
        }
        if exceeds() {
            let (tenant, stored) = (tenant.to_string(), total());
            return Err(quota_exceeded(&QuotaExceeded::Upload { tenant, stored, size, max }));
        }
        inputs.bytes().pending += size;
        drop(listed_at);
        Ok(Some(Admitted { inputs, size, is_stored: false }))
    }

    async fn list(&self, tenant: &Tenant, inputs: &Inputs) -> Result<(), Status> {
        let before = inputs.bytes().added;
        let is_own =
            |key: &str| inputs::parse_key(key, &Tenant::default()).is_some_and(|(of, _)| of == *tenant);
        let prefix = match *tenant == Tenant::default() {
            true => INPUTS.to_owned(),
            false => format!("{INPUTS}/{tenant}"),
        };
        let listed = self.store.scan(&prefix, u64::default, |sum, found| {
            if is_own(&found.key) {
                *sum += found.size;
            }
        });
        let listed = listed.await.map_err(|error| from_store(&error))?;
        let mut bytes = inputs.bytes();
        // An upload that ended during the listing may or may not be in it; it is better counted twice than
        // not at all.
        *bytes = Bytes { listed, added: bytes.added - before, pending: bytes.pending };
        Ok(())
    }

    fn of(&self, tenant: &Tenant) -> Arc<Inputs> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tenants.entry(tenant.clone()).or_default())
    }
}

impl Inputs {
    fn total(&self) -> u64 {
        let Bytes { listed, added, pending } = *self.bytes();
        listed.saturating_add(added).saturating_add(pending)
    }

    fn bytes(&self) -> MutexGuard<'_, Bytes> {
        // Each change is complete in itself, so a panic elsewhere leaves no inconsistent state.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload in progress, counted at its announced size.
pub(super) struct Admitted {
    inputs: Arc<Inputs>,
    size: u64,
    is_stored: bool,
}

impl Admitted {
    /// Records that the upload has been stored.
    pub(super) fn stored(mut self) {
        self.is_stored = true;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut bytes = self.inputs.bytes();
        bytes.pending -= self.size;
        if self.is_stored {
            bytes.added += self.size;
        }
    }
}

#[cfg(test)]
impl UploadQuota {
    /// Lists the store before each refusal.
    pub(super) fn always_listing(store: Store) -> Self {
        Self { fresh: Duration::ZERO, ..Self::new(store) }
    }
}
