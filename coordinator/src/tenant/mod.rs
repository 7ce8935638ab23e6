//! Tenants: their quotas, which are kept in the log, and their usage. Pure.

mod name;
mod rate;

use std::collections::BTreeMap;

use foil_common::plural::counted;
use foil_common::spec::DeviceKind;
use serde::{Deserialize, Serialize};

pub use self::name::{DEFAULT_TENANT, Tenant};
pub use self::rate::{RateExceeded, RequestRates};

/// Limits of a tenant; fields without a value are unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// Number of devices in use at the same time, by kind name.
    pub devices: BTreeMap<String, u32>,
    /// Number of jobs that hold devices at the same time.
    pub running_jobs: Option<u32>,
    /// Number of jobs that wait at the same time.
    pub queued_jobs: Option<u32>,
    /// Bytes in the store above which nothing more is accepted.
    pub stored_bytes: Option<u64>,
    /// Number of calls by its users per second.
    pub requests_per_second: Option<u32>,
}

/// A tenant's new quota, as recorded in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaSet {
    pub tenant: String,
    pub quota: Quota,
}

/// Usage of the cluster and the store by a tenant's jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub devices: BTreeMap<DeviceName, u32>,
    pub running_jobs: u32,
    pub queued_jobs: u32,
    pub stored_bytes: u64,
}

/// A tenant's limit of stored bytes, and the bytes that its jobs store apart from its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBytes {
    pub stored: u64,
    pub max: u64,
}

/// The name of a device kind, which sorts alphabetically.
pub type DeviceName = &'static str;

/// A tenant with its quota and its usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantStatus {
    pub name: String,
    pub quota: Quota,
    pub usage: Usage,
}

/// A limit that a submission or an upload would exceed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaExceeded {
    #[error(
        "tenant {tenant} has {} waiting and may have {max}; submit again when some have started, cancel some, or ask an \
         administrator for a larger quota (queued_jobs)", counted(*queued, "job")
    )]
    QueuedJobs { tenant: String, queued: u32, max: u32 },
    #[error(
        "tenant {tenant} has {stored} bytes in the store and may have {max}; ask an administrator for a larger quota \
         (stored_bytes)"
    )]
    StoredBytes { tenant: String, stored: u64, max: u64 },
    #[error(
        "tenant {tenant} has {stored} bytes in the store, inputs that no job names included, and may have {max}: there is no room for this upload of {size} bytes; delete jobs, or ask an administrator for a larger quota (stored_bytes)"
    )]
    Upload { tenant: String, stored: u64, size: u64, max: u64 },
}

impl QuotaExceeded {
    pub fn tenant(&self) -> &str {
        match self {
            Self::QueuedJobs { tenant, .. }
            | Self::StoredBytes { tenant, .. }
            | Self::Upload { tenant, .. } => tenant,
        }
    }

    /// The field of the quota.
    pub fn limit(&self) -> &'static str {
        match self {
            Self::QueuedJobs { .. } => "queued_jobs",
            Self::StoredBytes { .. } | Self::Upload { .. } => "stored_bytes",
        }
    }
}

impl Quota {
    /// Maximum number of devices of a kind.
    pub fn devices(&self, kind: DeviceKind) -> Option<usize> {
        self.devices.get(kind.name()).map(|max| *max as usize)
    }

    /// Checks that one more job may be submitted.
    pub fn check_submission(&self, tenant: &str, usage: &Usage) -> Result<(), QuotaExceeded> {
        let tenant = tenant.to_owned();
        if let Some(max) = self.queued_jobs.filter(|max| usage.queued_jobs >= *max) {
            return Err(QuotaExceeded::QueuedJobs { tenant, queued: usage.queued_jobs, max });
        }
        if let Some(max) = self.stored_bytes.filter(|max| usage.stored_bytes >= *max) {
            return Err(QuotaExceeded::StoredBytes { tenant, stored: usage.stored_bytes, max });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_is_refused_at_the_limit() {
        let quota = Quota { queued_jobs: Some(2), stored_bytes: Some(100), ..Quota::default() };
        let check = |queued_jobs, stored_bytes| {
            let usage = Usage { queued_jobs, stored_bytes, ..Usage::default() };
            quota.check_submission("research", &usage).map_err(|exceeded| exceeded.limit())
        };
        assert_eq!(check(1, 99), Ok(()));
        assert_eq!(check(2, 0), Err("queued_jobs"));
        assert_eq!(check(0, 100), Err("stored_bytes"));
        assert_eq!(Quota::default().check_submission("research", &Usage::default()), Ok(()));
        let none = Quota { queued_jobs: Some(0), ..Quota::default() };
        let message = none.check_submission("research", &Usage::default()).unwrap_err().to_string();
        assert!(message.starts_with("tenant research has 0 jobs waiting and may have 0;"), "{message}");
    }
}
