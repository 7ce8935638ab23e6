use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// Applies a function to every frame of a body; it must preserve the size of data. Unlike `http_body_util`'s
/// `map_frame`, the result has the body's size hint, and thus its `Content-Length`.
pub(super) fn map_frames<F>(body: Body, map: F) -> Body
where
    F: FnMut(Frame<Bytes>) -> Frame<Bytes> + Send + Unpin + 'static,
{
    Body::new(MappedBody { body, map })
}

struct MappedBody<F> {
    body: Body,
    map: F,
}

impl<F: FnMut(Frame<Bytes>) -> Frame<Bytes> + Unpin> HttpBody for MappedBody<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(&mut self.map)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
