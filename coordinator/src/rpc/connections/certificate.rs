//! Middleware that requires a client certificate (mTLS).

use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::Status;

use super::socket::Client;
use super::track::is_grpc;

/// Pages for the probes of orchestrators, which have no certificate.
const OPEN_PAGES: [&str; 2] = ["/healthz", "/readyz"];

const REFUSAL: &str = "this coordinator requires a client certificate: give one that its client CA has signed with --tls-cert and --tls-key";

/// Refuses requests over connections without a certificate that the client CA has signed; the handshake lets
/// them through, so that a client learns what it needs and probes work.
pub(in crate::rpc) async fn require_certificate(request: Request, next: Next) -> Response {
    let is_verified = request.extensions().get::<Client>().is_some_and(|client| client.peer.is_verified());
    if is_verified || OPEN_PAGES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match is_grpc(request.headers().get(CONTENT_TYPE)) {
        true => Status::unauthenticated(REFUSAL).into_http(),
        false => (StatusCode::UNAUTHORIZED, format!("{REFUSAL}\n")).into_response(),
    }
}
