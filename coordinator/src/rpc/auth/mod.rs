//! Authentication and authorization of every call in one place: a middleware around all services that
//! identifies the RPC by its path and passes the caller's [`Principal`] to the services.

mod caller;
mod event;
mod revocation;
mod table;
mod throttle;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

pub(super) use self::caller::{Caller, RankClaim, caller, may_change, only_admins};
use self::event::Event;
use self::revocation::{Changes, RevocableBody, Revoked, until_refused};
#[cfg(test)]
pub(super) use self::table::all as all_rpcs;
use self::table::{Access, Effect};
use self::throttle::Throttle;
use super::connections::{Client, ClientCertificate, is_grpc};
use super::status::{RATE_EXCEEDED, echo, rate_exceeded, status};
use crate::audit::AuditLog;
use crate::auth::{Authenticator, Evidence, Principal, Refusal, Role};
use crate::clock::Clock;
use crate::leadership::LeadershipHandle;

/// Decides which calls reach the services. Cheap to clone; clones share their state.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// None if every caller is the local admin.
    authenticator: Option<Authenticator>,
    throttle: Throttle,
    audit: Option<AuditLog>,
    /// Provides the tenants' rates while this coordinator leads.
    leadership: LeadershipHandle,
    /// The driver's clock.
    clock: Clock,
}

impl Gate {
    pub(super) fn new(
        authenticator: Option<Authenticator>,
        audit: Option<AuditLog>,
        leadership: LeadershipHandle,
        clock: Clock,
    ) -> Self {
        Self { authenticator, throttle: Throttle::default(), audit, leadership, clock }
    }

    /// The principal of a request.
    async fn identify(&self, shown: &Shown, now: SystemTime) -> Result<Principal, Refusal> {
        let Some(authenticator) = &self.authenticator else { return Ok(Principal::local()) };
        let authorization = shown.authorization.as_ref().map_err(Refusal::clone)?.as_deref();
        // A token takes precedence over a certificate.
        let certificate = match (authorization, shown.client.as_ref().and_then(Client::certificate)) {
            (None, Some(certificate)) => Some(certificate.subject()?),
            _ => None,
        };
        authenticator.authenticate(Evidence { authorization, certificate }, now).await
    }

    /// Completes with a status once the caller's credentials become invalid; none without authentication.
    fn revoked(&self, shown: Shown, caller: &Caller, path: &str) -> Option<Revoked> {
        self.authenticator.as_ref()?;
        let (gate, known, path) = (self.clone(), Principal::clone(caller), echo(path));
        Some(Box::pin(async move {
            let (name, changes, shown) = (known.name.clone(), shown.changes.clone(), Arc::new(shown));
            #[expect(clippy::disallowed_methods, reason = "proofs expire")]
            let check = || {
                let (gate, shown) = (gate.clone(), Arc::clone(&shown));
                async move { gate.identify(&shown, SystemTime::now()).await }
            };
            let refusal = until_refused(known, changes, check).await;
            count(refusal.reason());
            tracing::info!(principal = name, path, %refusal, "ending a call");
            refused_credentials(&refusal)
        }))
    }

    /// Checks that a principal may make a call.
    fn check(&self, principal: &Principal, access: Access) -> Result<(), Status> {
        // Without authentication, agents and ranks cannot be distinguished from users.
        if self.authenticator.is_none() || access.allows(principal.role) {
            return Ok(());
        }
        let message = format!(
            "{} has the role {} in the tenant {}, and this call needs {access}",
            echo(&principal.name),
            principal.role,
            principal.tenant
        );
        Err(status(Code::PermissionDenied, "ROLE_REQUIRED", message, ErrorDetails::new()))
    }
}

/// A request's credentials. They are separate from the body, which cannot be shared between threads.
struct Shown {
    authorization: Result<Option<String>, Refusal>,
    client: Option<Client>,
    changes: Changes,
}

impl Shown {
    fn new(request: &Request, authenticator: Option<&Authenticator>) -> Self {
        let authorization = bearer(request.headers()).map(|header| header.map(str::to_owned));
        let client = request.extensions().get::<Client>().cloned();
        let certificates = client.as_ref().and_then(Client::certificate).map(ClientCertificate::changes);
        let changes = Changes { files: authenticator.map(Authenticator::changes), certificates };
        Self { authorization, client, changes }
    }
}

/// The header `authorization`, which must not occur twice.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut found = headers.get_all(AUTHORIZATION).iter();
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(header), None) => header
            .to_str()
            .map(Some)
            .map_err(|_| Refusal::Token("the header authorization must be printable ASCII".to_owned())),
        (Some(_), Some(_)) => Err(Refusal::Token("the header authorization comes twice".to_owned())),
    }
}

/// Lets a request through to the services, or answers it.
pub(super) async fn authorize(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let rpc = table::find(request.uri().path());
    if matches!(rpc, Some((Access::Open, _))) {
        return next.run(request).await;
    }
    #[expect(clippy::disallowed_methods, reason = "tokens expire, and audit records have a time")]
    let now = SystemTime::now();
    let event = gate.audit.as_ref().map(|log| Event::new(log, &request, now));
    let shown = Shown::new(&request, gate.authenticator.as_ref());
    let caller = match gate.identify(&shown, now).await {
        Ok(principal) => Caller::new(principal),
        Err(refusal) => {
            let peer = request.extensions().get::<Client>().map(|client| client.address().ip());
            let response = gate.refuse_unknown(peer, &refusal, answers_grpc(&request)).await;
            if let Some(event) = event {
                event.refused(&response);
            }
            return response;
        }
    };
    let refused = gate.refuse(&caller, &request, rpc);
    if refused.is_none()
        && let Some(too_soon) = gate.refuse_too_soon(&caller, &request)
    {
        // The call changed nothing, and a caller that sends too many must not fill the audit log.
        return too_soon;
    }
    let response = match refused {
        Some(refused) => refused,
        None => {
            let revoked = match answers_grpc(&request) {
                true => gate.revoked(shown, &caller, request.uri().path()),
                false => None,
            };
            request.extensions_mut().insert(caller.clone());
            let response = next.run(request).await;
            match revoked {
                Some(revoked) => response.map(|body| Body::new(RevocableBody::new(body, revoked))),
                None => response,
            }
        }
    };
    if let Some(event) = event {
        event.answered(&caller, rpc, &response);
    }
    response
}

impl Gate {
    /// The response to an unknown caller.
    async fn refuse_unknown(&self, peer: Option<IpAddr>, refusal: &Refusal, answers_grpc: bool) -> Response {
        count(refusal.reason());
        if let (Refusal::Token(_), Some(peer)) = (refusal, peer) {
            self.throttle.failed(peer).await;
        }
        unauthenticated(refusal, answers_grpc)
    }

    /// The response to a call that exceeds its tenant's rate. Operators and admins are exempt, so that they
    /// can resolve problems, and so are agents.
    fn refuse_too_soon(&self, caller: &Caller, request: &Request) -> Option<Response> {
        let is_counted = matches!(caller.role, Role::Viewer | Role::Submitter) && answers_grpc(request);
        // A standby has no rates, and answers with the leader's address.
        let driver = self.leadership.driver().ok().filter(|_| is_counted)?;
        let exceeded = driver.admit_request(&caller.tenant, self.clock.now()).err()?;
        count(RATE_EXCEEDED);
        Some(rate_exceeded(&exceeded).into_http())
    }

    /// The response to a principal that may not make a call, or to a call that does not exist.
    fn refuse(&self, caller: &Caller, request: &Request, rpc: Option<(Access, Effect)>) -> Option<Response> {
        let answers_grpc = answers_grpc(request);
        let refused = match rpc {
            Some((access, _)) => self.check(caller, access).err()?,
            None if answers_grpc => return Some(Status::unimplemented("there is no such call").into_http()),
            // Answered like an unknown page.
            None => return None,
        };
        count("ROLE_REQUIRED");
        Some(match answers_grpc {
            true => refused.into_http(),
            false => (StatusCode::FORBIDDEN, format!("{}\n", refused.message())).into_response(),
        })
    }
}
/// True if a request expects a gRPC status rather than a page.
fn answers_grpc(request: &Request) -> bool {
    is_grpc(request.headers().get(CONTENT_TYPE))
}

fn unauthenticated(refusal: &Refusal, answers_grpc: bool) -> Response {
    match answers_grpc {
        true => refused_credentials(refusal).into_http(),
        false => {
            let message = refusal.to_string();
            (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], format!("{message}\n")).into_response()
        }
    }
}

fn refused_credentials(refusal: &Refusal) -> Status {
    status(Code::Unauthenticated, refusal.reason(), refusal.to_string(), ErrorDetails::new())
}

fn count(reason: &'static str) {
    metrics::counter!("foil_calls_refused_total", "reason" => reason.to_ascii_lowercase()).increment(1);
}
