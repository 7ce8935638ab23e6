//! The caller as the services see it.

use std::sync::{Arc, OnceLock};

use foil_common::rpc::{RANK_SECRET, RANK_SESSION};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use tonic_types::ErrorDetails;

use crate::auth::{Principal, Role};
use crate::job::Submitted;
use crate::rpc::status::{echo, status};

/// The principal of a request, attached by the middleware. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::rpc) struct Caller(Arc<Call>);

#[derive(Debug)]
struct Call {
    principal: Principal,
    note: OnceLock<Note>,
}

/// Subject of a call, for the audit log.
#[derive(Debug, Clone, Default)]
pub(super) struct Note {
    pub(super) resource: String,
    pub(super) request_id: String,
}

impl Caller {
    pub(in crate::rpc) fn new(principal: Principal) -> Self {
        Self(Arc::new(Call { principal, note: OnceLock::new() }))
    }

    /// Records for the audit log what the call changes, such as `job/01m8…`; only the first record counts.
    pub(in crate::rpc) fn changes(&self, resource: &str) {
        self.changes_by(resource, "");
    }

    /// Like [`Self::changes`], with the request's id.
    pub(in crate::rpc) fn changes_by(&self, resource: &str, request_id: &str) {
        self.0.note.get_or_init(|| Note { resource: echo(resource), request_id: echo(request_id) });
    }

    pub(super) fn note(&self) -> Option<&Note> {
        self.0.note.get()
    }
}

impl std::ops::Deref for Caller {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.0.principal
    }
}

/// The caller of a request.
///
/// # Errors
/// The request has not passed [`super::authorize`]. This is a bug, and nothing may be answered.
pub(in crate::rpc) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let found = request.extensions().get::<Caller>().cloned();
    found.ok_or_else(|| Status::internal("the call has no principal; please report this"))
}

/// Checks that a principal may cancel or delete a job that is visible to it.
pub(in crate::rpc) fn may_change(
    principal: &Principal,
    job: &str,
    submitted: &Submitted,
) -> Result<(), Status> {
    if principal.may_change(submitted) {
        return Ok(());
    }
    let owner = if submitted.owner.is_empty() { "somebody else" } else { &submitted.owner };
    let message = format!(
        "job {} belongs to {}, and only its owner or an {} of the tenant may change it",
        echo(job),
        echo(owner),
        Role::Operator
    );
    Err(status(Code::PermissionDenied, "NOT_OWNER", message, ErrorDetails::new()))
}

/// Status for a user who is not an admin.
pub(in crate::rpc) fn only_admins(act: &str) -> Status {
    status(Code::PermissionDenied, "ROLE_REQUIRED", format!("only an admin may {act}"), ErrorDetails::new())
}

/// The rank process that a call claims to come from; the driver verifies the claim.
#[derive(Clone)]
pub(in crate::rpc) struct RankClaim {
    pub(in crate::rpc) session: String,
    pub(in crate::rpc) secret: String,
}

impl RankClaim {
    pub(in crate::rpc) fn of(metadata: &MetadataMap) -> Option<Self> {
        let text = |name: &str| Some(metadata.get(name)?.to_str().ok()?.to_owned());
        Some(Self { session: text(RANK_SESSION)?, secret: text(RANK_SECRET)? })
    }
}
