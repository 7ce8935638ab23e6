//! Authentication and authorization of every call, in one place: a middleware around all services that knows
//! the RPC by its path and gives the services the caller's [`Principal`].

mod caller;
mod table;
mod throttle;

use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

pub(super) use self::caller::{Caller, RankClaim, caller, may_change, only_admins};
use self::table::Access;
#[cfg(test)]
pub(super) use self::table::all as all_rpcs;
use self::throttle::Throttle;
use super::connections::{Client, is_grpc};
use super::status::{echo, status};
use crate::auth::{Authenticator, Evidence, Principal, Refusal};

/// Decides which calls reach the services. Cheap to clone; clones share their state.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// Every caller is the local admin if there is none.
    authenticator: Option<Authenticator>,
    throttle: Throttle,
}

impl Gate {
    pub(super) fn new(authenticator: Option<Authenticator>) -> Self {
        Self { authenticator, throttle: Throttle::default() }
    }

    /// The principal of a request.
    fn identify(&self, request: &Request) -> Result<Principal, Refusal> {
        let Some(authenticator) = &self.authenticator else { return Ok(Principal::local()) };
        let authorization = bearer(request.headers())?;
        let certificate = request.extensions().get::<Client>().and_then(Client::certificate);
        #[expect(clippy::disallowed_methods, reason = "tokens expire")]
        let now = SystemTime::now();
        authenticator.authenticate(Evidence { authorization, certificate }, now)
    }

    /// Checks that a principal may make a call.
    fn check(&self, principal: &Principal, access: Access) -> Result<(), Status> {
        // Without authentication agents and ranks cannot be told from users.
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

/// The header `authorization`, which must not come twice.
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
    let access = table::find(request.uri().path());
    if access == Some(Access::Open) {
        return next.run(request).await;
    }
    let answers_grpc = is_grpc(request.headers().get(CONTENT_TYPE));
    let principal = match gate.identify(&request) {
        Ok(principal) => principal,
        Err(refusal) => {
            count(refusal.reason());
            if let (Refusal::Token(_), Some(client)) = (&refusal, request.extensions().get::<Client>()) {
                gate.throttle.failed(client.address().ip()).await;
            }
            return unauthenticated(&refusal, answers_grpc);
        }
    };
    let permitted = match access {
        Some(access) => gate.check(&principal, access),
        None if answers_grpc => Err(Status::unimplemented("there is no such call")),
        // Answered as an unknown page.
        None => Ok(()),
    };
    if let Err(refused) = permitted {
        count("ROLE_REQUIRED");
        tracing::debug!(principal = principal.name, path = request.uri().path(), "call refused");
        return match answers_grpc {
            true => refused.into_http(),
            false => (StatusCode::FORBIDDEN, format!("{}\n", refused.message())).into_response(),
        };
    }
    request.extensions_mut().insert(Caller::new(principal));
    next.run(request).await
}

fn unauthenticated(refusal: &Refusal, answers_grpc: bool) -> Response {
    let message = refusal.to_string();
    match answers_grpc {
        true => status(Code::Unauthenticated, refusal.reason(), message, ErrorDetails::new()).into_http(),
        false => {
            (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], format!("{message}\n")).into_response()
        }
    }
}

fn count(reason: &'static str) {
    metrics::counter!("foil_calls_refused_total", "reason" => reason.to_ascii_lowercase()).increment(1);
}
