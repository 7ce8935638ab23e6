//! Tenants' quotas and usage.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foil_common::spec::DeviceKind;

use super::{Core, Entry};
use crate::clock::Now;
use crate::inputs::INPUTS;
use crate::job::{Change, Event, JobState};
use crate::queue::Share;
use crate::tenant::{Quota, QuotaExceeded, QuotaSet, StoredBytes, TenantStatus, Usage};

impl Core {
    /// Sets a tenant's quota.
    pub fn set_quota(&mut self, tenant: &str, quota: Quota, now: Now) {
        if self.quotas.get(tenant) == Some(&quota) {
            return;
        }
        tracing::info!(tenant, ?quota, "quota set");
        let set = QuotaSet { tenant: tenant.to_owned(), quota };
        let event = Event::new("", now.wall, Change::QuotaSet(Box::new(set)));
        self.apply_quota(&event.change);
        self.outbox.events.push(event);
        self.allocate(now);
    }

    /// Applies an event about a tenant. False if it is about a job.
    pub(super) fn apply_quota(&mut self, change: &Change) -> bool {
        let Change::QuotaSet(set) = change else { return false };
        self.quotas.insert(set.tenant.clone(), set.quota.clone());
        true
    }

    /// The tenants that have a quota, by name.
    pub fn each_quota(&self) -> impl Iterator<Item = (&str, &Quota)> {
        self.quotas.iter().map(|(tenant, quota)| (tenant.as_str(), quota))
    }

    /// Number of tenants that have a quota.
    pub fn quotas(&self) -> usize {
        self.quotas.len()
    }

    pub fn has_quota(&self, tenant: &str) -> bool {
        self.quotas.contains_key(tenant)
    }

    pub fn tenant(&self, name: &str) -> TenantStatus {
        let quota = self.quotas.get(name).cloned().unwrap_or_default();
        TenantStatus { name: name.to_owned(), quota, usage: self.usage(name) }
    }

    /// Status of the tenants that have a quota or a job, by name, starting after a name.
    pub fn tenants_after(&self, after: &str, limit: usize) -> Vec<TenantStatus> {
        let of_jobs = self.jobs.values().map(|entry| entry.state.submitted.tenant());
        let names: BTreeSet<&str> = self.quotas.keys().map(String::as_str).chain(of_jobs).collect();
        names.into_iter().filter(|name| *name > after).take(limit).map(|name| self.tenant(name)).collect()
    }

    /// Checks that a tenant may submit one more job.
    pub fn check_submission(&self, tenant: &str) -> Result<(), QuotaExceeded> {
        match self.quotas.get(tenant) {
            Some(quota) => quota.check_submission(tenant, &self.usage(tenant)),
            None => Ok(()),
        }
    }

    /// A tenant's limit of stored bytes, if it has one, with the bytes that its jobs use apart from their
    /// inputs.
    pub fn stored_apart_from_inputs(&self, tenant: &str) -> Option<StoredBytes> {
        let max = self.quotas.get(tenant)?.stored_bytes?;
        let mut objects: HashMap<&str, u64> = HashMap::new();
        let states = self.jobs.values().map(|entry| &*entry.state);
        states
            .filter(|state| state.submitted.tenant() == tenant)
            .for_each(|state| stored(state, &mut objects));
        let is_input = |key: &str| key.strip_prefix(INPUTS).is_some_and(|rest| rest.starts_with('/'));
        let stored = objects.into_iter().filter(|(key, _)| !is_input(key)).map(|(_, size)| size).sum();
        Some(StoredBytes { stored, max })
    }

    fn usage(&self, tenant: &str) -> Usage {
        let mut usage = Usage::default();
        let mut objects: HashMap<&str, u64> = HashMap::new();
        for Entry { state, attempt, .. } in self.jobs.values() {
            if state.submitted.tenant() != tenant {
                continue;
            }
            if attempt.is_some() {
                usage.running_jobs += 1;
                *usage.devices.entry(state.spec.resources.device.name()).or_default() +=
                    state.spec.resources.ranks;
            } else if state.wants_devices() {
                usage.queued_jobs += 1;
            }
            stored(state, &mut objects);
        }
        usage.stored_bytes = objects.values().sum();
        usage
    }
}

/// The limits of a tenant's share of the cluster, with nothing used yet.
pub(super) fn share(quotas: &Quotas, tenant: &str) -> Share {
    let Some(quota) = quotas.get(tenant) else { return Share::default() };
    let mut share = Share { max_jobs: quota.running_jobs.map(|max| max as usize), ..Share::default() };
    for &kind in DeviceKind::ALL {
        share.devices.entry(kind).or_default().max = quota.devices(kind);
    }
    share
}

/// Adds the objects that the log records for a job, with their sizes.
fn stored<'a>(state: &'a JobState, objects: &mut HashMap<&'a str, u64>) {
    let submitted = &state.submitted;
    let artifacts = state.committed.iter().flat_map(|done| [Some(&done.artifact), done.steps.as_ref()]);
    let models = [Some(&submitted.policy), submitted.reward.as_ref()];
    let of_artifacts = artifacts.chain(models).flatten().flat_map(|artifact| &artifact.objects);
    let of_data = submitted.datasets.iter().filter_map(|dataset| dataset.object.as_ref());
    let of_chunks = state.chunks.values().map(|done| &done.object);
    let of_checkpoints = state.checkpoints.iter().flat_map(|made| &made.objects);
    let all = of_artifacts.chain(of_data).chain(of_chunks).chain(of_checkpoints);
    objects.extend(all.map(|object| (object.key.as_str(), object.size)));
}

/// Quotas by tenant, as recorded in the log.
pub(super) type Quotas = BTreeMap<String, Quota>;
