//! Ends responses whose caller's credentials have become invalid: a token removed from its file, a revoked
//! certificate, or either after its expiry.

#![expect(clippy::disallowed_methods, reason = "proofs expire")]

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use bytes::Bytes;
use foil_common::tls;
use http_body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::Status;

use crate::auth::{Principal, Refusal};

/// Maximum time between two checks of the clock, which may be set.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Minimum time between two checks: a proof is accepted for a moment after its expiry.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// Changes to the accepted credentials since a request arrived.
#[derive(Debug, Clone)]
pub(super) struct Changes {
    /// Versions of the token and key files.
    pub(super) files: Option<watch::Receiver<()>>,
    /// Versions of the TLS files, if the caller has a certificate.
    pub(super) certificates: Option<tls::Changes>,
}

impl Changes {
    /// Completes after the next change.
    pub(super) async fn next(&mut self) {
        let files = async {
            // Without a sender, nothing can change.
            let changed = match &mut self.files {
                Some(files) => files.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        let certificates = async {
            match &mut self.certificates {
                Some(certificates) => certificates.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = files => {}
            () = certificates => {}
        }
    }
}

/// Completes when `check`, called after each change and at the proof's expiry, stops returning the same
/// principal.
pub(super) async fn until_refused<F>(known: Principal, mut changes: Changes, check: impl Fn() -> F) -> Refusal
where
    F: Future<Output = Result<Principal, Refusal>>,
{
    let mut expires = known.expires;
    loop {
        let pause = match expires {
            Some(at) => at.duration_since(SystemTime::now()).unwrap_or_default().clamp(MIN_PAUSE, MAX_PAUSE),
            None => Duration::MAX,
        };
        tokio::select! {
            () = changes.next() => {}
            () = sleep(pause) => {}
        }
        match check().await {
            Ok(Principal { expires: later, name, tenant, role, source }) => {
                expires = later;
                let now = Principal { expires: known.expires, name, tenant, role, source };
                if now != known {
                    return Refusal::Changed;
                }
            }
            Err(refusal) => return refusal,
        }
    }
}

/// The status with which a response ends.
pub(super) type Revoked = Pin<Box<dyn Future<Output = Status> + Send>>;

/// A gRPC response that ends with a status as soon as there is one.
pub(super) struct RevocableBody {
    body: Body,
    revoked: Option<Revoked>,
}

impl RevocableBody {
    pub(super) fn new(body: Body, revoked: Revoked) -> Self {
        Self { body, revoked: Some(revoked) }
    }
}

impl HttpBody for RevocableBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Checked first, or else a service that never pauses would continue forever.
        if let Some(revoked) = &mut self.revoked
            && let Poll::Ready(status) = revoked.as_mut().poll(context)
        {
            self.revoked = None;
            // Dropping the response notifies the service.
            self.body = Body::empty();
            let mut trailers = HeaderMap::new();
            let added = status.add_header(&mut trailers);
            return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers)).map_err(axum::Error::new)));
        }
        Pin::new(&mut self.body).poll_frame(context)
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
    use std::future::ready;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::auth::Role;

    fn refusal() -> Refusal {
        Refusal::Token("it is not known".to_owned())
    }

    fn ada() -> Principal {
        Principal { name: "ada".into(), ..Principal::local() }
    }

    /// The refusal after the given results of the check, one after each change.
    async fn refused_after(answers: &[Result<Principal, Refusal>]) -> (Refusal, usize) {
        let asked = AtomicUsize::new(0);
        let (changed, files) = watch::channel(());
        changed.send_replace(());
        let check = || {
            changed.send_replace(());
            ready(answers[asked.fetch_add(1, Ordering::Relaxed)].clone())
        };
        let refusal = until_refused(ada(), Changes { files: Some(files), certificates: None }, check).await;
        (refusal, asked.into_inner())
    }

    #[tokio::test]
    async fn a_change_counts_when_the_principal_is_refused_or_another() {
        let later = Principal { expires: Some(SystemTime::now() + Duration::from_secs(3600)), ..ada() };
        let renewed = [Ok(ada()), Ok(later), Err(refusal())];
        assert_eq!(refused_after(&renewed).await, (refusal(), 3));
        let viewer = Principal { role: Role::Viewer, ..ada() };
        assert_eq!(refused_after(&[Ok(viewer)]).await, (Refusal::Changed, 1));
    }

    #[tokio::test]
    async fn an_expiry_is_asked_about_without_a_change() {
        let expired = Principal { expires: Some(SystemTime::UNIX_EPOCH), ..ada() };
        let unchanged = Changes { files: None, certificates: None };
        assert_eq!(until_refused(expired, unchanged, || ready(Err(refusal()))).await, refusal());
    }

    #[tokio::test]
    async fn an_answer_ends_with_the_status_though_it_would_go_on() {
        let endless = futures::stream::repeat_with(|| Ok::<_, axum::Error>(Bytes::from_static(b"x")));
        let status = Box::pin(async { Status::unauthenticated("revoked") });
        let body = Body::new(RevocableBody::new(Body::from_stream(endless), status));
        let collected = axum::body::to_bytes(body, 100).await.unwrap();
        assert!(collected.is_empty());

        let never = Box::pin(std::future::pending());
        let body = Body::new(RevocableBody::new(Body::from("whole"), never));
        assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "whole");
    }
}
