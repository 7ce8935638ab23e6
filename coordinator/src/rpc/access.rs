//! The Access service: reports the caller's identity.

use foil_proto::v1::{self, access_server::Access};
use tonic::{Request, Response, Status};

use super::auth::caller;
use crate::auth::{Role, Source};
use crate::clock::timestamp;

/// The Access service. It needs no leader.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AccessService;

#[tonic::async_trait]
impl Access for AccessService {
    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let caller = caller(&request)?;
        let millis = |at: std::time::SystemTime| {
            let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        };
        Ok(Response::new(v1::WhoAmIResponse {
            name: caller.name.clone(),
            tenant: caller.tenant.to_string(),
            role: role(caller.role).into(),
            credential: credential(caller.source).into(),
            expires_at: caller.expires.map(|at| timestamp(millis(at))),
        }))
    }
}

fn role(role: Role) -> v1::Role {
    match role {
        Role::Viewer => v1::Role::Viewer,
        Role::Submitter => v1::Role::Submitter,
        Role::Operator => v1::Role::Operator,
        Role::Admin => v1::Role::Admin,
        Role::Agent => v1::Role::Agent,
    }
}

fn credential(source: Source) -> v1::Credential {
    match source {
        Source::Local => v1::Credential::None,
        Source::Token => v1::Credential::Token,
        Source::Certificate => v1::Credential::Certificate,
        Source::Jwt => v1::Credential::Jwt,
    }
}
