//! Connecting, deadlines and retries; moving artifacts.

pub mod artifacts;
mod line;

use std::error::Error as _;
use std::time::Duration;

use backon::ExponentialBuilder;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

pub use self::line::{LEADER, Line, NOT_LEADER, leader_of};

/// Most bytes of data in one message of the Artifacts service.
pub const DATA_BYTES: usize = 1 << 20;

/// Largest message either side takes: data and what is around it.
pub const MESSAGE_BYTES: usize = DATA_BYTES + (64 << 10);

/// Bytes on their way on one stream, and on one connection, at either side: more than a message or two, or each message's
/// last bytes wait until its first ones are read.
pub const STREAM_WINDOW: u32 = 4 << 20;
pub const CONNECTION_WINDOW: u32 = 16 << 20;

/// How long a unary call may take where its caller knows no better.
pub const UNARY_DEADLINE: Duration = Duration::from_secs(30);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why an address cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{url:?} is no address of a coordinator: {reason}; give it as http://HOST:PORT")]
    BadUrl { url: String, reason: String },
    #[error(
        "{url} asks for TLS, which this version of Foil does not speak yet; use http:// within a machine or a trusted \
         network"
    )]
    Tls { url: String },
}

/// A line to the leader among the coordinators at `urls`: `http://HOST:PORT`, several separated by commas. Connections
/// are made at the first call, and made again whenever they break. Must be called within a tokio runtime.
pub fn connect(urls: &str) -> Result<Line, ConnectError> {
    Line::new(urls)
}

fn channel(url: &str) -> Result<Channel, ConnectError> {
    let bad = |reason: String| ConnectError::BadUrl { url: url.to_owned(), reason };
    let parsed = url::Url::parse(url).map_err(|error| bad(error.to_string()))?;
    match parsed.scheme() {
        "http" if parsed.has_host() => {}
        "https" => return Err(ConnectError::Tls { url: url.to_owned() }),
        other => return Err(bad(format!("it starts with {other:?}"))),
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(error.to_string()))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_lazy())
}

/// A unary request with a deadline that the server knows too.
pub fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Whether a call failed for want of a connection or of the server's readiness, and may be made again: UNAVAILABLE,
/// or a connection that broke in the middle of a call.
pub fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable || broke(status)
}

/// Transport failures come under several codes, but always with the transport's error as their source.
fn broke(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        let io = error.downcast_ref::<std::io::Error>().is_some();
        if io || error.downcast_ref::<tonic::transport::Error>().is_some() {
            return true;
        }
        source = error.source();
    }
    matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled) && status.source().is_some()
}

/// Waits between tries: from a tenth of a second to five, with jitter, for two minutes in all.
pub fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .with_total_delay(Some(Duration::from_secs(120)))
        .with_jitter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_that_cannot_be_are_refused_with_advice() {
        for (url, advice) in [
            ("localhost:7400", "http://HOST:PORT"),
            ("", "http://HOST:PORT"),
            ("https://host:1", "use http://"),
        ] {
            let error = connect(url).unwrap_err().to_string();
            assert!(error.contains(advice), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_unavailable() {
        let channel = connect("http://127.0.0.1:1").unwrap();
        let mut client = foil_proto::v1::jobs_client::JobsClient::new(channel);
        let status = client
            .list(request(foil_proto::v1::ListJobsRequest::default(), UNARY_DEADLINE))
            .await
            .unwrap_err();
        assert!(is_unavailable(&status), "{status:?}");
    }

    #[test]
    fn a_servers_own_refusal_is_final() {
        for code in [Code::Internal, Code::Unknown, Code::InvalidArgument, Code::Aborted] {
            assert!(!is_unavailable(&Status::new(code, "no")), "{code:?}");
        }
    }
}
