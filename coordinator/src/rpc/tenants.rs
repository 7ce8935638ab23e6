//! The Tenants service.

use std::collections::BTreeMap;

use foil_common::spec::DeviceKind;
use foil_proto::v1::{self, tenants_server::Tenants};
use tonic::{Request, Response, Status};

use super::auth::{caller, only_admins};
use super::listing;
use super::status::{bad_field, echo, not_leading, stopped};
use crate::auth::Role;
use crate::driver::Handle;
use crate::leadership::LeadershipHandle;
use crate::tenant::{Quota, Tenant, TenantStatus};

const PAGE_SIZE: u32 = 1000;

#[derive(Debug, Clone)]
pub(super) struct TenantsService {
    leadership: LeadershipHandle,
}

impl TenantsService {
    pub(super) fn new(leadership: LeadershipHandle) -> Self {
        Self { leadership }
    }

    fn driver(&self) -> Result<Handle, Status> {
        self.leadership.driver().map_err(|why| not_leading(&why))
    }
}

#[tonic::async_trait]
impl Tenants for TenantsService {
    async fn set_quota(&self, request: Request<v1::SetQuotaRequest>) -> Result<Response<v1::Tenant>, Status> {
        let caller = caller(&request)?;
        let v1::SetQuotaRequest { tenant, quota } = request.into_inner();
        check_name(&tenant)?;
        caller.changes(&format!("tenant/{tenant}"));
        let quota = quota.ok_or_else(|| bad_field("quota", "give the limits; one left out is no limit"))?;
        let quota = parse(quota)?;
        let tenant = self.driver()?.set_quota(&tenant, quota).await.map_err(stopped)?;
        let tenant = tenant.ok_or_else(|| bad_field("tenant", "there are too many tenants with a quota"))?;
        Ok(Response::new(tenant.into()))
    }

    async fn get_quota(&self, request: Request<v1::GetQuotaRequest>) -> Result<Response<v1::Tenant>, Status> {
        let caller = caller(&request)?;
        let name = request.into_inner().tenant;
        check_name(&name)?;
        if caller.tenant.as_str() != name && caller.role != Role::Admin {
            return Err(only_admins("see the quotas of other tenants"));
        }
        let tenant = self.driver()?.tenant(&name).await.map_err(stopped)?;
        Ok(Response::new(tenant.into()))
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        let v1::ListTenantsRequest { page_size, page_token } = request.into_inner();
        if !page_token.is_empty() {
            check_name(&page_token)
                .map_err(|_| bad_field("page_token", "it is no token of an earlier page"))?;
        }
        let size = listing::page_size(page_size, PAGE_SIZE, PAGE_SIZE);
        let mut tenants = self.driver()?.tenants_after(&page_token, size + 1).await.map_err(stopped)?;
        let more = tenants.len() > size;
        tenants.truncate(size);
        let next_page_token =
            tenants.last().filter(|_| more).map(|last| last.name.clone()).unwrap_or_default();
        let tenants = tenants.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListTenantsResponse { tenants, next_page_token }))
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    name.parse::<Tenant>().map(drop).map_err(|problem: String| bad_field("tenant", &problem))
}

fn parse(quota: v1::Quota) -> Result<Quota, Status> {
    let v1::Quota { devices, running_jobs, queued_jobs, stored_bytes, requests_per_second } = quota;
    if let Some(kind) = devices.keys().find(|kind| !DeviceKind::NAMES.contains(&kind.as_str())) {
        let expected = DeviceKind::NAMES.join(" or ");
        return Err(bad_field("quota.devices", &format!("found {:?}, expected {expected}", echo(kind))));
    }
    if requests_per_second == Some(0) {
        let problem = "found 0, expected at least 1; leave it out for no limit";
        return Err(bad_field("quota.requests_per_second", problem));
    }
    Ok(Quota { devices, running_jobs, queued_jobs, stored_bytes, requests_per_second })
}

impl From<TenantStatus> for v1::Tenant {
    fn from(tenant: TenantStatus) -> Self {
        let TenantStatus { name, quota, usage } = tenant;
        let Quota { devices, running_jobs, queued_jobs, stored_bytes, requests_per_second } = quota;
        let quota = v1::Quota { devices, running_jobs, queued_jobs, stored_bytes, requests_per_second };
        let devices: BTreeMap<String, u32> =
            usage.devices.into_iter().map(|(kind, number)| (kind.to_owned(), number)).collect();
        let usage = v1::TenantUsage {
            devices,
            running_jobs: usage.running_jobs,
            queued_jobs: usage.queued_jobs,
            stored_bytes: usage.stored_bytes,
        };
        Self { name, quota: Some(quota), usage: Some(usage) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds_are_checked() {
        for name in ["", "a b", "a/b", &"a".repeat(300)] {
            let message = check_name(name).unwrap_err().message().to_owned();
            assert!(message.starts_with("tenant: "), "{message}");
        }
        check_name("research-2").unwrap();
        let devices = [("tpu".to_owned(), 1)].into();
        let refusal = parse(v1::Quota { devices, ..Default::default() }).unwrap_err();
        assert!(refusal.message().contains("expected cpu or cuda"), "{refusal}");
        let refusal = parse(v1::Quota { requests_per_second: Some(0), ..Default::default() }).unwrap_err();
        assert!(refusal.message().contains("expected at least 1"), "{refusal}");
    }
}
