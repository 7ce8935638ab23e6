//! Middleware around all services that tracks a connection's requests and responses.

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;

use super::peer::{OpenRequest, Unread};
use super::request_body::RequestBody;
use super::socket::Client;
use crate::rpc::mapped_body::map_frames;

/// Calls whose request is a single message, which must arrive in time.
const UNARY: [&str; 6] = [
    "/foil.v1.Access/",
    "/foil.v1.Artifacts/Get",
    "/foil.v1.Artifacts/Stat",
    "/foil.v1.Jobs/",
    "/foil.v1.Results/",
    "/grpc.health.v1.Health/",
];

const GRPC: &[u8] = b"application/grpc";

/// Tracks one request and its response.
pub(in crate::rpc) async fn track(request: Request, next: Next) -> Response {
    let Some(client) = request.extensions().get::<Client>().cloned() else { return next.run(request).await };
    let open = client.peer.request();
    let is_unary = UNARY.iter().any(|path| request.uri().path().starts_with(path));
    let is_grpc = is_grpc(request.headers().get(CONTENT_TYPE));
    let request = request.map(|body| match is_grpc {
        true => Body::new(RequestBody::new(body, client.clone(), is_unary)),
        // Other bodies are not read.
        false => body,
    });
    let response = next.run(request).await;
    let tracked = TrackedResponse { client, _open: open };
    response.map(|body| map_frames(body, move |frame| frame.map_data(|bytes| tracked.queue(bytes))))
}

pub(in crate::rpc) fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    content_type.is_some_and(|kind| kind.as_bytes().starts_with(GRPC))
}

/// Tracks a response while its body exists: its bytes count as unread until the connection has written them.
struct TrackedResponse {
    client: Client,
    _open: OpenRequest,
}

impl TrackedResponse {
    fn queue(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let unread = self.client.peer.queue(bytes.len());
        self.client.registry.check_memory();
        Bytes::from_owner(QueuedBytes { bytes, _unread: unread })
    }
}

/// Bytes that the connection holds until they are written.
struct QueuedBytes {
    bytes: Bytes,
    _unread: Unread,
}

impl AsRef<[u8]> for QueuedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
