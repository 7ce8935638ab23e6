//! A call in the audit log.

use std::time::SystemTime;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::caller::{Caller, Note};
use super::table::{Access, Effect};
use crate::audit::{AuditLog, Outcome, Record};
use crate::auth::Role;
use crate::rpc::connections::Client;
use crate::rpc::status::echo;

/// A call, until its outcome is known.
pub(super) struct Event {
    log: AuditLog,
    at: SystemTime,
    method: String,
    peer: String,
}

impl Event {
    pub(super) fn new(log: &AuditLog, request: &Request, at: SystemTime) -> Self {
        let peer = request.extensions().get::<Client>().map(|client| client.address().to_string());
        let method = echo(request.uri().path());
        Self { log: log.clone(), at, method, peer: peer.unwrap_or_default() }
    }

    /// Records the refusal of an unknown caller.
    pub(super) fn refused(self, response: &Response) {
        let (outcome, reason) = outcome(response);
        let record = Record { peer: self.peer, reason, ..Record::new(self.at, &self.method, outcome) };
        self.log.record(record, self.at);
    }

    /// Records a call that changes something, and any call whose caller was refused.
    pub(super) fn answered(self, caller: &Caller, rpc: Option<(Access, Effect)>, response: &Response) {
        let (outcome, reason) = outcome(response);
        let is_change = rpc.is_some_and(|(access, effect)| {
            // Ranks write objects by the thousands; their agent's stream represents them.
            effect == Effect::Changes && (caller.role != Role::Agent || access == Access::Agent)
        });
        if !is_change && !outcome.is_refusal() {
            return;
        }
        let Note { resource, request_id } = caller.note().cloned().unwrap_or_default();
        let record = Record {
            principal: caller.name.clone(),
            tenant: caller.tenant.to_string(),
            role: caller.role.name(),
            credential: caller.source.name(),
            peer: self.peer,
            resource,
            reason,
            request_id,
            ..Record::new(self.at, &self.method, outcome)
        };
        self.log.record(record, self.at);
    }
}

/// Code and reason of a response. A stream counts as successful once it begins; a failed call has its status
/// in the headers.
fn outcome(response: &Response) -> (Outcome, String) {
    if let Some(status) = Status::from_header_map(response.headers()) {
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        return (status.code().into(), reason);
    }
    let code = match response.status() {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        _ => Code::Ok,
    };
    (code.into(), String::new())
}
