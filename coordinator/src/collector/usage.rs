//! Bytes and objects in the store, by tenant, job and kind.

use std::collections::BTreeMap;

use foil_common::storage::object::SIDECAR;

use super::kind::{INPUTS, JOBS, Kind, META, job_of};
use super::{CollectError, Collector};
use crate::auth::Scope;

/// Number of objects and their bytes; a sidecar counts toward the bytes, but not as an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub objects: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// Objects and bytes in the store.
#[derive(Debug, Default)]
pub struct Usage {
    /// By tenant and kind. The journal, inputs that no job refers to, and objects of no job have no tenant.
    pub tenants: BTreeMap<(String, Kind), Amount>,
    /// By job, with its name, tenant and kinds. A job that does not exist has neither name nor tenant.
    pub jobs: BTreeMap<String, JobUsage>,
    pub total: Amount,
}

#[derive(Debug, Default)]
pub struct JobUsage {
    pub name: String,
    pub tenant: String,
    pub kinds: BTreeMap<Kind, Amount>,
}

impl JobUsage {
    pub fn bytes(&self) -> u64 {
        self.kinds.values().map(|amount| amount.bytes).sum()
    }
}

type ByKey = BTreeMap<String, Amount>;
type ByJob = BTreeMap<(String, Kind), Amount>;

impl Collector {
    /// Counts all objects.
    pub async fn usage(&self) -> Result<Usage, CollectError> {
        let driver = self.leadership.driver()?;
        let inputs = self.store.scan(INPUTS, ByKey::new, |counted, scanned| {
            let key = scanned.key.strip_suffix(SIDECAR).unwrap_or(&scanned.key);
            counted.entry(key.to_owned()).or_default().add(amount(&scanned.key, scanned.size));
        });
        let inputs = inputs.await?;
        let jobs = self.store.scan(JOBS, ByJob::new, |counted, scanned| {
            let key = scanned.key.strip_suffix(SIDECAR).unwrap_or(&scanned.key);
            let job = job_of(key).unwrap_or_default().to_owned();
            counted.entry((job, Kind::of(key))).or_default().add(amount(&scanned.key, scanned.size));
        });
        let jobs = jobs.await?;
        let journal = self.store.scan(META, Amount::default, |counted, scanned| {
            counted.add(Amount { objects: 1, bytes: scanned.size });
        });
        let journal = journal.await?;
        let usage = driver.survey(move |core| {
            let mut usage = Usage::default();
            usage.count("", Kind::Journal, journal);
            let mut owners = BTreeMap::new();
            for state in core.states() {
                for key in state.outside_keys() {
                    owners.entry(key).or_insert_with(|| state.submitted.tenant().to_owned());
                }
            }
            for (key, amount) in inputs {
                usage.count(owners.get(&key).map_or("", String::as_str), Kind::Input, amount);
            }
            for ((job, kind), amount) in jobs {
                let state = core.state(&job);
                let tenant = state.map_or("", |state| state.submitted.tenant());
                usage.count(tenant, kind, amount);
                let counted = usage.jobs.entry(job).or_default();
                counted.tenant = tenant.to_owned();
                counted.name = state.map(|state| state.name().to_owned()).unwrap_or_default();
                counted.kinds.insert(kind, amount);
            }
            usage
        });
        Ok(usage.await?)
    }
}

impl Usage {
    /// The usage restricted to the tenants of a scope.
    pub fn within(mut self, scope: &Scope) -> Self {
        if *scope == Scope::AllTenants {
            return self;
        }
        self.tenants.retain(|(tenant, _), _| scope.includes(tenant));
        self.jobs.retain(|_, job| scope.includes(&job.tenant));
        self.total = Amount::default();
        for amount in self.tenants.values() {
            self.total.add(*amount);
        }
        self
    }

    fn count(&mut self, tenant: &str, kind: Kind, amount: Amount) {
        if amount != Amount::default() {
            self.tenants.entry((tenant.to_owned(), kind)).or_default().add(amount);
            self.total.add(amount);
        }
    }
}

fn amount(key: &str, bytes: u64) -> Amount {
    Amount { objects: u64::from(!key.ends_with(SIDECAR)), bytes }
}
