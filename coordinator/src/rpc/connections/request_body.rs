//! Incoming messages, which occupy memory from their first byte until they are complete: each must be
//! complete in time, and the total size of incomplete messages is bounded.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::peer::PartialMessage;
use super::socket::Client;

/// Size of a gRPC message's prefix: one byte for compression, four for the length.
const PREFIX: usize = 5;

/// Position of a byte stream within its gRPC messages.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that have arrived.
    prefix_bytes: usize,
    /// Bytes of the message that have not arrived.
    remaining: usize,
    /// Bytes of an incomplete message that have arrived.
    partial: usize,
}

impl Framing {
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.prefix_bytes < PREFIX {
                self.prefix[self.prefix_bytes] = bytes[0];
                self.prefix_bytes += 1;
                self.partial += 1;
                bytes.advance(1);
                if self.prefix_bytes == PREFIX {
                    let [_, length @ ..] = self.prefix;
                    self.remaining = u32::from_be_bytes(length) as usize;
                }
            } else {
                let part = self.remaining.min(bytes.len());
                self.remaining -= part;
                self.partial += part;
                bytes.advance(part);
            }
            if self.prefix_bytes == PREFIX && self.remaining == 0 {
                (self.prefix_bytes, self.partial) = (0, 0);
            }
        }
    }
}

/// A request's body, whose messages must arrive in time.
pub(super) struct RequestBody {
    body: Body,
    client: Client,
    framing: Framing,
    partial: PartialMessage,
    is_unary: bool,
    /// A unary call must send its whole message by then. A stream may pause between messages, but once it
    /// has started a message, must send more of it by then.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn new(body: Body, client: Client, is_unary: bool) -> Self {
        let partial = client.peer.partial_message();
        let deadline = is_unary.then(|| Box::pin(sleep(client.registry.limits().message)));
        Self { body, client, framing: Framing::default(), partial, is_unary, deadline }
    }

    fn count(&mut self, data: &[u8]) {
        self.framing.advance(data);
        self.partial.set(self.framing.partial);
        self.client.registry.check_incoming();
    }

    /// Ready when the deadline has passed.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_unary && self.framing.partial == 0 {
            return Poll::Pending;
        }
        let limit = self.client.registry.limits().message;
        self.deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(context)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                self.count(data);
            }
            if !self.is_unary {
                self.deadline = None;
            }
            return Poll::Ready(frame);
        }
        ready!(self.poll_deadline(context));
        Poll::Ready(Some(Err(axum::Error::new(
            "the request's message did not arrive in time; send it faster, or in smaller parts",
        ))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_split() {
        let message = |length: u32| [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat();
        let all = [message(3), message(0), message(300)].concat();
        for size in [1, 2, 5, 7, all.len()] {
            let mut framing = Framing::default();
            let partial = all.chunks(size).map(|piece| {
                framing.advance(piece);
                framing.partial
            });
            assert!(partial.max().unwrap_or_default() <= 305, "{size}");
            assert_eq!(framing.partial, 0, "{size}");
        }
        let mut framing = Framing::default();
        framing.advance(&all[..8 + 5 + 100]);
        assert_eq!(framing.partial, 100, "the third message with its prefix");
        framing.advance(&all[8 + 5 + 100..all.len() - 1]);
        assert_eq!(framing.partial, 304);
        framing.advance(&all[all.len() - 1..]);
        assert_eq!(framing.partial, 0);
    }
}
