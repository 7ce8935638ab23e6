//! A connection that finds the leader: several coordinators, one of which leads, seen as one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::future::{BoxFuture, poll_fn};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::transport::{self, Channel};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{ConnectError, channel};

/// `ErrorInfo.reason` of a coordinator that does not lead.
pub const NOT_LEADER: &str = "NOT_LEADER";
/// The key in its metadata under which the leader's address stands, where it is known.
pub const LEADER: &str = "leader";

/// Connections to the coordinators of one store. Calls go to one of them; one that cannot be reached or does not lead is
/// left for the one it names, else for the next of those given. Cheap to clone; clones share what they learn.
///
/// A call that failed is not repeated here: its caller knows whether it may be, and finds the line changed.
#[derive(Debug, Clone)]
pub struct Line {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The addresses given, one at least.
    given: Vec<String>,
    current: Mutex<Current>,
}

#[derive(Debug, Clone)]
struct Current {
    url: String,
    channel: Channel,
}

impl Line {
    /// `urls` are separated by commas. Connections are made at the first call, and made again whenever they break.
    /// Must be called within a tokio runtime.
    pub(super) fn new(urls: &str) -> Result<Self, ConnectError> {
        let given: Vec<String> = urls.split(',').map(|url| url.trim().to_owned()).collect();
        let mut channels = given.iter().map(|url| channel(url)).collect::<Result<Vec<_>, _>>()?;
        let current = Current { url: given[0].clone(), channel: channels.swap_remove(0) };
        Ok(Self { shared: Arc::new(Shared { given, current: Mutex::new(current) }) })
    }

    /// The coordinator that calls go to now.
    pub fn url(&self) -> String {
        self.current().url.clone()
    }

    /// All addresses given, the one that calls go to now first, separated by commas.
    pub fn urls(&self) -> String {
        let current = self.url();
        let others = self.shared.given.iter().filter(|url| **url != current);
        others.fold(current.clone(), |urls, url| format!("{urls},{url}"))
    }

    /// Leaves `from` for another, unless that has happened already.
    pub fn leave(&self, from: &str) {
        self.turn(from, None);
    }

    fn turn(&self, from: &str, leader: Option<String>) {
        let mut current = self.current();
        if current.url != from {
            return;
        }
        let url = match leader {
            Some(leader) if leader != from => leader,
            _ => self.after(from),
        };
        if url == current.url {
            return;
        }
        match channel(&url) {
            Ok(channel) => {
                tracing::info!(from, to = url, "turning to another coordinator");
                *current = Current { url, channel };
            }
            Err(error) => tracing::warn!(%error, "a coordinator named a leader that cannot be reached"),
        }
    }

    fn after(&self, from: &str) -> String {
        let given = &self.shared.given;
        let next = given.iter().position(|url| url == from).map_or(0, |at| at + 1);
        given[next % given.len()].clone()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // It is replaced whole, so a panic elsewhere leaves nothing half done.
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, from: &str, outcome: &Result<Response<Body>, transport::Error>) {
        match outcome {
            Err(_) => self.turn(from, None),
            Ok(response) => {
                let Some(status) = Status::from_header_map(response.headers()) else { return };
                if let Some(leader) = leader_of(&status) {
                    self.turn(from, leader);
                }
            }
        }
    }
}

/// Of a coordinator's answer that it does not lead: who does, where it knows. None where it is another answer.
pub fn leader_of(status: &Status) -> Option<Option<String>> {
    if status.code() != Code::Unavailable {
        return None;
    }
    let info = status.get_details_error_info().filter(|info| info.reason == NOT_LEADER)?;
    Some(info.metadata.get(LEADER).cloned())
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, transport::Error>>;

    /// Waiting is done in the call, when it is known to whom it goes.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), transport::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (line, Current { url, mut channel }) = (self.clone(), self.current().clone());
        Box::pin(async move {
            let outcome = match poll_fn(|context| channel.poll_ready(context)).await {
                Ok(()) => channel.call(request).await,
                Err(error) => Err(error),
            };
            line.learn(&url, &outcome);
            outcome
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

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
    async fn a_standby_is_left_for_the_leader_it_names_and_the_dead_for_the_next() {
        let line = Line::new("http://a:1, http://b:1,http://c:1").unwrap();
        let clone = line.clone();
        assert_eq!(line.url(), "http://a:1");
        line.learn("http://a:1", &refused(Some("http://z:1")));
        assert_eq!(clone.url(), "http://z:1", "clones share what they learn");
        assert_eq!(line.urls(), "http://z:1,http://a:1,http://b:1,http://c:1");
        line.learn("http://a:1", &refused(Some("http://b:1")));
        assert_eq!(line.url(), "http://z:1", "late news of one that was left says nothing");
        line.leave("http://z:1");
        assert_eq!(line.url(), "http://a:1", "one that was not given is followed by the first");
        line.learn("http://a:1", &refused(None));
        assert_eq!(line.url(), "http://b:1");
        line.learn("http://b:1", &refused(Some("http://b:1")));
        assert_eq!(line.url(), "http://c:1", "who names itself is wrong about something");
        line.learn("http://c:1", &Ok(Status::unavailable("busy").into_http()));
        assert_eq!(line.url(), "http://c:1", "a busy leader is no standby");
        line.learn("http://c:1", &refused(Some("nonsense")));
        assert_eq!(line.url(), "http://c:1");
    }

    #[tokio::test]
    async fn what_cannot_be_connected_to_is_left() {
        let line = Line::new("http://127.0.0.1:1,http://127.0.0.1:2").unwrap();
        let mut jobs = foil_proto::v1::jobs_client::JobsClient::new(line.clone());
        jobs.get(foil_proto::v1::GetJobRequest::default()).await.unwrap_err();
        assert_eq!(line.url(), "http://127.0.0.1:2");
        assert!(Line::new("http://127.0.0.1:1,").is_err());
    }
}
