//! The layer around all services that tells a connection of its requests and responses.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::inflow::Inflow;
use super::peer::{OpenRequest, Unread};
use super::stream::Client;

/// Calls whose requests are one message, which must come soon.
const UNARY: [&str; 4] =
    ["/foil.v1.Jobs/", "/foil.v1.Artifacts/Get", "/foil.v1.Artifacts/Stat", "/grpc.health.v1.Health/"];

const GRPC: &[u8] = b"application/grpc";

/// Follows one request and its response.
pub(in crate::rpc) async fn follow(request: Request, next: Next) -> Response {
    let Some(client) = request.extensions().get::<Client>().cloned() else { return next.run(request).await };
    let open = client.peer.request();
    let is_unary = UNARY.iter().any(|path| request.uri().path().starts_with(path));
    let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(GRPC));
    let request = request.map(|body| match is_grpc {
        true => Body::new(Inflow::new(body, client.clone(), is_unary)),
        // Nobody reads it.
        false => body,
    });
    let response = next.run(request).await;
    response.map(|body| Body::new(Followed { body, client, _open: open }))
}

/// A response's body, whose bytes are known to be unread until the connection lets go of them.
struct Followed {
    body: Body,
    client: Client,
    _open: OpenRequest,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| self.hand(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Followed {
    fn hand(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let unread = self.client.peer.hand(bytes.len());
        self.client.registry.check_memory();
        Bytes::from_owner(Handed { bytes, _unread: unread })
    }
}

/// Bytes that the connection holds until they are written out.
struct Handed {
    bytes: Bytes,
    _unread: Unread,
}

impl AsRef<[u8]> for Handed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
