//! A channel that finds the leader among several coordinators.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::future::{BoxFuture, poll_fn};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::transport::{self, Channel};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::credentials::{Bearer, RankProof};
use super::{ConnectError, Credentials, channel};

/// `ErrorInfo.reason` of a coordinator that does not lead.
pub const NOT_LEADER: &str = "NOT_LEADER";
/// Metadata key of the leader's address, if the coordinator knows it.
pub const LEADER: &str = "leader";

/// A channel to the coordinators of one store. Calls go to one of them. If that one cannot be reached or does
/// not lead, the channel switches to the leader it names, or to the next of the given addresses. Cheap to
/// clone; clones share their state.
///
/// A failed call is not retried here: the caller knows whether it may be, and its next call goes to the new
/// coordinator.
#[derive(Debug, Clone)]
pub struct LeaderChannel {
    shared: Arc<Shared>,
    /// The rank process that calls, if it is one.
    rank: Option<RankProof>,
}

#[derive(Debug)]
struct Shared {
    /// The given addresses, at least one.
    given: Vec<String>,
    credentials: Credentials,
    /// The token, if there is one.
    bearer: Option<Bearer>,
    current: Mutex<Current>,
}

#[derive(Debug, Clone)]
struct Current {
    url: String,
    channel: Channel,
}

impl LeaderChannel {
    /// `urls` are separated by commas. Connections are made at the first call, and again whenever they break.
    /// Must be called within a tokio runtime.
    pub(super) fn new(urls: &str, credentials: &Credentials) -> Result<Self, ConnectError> {
        let given: Vec<String> = urls.split(',').map(|url| url.trim().to_owned()).collect();
        let mut channels =
            given.iter().map(|url| channel(url, credentials)).collect::<Result<Vec<_>, _>>()?;
        let current = Mutex::new(Current { url: given[0].clone(), channel: channels.swap_remove(0) });
        let bearer = credentials.token_file.clone().map(Bearer::read).transpose()?;
        let credentials = credentials.clone();
        Ok(Self { shared: Arc::new(Shared { given, credentials, bearer, current }), rank: None })
    }

    /// The channel of a rank process, whose calls carry its session and secret.
    pub fn as_rank(self, session: &str, secret: &str) -> Self {
        Self { rank: RankProof::new(session, secret), ..self }
    }

    /// Address of the coordinator that calls currently go to.
    pub fn url(&self) -> String {
        self.current().url.clone()
    }

    /// All given addresses separated by commas, the one that calls go to now first.
    pub fn urls(&self) -> String {
        let current = self.url();
        let others = self.shared.given.iter().filter(|url| **url != current);
        others.fold(current.clone(), |urls, url| format!("{urls},{url}"))
    }

    /// A channel with a separate connection to the same coordinators, starting at the current one.
    pub fn separate(&self) -> Result<Self, ConnectError> {
        let separate = Self::new(&self.urls(), &self.shared.credentials)?;
        Ok(Self { rank: self.rank.clone(), ..separate })
    }

    /// Switches from `from` to another coordinator, unless that has happened already.
    pub fn fail_over(&self, from: &str) {
        self.switch(from, None);
    }

    fn switch(&self, from: &str, leader: Option<String>) {
        let mut current = self.current();
        if current.url != from {
            return;
        }
        let url = match leader {
            Some(leader) if leader != from => leader,
            _ => self.next_after(from),
        };
        // A new channel to the same coordinator reads renewed certificates.
        let is_same = url == current.url;
        if is_same && !url.starts_with("https:") {
            return;
        }
        match channel(&url, &self.shared.credentials) {
            Ok(channel) => {
                if !is_same {
                    tracing::info!(from, to = url, "failing over to another coordinator");
                }
                *current = Current { url, channel };
            }
            Err(error) if is_same => tracing::warn!(%error, "keeping the certificates that were read before"),
            Err(error) => tracing::warn!(%error, "a coordinator named a leader with an invalid address"),
        }
    }

    fn next_after(&self, from: &str) -> String {
        let given = &self.shared.given;
        let next = given.iter().position(|url| url == from).map_or(0, |at| at + 1);
        given[next % given.len()].clone()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // The value is replaced as a whole, so a panic elsewhere cannot leave it inconsistent.
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, from: &str, outcome: &Result<Response<Body>, transport::Error>) {
        match outcome {
            Err(_) => self.switch(from, None),
            Ok(response) => {
                let Some(status) = Status::from_header_map(response.headers()) else { return };
                if let Some(leader) = leader_of(&status) {
                    self.switch(from, leader);
                }
            }
        }
    }
}

/// The leader's address from a "not the leader" status, `Some(None)` if it names none; `None` for any other
/// status.
pub fn leader_of(status: &Status) -> Option<Option<String>> {
    if status.code() != Code::Unavailable {
        return None;
    }
    let info = status.get_details_error_info().filter(|info| info.reason == NOT_LEADER)?;
    Some(info.metadata.get(LEADER).cloned())
}

impl Service<Request<Body>> for LeaderChannel {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, transport::Error>>;

    /// Always ready: the call itself waits, once it is known where it goes.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), transport::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(bearer) = &self.shared.bearer {
            bearer.add_to(request.headers_mut());
        }
        if let Some(rank) = &self.rank {
            rank.add_to(request.headers_mut());
        }
        let (leader, Current { url, mut channel }) = (self.clone(), self.current().clone());
        Box::pin(async move {
            let outcome = match poll_fn(|context| channel.poll_ready(context)).await {
                Ok(()) => channel.call(request).await,
                Err(error) => Err(error),
            };
            leader.observe(&url, &outcome);
            outcome
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::super::connect;
    use super::*;

    fn refused(leader: Option<&str>) -> Result<Response<Body>, transport::Error> {
        let metadata = leader.map(|leader| (LEADER.to_owned(), leader.to_owned()));
        let details = ErrorDetails::with_error_info(
            NOT_LEADER,
            "foil",
            metadata.into_iter().collect::<HashMap<_, _>>(),
        );
        Ok(Status::with_error_details(Code::Unavailable, "a standby", details).into_http())
    }

    #[tokio::test]
    async fn a_standby_redirects_to_its_leader_and_a_dead_coordinator_to_the_next() {
        let leader = connect("http://a:1, http://b:1,http://c:1").unwrap();
        let clone = leader.clone();
        assert_eq!(leader.url(), "http://a:1");
        leader.observe("http://a:1", &refused(Some("http://z:1")));
        assert_eq!(clone.url(), "http://z:1", "clones share what they learn");
        assert_eq!(leader.urls(), "http://z:1,http://a:1,http://b:1,http://c:1");
        leader.observe("http://a:1", &refused(Some("http://b:1")));
        assert_eq!(leader.url(), "http://z:1", "a late answer from a former coordinator is ignored");
        leader.fail_over("http://z:1");
        assert_eq!(leader.url(), "http://a:1", "after an address that was not given, the first one is next");
        leader.observe("http://a:1", &refused(None));
        assert_eq!(leader.url(), "http://b:1");
        leader.observe("http://b:1", &refused(Some("http://b:1")));
        assert_eq!(leader.url(), "http://c:1", "a standby that names itself is not followed");
        leader.observe("http://c:1", &Ok(Status::unavailable("busy").into_http()));
        assert_eq!(leader.url(), "http://c:1", "a busy leader is not a standby");
        leader.observe("http://c:1", &refused(Some("nonsense")));
        assert_eq!(leader.url(), "http://c:1");
    }

    #[tokio::test]
    async fn an_unreachable_coordinator_is_switched_away_from() {
        let leader = connect("http://127.0.0.1:1,http://127.0.0.1:2").unwrap();
        let mut jobs = foil_proto::v1::jobs_client::JobsClient::new(leader.clone());
        jobs.get(foil_proto::v1::GetJobRequest::default()).await.unwrap_err();
        assert_eq!(leader.url(), "http://127.0.0.1:2");
        assert!(connect("http://127.0.0.1:1,").is_err());
    }
}
