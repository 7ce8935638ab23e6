//! Messages on their way in, which take memory from their first byte until the last one lets them be read: each must be
//! whole before long, and all of them together must not be too many.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::peer::Unfinished;
use super::stream::Client;

/// Bytes before each message: one that says whether it is compressed, and four of its length.
const PREFIX: usize = 5;

/// Where in its messages a stream of bytes is.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX],
    prefixed: usize,
    /// Bytes of the message that have not arrived yet.
    left: usize,
    /// Bytes of a message that is not whole.
    unfinished: usize,
}

impl Framing {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.prefixed < PREFIX {
                self.prefix[self.prefixed] = bytes[0];
                self.prefixed += 1;
                self.unfinished += 1;
                bytes.advance(1);
                if self.prefixed == PREFIX {
                    let [_, length @ ..] = self.prefix;
                    self.left = u32::from_be_bytes(length) as usize;
                }
            } else {
                let part = self.left.min(bytes.len());
                self.left -= part;
                self.unfinished += part;
                bytes.advance(part);
            }
            if self.prefixed == PREFIX && self.left == 0 {
                (self.prefixed, self.unfinished) = (0, 0);
            }
        }
    }
}

/// A request's body, whose messages must come in time.
pub(super) struct Inflow {
    body: Body,
    client: Client,
    framing: Framing,
    held: Unfinished,
    is_unary: bool,
    /// A call of one message must send all of it until then. A stream may take its time between messages, and more of a
    /// message that it has begun must come until then.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Inflow {
    pub(super) fn new(body: Body, client: Client, is_unary: bool) -> Self {
        let held = client.peer.unfinished();
        let deadline = is_unary.then(|| Box::pin(sleep(client.registry.limits().message)));
        Self { body, client, framing: Framing::default(), held, is_unary, deadline }
    }

    fn pass(&mut self, data: &[u8]) {
        self.framing.pass(data);
        self.held.set(self.framing.unfinished);
        self.client.registry.check_inflow();
    }

    /// Nothing more has come yet.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_unary && self.framing.unfinished == 0 {
            return Poll::Pending;
        }
        let limit = self.client.registry.limits().message;
        self.deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(context)
    }
}

impl HttpBody for Inflow {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                self.pass(data);
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
    fn messages_are_told_apart_however_the_bytes_are_cut() {
        let message = |length: u32| [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat();
        let all = [message(3), message(0), message(300)].concat();
        for size in [1, 2, 5, 7, all.len()] {
            let mut framing = Framing::default();
            let most = all.chunks(size).map(|piece| {
                framing.pass(piece);
                framing.unfinished
            });
            assert!(most.max().unwrap_or_default() <= 305, "{size}");
            assert_eq!(framing.unfinished, 0, "{size}");
        }
        let mut framing = Framing::default();
        framing.pass(&all[..8 + 5 + 100]);
        assert_eq!(framing.unfinished, 100, "of the third, with its prefix");
        framing.pass(&all[8 + 5 + 100..all.len() - 1]);
        assert_eq!(framing.unfinished, 304);
        framing.pass(&all[all.len() - 1..]);
        assert_eq!(framing.unfinished, 0);
    }
}
