//! The pauses between tries.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;

/// Sleeps between tries; tests pass their own.
pub type Nap = fn(Duration) -> BoxFuture<'static, ()>;

/// Adapts [`Nap`] to the retry library.
pub(super) struct Napper(pub(super) Nap);

/// A named type without a lifetime, for which the compiler can prove that requests are `Send`.
pub(super) struct Napping(BoxFuture<'static, ()>);

impl Future for Napping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl backon::Sleeper for Napper {
    type Sleep = Napping;

    fn sleep(&self, duration: Duration) -> Napping {
        Napping((self.0)(duration))
    }
}

pub(super) fn real_nap(duration: Duration) -> BoxFuture<'static, ()> {
    Box::pin(tokio::time::sleep(duration))
}
