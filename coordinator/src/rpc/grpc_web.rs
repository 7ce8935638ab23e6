//! gRPC-Web, the protocol of browsers, as a translation layer around all services: behind it, a call is an
//! ordinary gRPC call and passes the same checks.
//!
//! Only pages of the coordinator's own origin may call. Browsers send the origin of a page with every POST;
//! other clients send none.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::codegen::Service;
use tonic_web::GrpcWebLayer;
use tower_layer::Layer;

/// The supported encodings, without the base64 that browsers needed before they could read streams.
const GRPC_WEB: [&str; 2] = ["application/grpc-web", "application/grpc-web+proto"];
const GRPC_WEB_PREFIX: &str = "application/grpc-web";

/// Names that cannot be registered in the public DNS. An attacker therefore cannot point one at this machine
/// to make its page pass for one of the coordinator's.
const PRIVATE_DOMAINS: [&str; 7] =
    ["localhost", "local", "internal", "lan", "home.arpa", "test", "cluster.local"];

/// Distinguishes requests of the coordinator's own pages from those of other sites.
#[derive(Debug, Clone)]
pub(super) struct Origins {
    /// Whether callers must authenticate. If not, any page that reaches the port is an admin.
    authenticates: bool,
    /// The host of the coordinator's own URL, if it has one.
    own_host: Option<Arc<str>>,
}

impl Origins {
    pub(super) fn new(authenticates: bool, address: &str) -> Self {
        let host = address.parse::<Uri>().ok().and_then(|url| url.host().map(Arc::from));
        Self { authenticates, own_host: host }
    }

    /// Why a browser's request is refused, if it is.
    fn refusal(&self, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let origin = headers.get(ORIGIN)?;
        let own = uri.authority().map(ToString::to_string);
        let own = own.or_else(|| Some(headers.get(HOST)?.to_str().ok()?.to_owned()));
        let Some(own) = own else { return Some("the request names no host".to_owned()) };
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let is_same = origin.is_some_and(|(scheme, host)| same_host(host, &own, default_port(scheme)));
        if !is_same {
            return Some("only pages of the coordinator's own origin may call it".to_owned());
        }
        if self.authenticates || self.is_own(&own) {
            return None;
        }
        Some(format!(
            "without authentication a page must be opened by an address or a local name, not {own}: another site could lend it \
             to this machine. Open it by its IP address, give the name with --advertise, or turn authentication on"
        ))
    }

    /// Whether an outsider cannot point the host at this machine.
    fn is_own(&self, authority: &str) -> bool {
        let host = host_of(authority);
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || !name.contains('.')
            || PRIVATE_DOMAINS.iter().any(|domain| name.ends_with(&format!(".{domain}")))
            || self.own_host.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(&name))
    }
}

fn default_port(scheme: &str) -> &'static str {
    if scheme == "https" { "443" } else { "80" }
}

fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // A colon inside the brackets of an IPv6 address does not start a port.
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Compares host and port; either may omit the default port.
fn same_host(origin: &str, own: &str, usual: &str) -> bool {
    let port = |authority: &str| {
        let host = host_of(authority);
        let port = authority[host.len()..].trim_start_matches(':').to_owned();
        if port.is_empty() { usual.to_owned() } else { port }
    };
    host_of(origin).eq_ignore_ascii_case(host_of(own)) && port(origin) == port(own)
}

/// Translates gRPC-Web calls, and refuses those of other sites' pages.
pub(super) async fn grpc_web(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    if let Some(why) = origins.refusal(request.uri(), request.headers()) {
        metrics::counter!("foil_calls_refused_total", "reason" => "foreign_origin").increment(1);
        return (StatusCode::FORBIDDEN, format!("{why}\n")).into_response();
    }
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let Some(kind) = kind.filter(|kind| kind.starts_with(GRPC_WEB_PREFIX)) else {
        return next.run(request).await;
    };
    if !GRPC_WEB.contains(&kind) {
        let expected = format!("the content type must be {}\n", GRPC_WEB.join(" or "));
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, expected).into_response();
    }
    let translated = GrpcWebLayer::new().layer(Inner(next)).call(request).await;
    translated.map_or_else(|never| match never {}, |response| response.map(Body::new))
}

/// The services behind the translation layer.
#[derive(Clone)]
struct Inner(Next);

impl Service<axum::http::Request<tonic::body::Body>> for Inner {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: axum::http::Request<tonic::body::Body>) -> Self::Future {
        let next = self.0.clone();
        Box::pin(async move { Ok(next.run(request.map(Body::new)).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(origins: &Origins, origin: Option<&str>, host: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        origins.refusal(&Uri::from_static("/foil.v1.Jobs/List"), &headers)
    }

    #[test]
    fn pages_of_other_origins_are_refused_and_clients_without_one_are_not() {
        let origins = Origins::new(true, "");
        for (origin, host, allowed) in [
            (None, "anything", true),
            (Some("http://127.0.0.1:7070"), "127.0.0.1:7070", true),
            (Some("https://foil.example.com"), "foil.example.com", true),
            (Some("https://foil.example.com"), "Foil.example.com:443", true),
            (Some("http://foil.example.com"), "foil.example.com:443", false),
            (Some("http://[::1]:7070"), "[::1]:7070", true),
            (Some("http://127.0.0.1:7071"), "127.0.0.1:7070", false),
            (Some("http://evil.example"), "127.0.0.1:7070", false),
            (Some("null"), "127.0.0.1:7070", false),
            (Some("http://127.0.0.1:7070.evil.example"), "127.0.0.1:7070", false),
        ] {
            assert_eq!(refusal(&origins, origin, host).is_none(), allowed, "{origin:?} at {host}");
        }
    }

    #[test]
    fn without_authentication_no_public_name_may_stand_for_this_machine() {
        let open = Origins::new(false, "http://gpu.example.com:7070");
        let known = Origins::new(true, "http://gpu.example.com:7070");
        for (host, is_own) in [
            ("127.0.0.1:7070", true),
            ("[::1]:7070", true),
            ("192.168.1.7:7070", true),
            ("localhost:7070", true),
            ("gpu-7:7070", true),
            ("foil.lab.internal", true),
            ("foil.default.svc.cluster.local:7070", true),
            ("GPU.example.com:7070", true),
            ("rebound.evil.example:7070", false),
            ("127.0.0.1.evil.example:7070", false),
            ("evil.example.", false),
        ] {
            let origin = format!("http://{host}");
            assert_eq!(refusal(&open, Some(&origin), host).is_none(), is_own, "{host}");
            assert_eq!(refusal(&known, Some(&origin), host), None, "{host}");
        }
    }
}
