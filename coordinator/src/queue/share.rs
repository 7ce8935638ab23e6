use std::collections::HashMap;

use foil_common::spec::DeviceKind;

use super::{Demand, WaitCause};

/// A tenant's usage of the cluster, and its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Number of jobs with an attempt.
    pub jobs: usize,
    pub max_jobs: Option<usize>,
    pub devices: HashMap<DeviceKind, Portion>,
}

/// A tenant's usage of the devices of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Portion {
    /// Ranks of the tenant's jobs that have an attempt.
    pub used: usize,
    pub max: Option<usize>,
    /// The remaining devices are reserved for a job of the tenant that waits for more.
    pub(super) reserved: bool,
}

impl Share {
    /// The reason why the tenant's quota keeps a job from starting, if it does. Once the job is due
    /// (`is_due`), the rest of the quota is reserved for it.
    pub(super) fn check(&mut self, demand: &Demand, is_due: bool) -> Option<WaitCause> {
        if let Some(max) = self.max_jobs.filter(|max| self.jobs >= *max) {
            return Some(WaitCause::TenantJobs { running: self.jobs, max });
        }
        let portion = self.devices.entry(demand.kind).or_default();
        let max = portion.max?;
        if demand.ranks > max {
            return Some(WaitCause::TenantTooLarge { max });
        }
        if portion.reserved {
            return Some(WaitCause::TenantKept);
        }
        if portion.used + demand.ranks <= max {
            return None;
        }
        portion.reserved |= is_due;
        Some(WaitCause::TenantDevices { used: portion.used, max })
    }

    /// Counts a job that starts.
    pub(super) fn take(&mut self, demand: &Demand) {
        self.jobs += 1;
        self.devices.entry(demand.kind).or_default().used += demand.ranks;
    }
}
