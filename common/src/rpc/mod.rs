//! Connections, deadlines, retries, and the transfer of artifacts.

pub mod artifacts;
mod credentials;
mod leader_channel;
mod route;
mod tls;

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::time::Duration;

use backon::ExponentialBuilder;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, TimeoutExpired};
use tonic_types::StatusExt;

pub use self::credentials::{Credentials, RANK_SECRET, RANK_SESSION, TokenFileError};
pub use self::leader_channel::{LEADER, LeaderChannel, NOT_LEADER, leader_of};
pub use self::route::local_address;
pub use self::tls::TlsFiles;
use crate::tls::TlsError;

/// Maximum bytes of data in one message of the Artifacts service.
pub const DATA_BYTES: usize = 1 << 20;

/// Maximum message size on either side: data and its framing.
pub const MESSAGE_BYTES: usize = DATA_BYTES + (64 << 10);

/// Maximum size of a command to a rank, and of a worker's request to the coordinator. The command of a
/// training phase names the objects of all chunks of earlier phases.
pub const COMMAND_BYTES: usize = 16 << 20;
pub const REPORT_BYTES: usize = 2 << 20;

/// Maximum size of a client's request; a specification is much smaller.
pub const REQUEST_BYTES: usize = 1 << 20;

/// HTTP/2 window of a stream and of a connection: more than a message or two, or the last bytes of each
/// message would wait until its first ones are read.
pub const STREAM_WINDOW: u32 = 4 << 20;
pub const CONNECTION_WINDOW: u32 = 16 << 20;

/// Default deadline of a unary call.
pub const UNARY_DEADLINE: Duration = Duration::from_secs(30);

/// Maximum pause between retries.
const MAX_PAUSE: Duration = Duration::from_secs(5);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The error of an invalid coordinator address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "{url:?} is not the address of a coordinator: {reason}; give it as http://HOST:PORT or https://HOST:PORT"
    )]
    BadUrl { url: String, reason: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the certificate and the key for {url} cannot be used: {reason}")]
    Identity { url: String, reason: String },
    #[error(
        "a token is not sent to {url}, because it would go in clear text to another machine; use an https:// address, or \
         leave --token-file (FOIL_TOKEN_FILE) out"
    )]
    ClearText { url: String },
    #[error(transparent)]
    Token(#[from] TokenFileError),
}

/// [`connect_with`], with the CA certificates that this system trusts.
pub fn connect(urls: &str) -> Result<LeaderChannel, ConnectError> {
    connect_with(urls, &Credentials::default())
}

/// A channel to the leader among the coordinators at `urls`: `http://HOST:PORT` or `https://HOST:PORT`, several separated by
/// commas. Connections are opened at the first call, and again whenever they break. Must be called within a
/// tokio runtime.
pub fn connect_with(urls: &str, credentials: &Credentials) -> Result<LeaderChannel, ConnectError> {
    LeaderChannel::new(urls, credentials)
}

fn channel(url: &str, credentials: &Credentials) -> Result<Channel, ConnectError> {
    let bad = |reason: String| ConnectError::BadUrl { url: url.to_owned(), reason };
    let parsed = url::Url::parse(url).map_err(|error| bad(error.to_string()))?;
    let mut endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(error.to_string()))?;
    match (parsed.scheme(), parsed.host_str()) {
        ("http" | "https", Some(_)) if !names_port(url) => {
            return Err(bad(
                "it names no port; a coordinator's is 7070 where it was given no other".to_owned()
            ));
        }
        ("http", Some(_)) if credentials.token_file.is_some() && !is_loopback(&parsed) => {
            return Err(ConnectError::ClearText { url: url.to_owned() });
        }
        ("http", Some(_)) => {}
        ("https", Some(host)) => {
            endpoint = endpoint
                .tls_config(credentials.tls.config(host)?)
                .map_err(|error| ConnectError::Identity { url: url.to_owned(), reason: innermost(&error) })?;
        }
        (other, _) => return Err(bad(format!("it starts with {other:?}"))),
    }
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

/// Whether what is sent to a URL stays on this machine.
fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Whether a URL names a port. A parsed URL does not distinguish the scheme's default port from a missing
/// one.
fn names_port(url: &str) -> bool {
    let authority = url.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next());
    authority
        .and_then(|authority| authority.rsplit_once(':'))
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

/// A unary request with a deadline, which the server learns too.
pub fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Whether a call failed because the server was unreachable or not ready, and may be retried: UNAVAILABLE, or
/// a connection that broke during the call.
pub fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable || broke(status)
}

/// The time after which a call that exceeded a limit may be retried: RESOURCE_EXHAUSTED with RetryInfo.
/// Without it, RESOURCE_EXHAUSTED is final.
pub fn retry_after(status: &Status) -> Option<Duration> {
    if status.code() != Code::ResourceExhausted {
        return None;
    }
    status.get_details_retry_info()?.retry_delay
}

/// Whether a call exceeded its deadline, on the server's side or on this one.
pub fn timed_out(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        source = error.source();
    }
    status.code() == Code::DeadlineExceeded
}

/// Whether the transport failed. Such failures have several codes, but always the transport's error as their
/// source.
fn broke(status: &Status) -> bool {
    if timed_out(status) {
        return false;
    }
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

/// Whether a TLS handshake failed, which a retry does not fix.
pub fn failed_handshake(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(cause) = source {
        if tls::handshake_advice(cause).is_some() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// A message for users about an unreachable server, from the innermost cause: outer errors say only that
/// there was one.
pub fn unreached(status: &Status) -> String {
    let (mut last, mut source) = (None, status.source());
    let (mut speaks_no_grpc, mut is_closed) = (false, false);
    while let Some(cause) = source {
        source = cause.source();
        if let Some(advice) = tls::handshake_advice(cause) {
            return advice;
        }
        let told = cause.to_string();
        // HTTP/2 keeps only the text of the connection's error.
        if told.contains("received fatal alert") {
            return tls::REJECTED.to_owned();
        }
        if told.contains("dns error") {
            return "the host's name is unknown".to_owned();
        }
        speaks_no_grpc |= told.contains("http2 error") || told.contains("frame with invalid");
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(ErrorKind::ConnectionRefused) => return "connection refused".to_owned(),
            Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                is_closed = true;
            }
            _ => {}
        }
        // HTTP/2's messages for a connection that ends before, or while, the client writes.
        is_closed |= ["connection closed", "stream closed because of a broken pipe"].contains(&told.as_str());
        last = Some(told);
    }
    // The client may not see the alert with which a coordinator ends a connection.
    if is_closed {
        let told = "it closed the connection, as it does if it wants TLS (https://) or a client certificate that its client CA has \
                    signed (--tls-cert and --tls-key)";
        return told.to_owned();
    }
    if speaks_no_grpc {
        return "what answers there speaks no gRPC, or wants TLS: try https://".to_owned();
    }
    last.unwrap_or_else(|| status.message().to_owned())
}

/// Pauses between retries: from a tenth of a second to five, with jitter, without end. The caller checks the
/// clock, since a single try may take longer than all pauses.
pub fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(MAX_PAUSE)
        .without_max_times()
        .with_jitter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_closed_at_once_is_explained_whenever_the_client_sees_it() {
        for kind in [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof] {
            let told = unreached(&Status::from_error(Box::new(io::Error::from(kind))));
            assert!(told.contains("https://") && told.contains("--tls-cert"), "{kind}: {told}");
        }
        let written = io::Error::other("stream closed because of a broken pipe");
        assert!(unreached(&Status::from_error(Box::new(written))).contains("https://"));
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(unreached(&Status::from_error(Box::new(refused))), "connection refused");
    }

    #[tokio::test]
    async fn addresses_that_cannot_be_are_refused_with_advice() {
        for (url, advice) in [
            ("localhost:7400", "http://HOST:PORT"),
            ("", "http://HOST:PORT"),
            ("https://host", "names no port"),
            ("http://host", "names no port"),
            ("http://[::1]/", "names no port"),
        ] {
            let error = connect(url).unwrap_err().to_string();
            assert!(error.contains(advice), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn a_token_goes_in_clear_text_to_this_machine_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "foil_secret").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let credentials = Credentials { token_file: Some(path), ..Credentials::default() };
        for near in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            connect_with(near, &credentials).unwrap();
        }
        for far in ["http://10.0.0.1:1", "http://coordinator:1", "http://localhost.evil.example:1"] {
            let error = connect_with(far, &credentials).unwrap_err().to_string();
            assert!(error.contains("clear text") && error.contains("https://"), "{error}");
            connect(far).unwrap();
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

    #[tokio::test]
    async fn what_is_not_reached_is_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // A TLS server answers anything that is not a TLS handshake with an alert.
                let alert = b"\x15\x03\x03\x00\x02\x02\x16";
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, alert).await;
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 64]).await;
            }
        });
        for (url, reason) in [
            ("http://127.0.0.1:1", "connection refused"),
            ("http://no-such-host.invalid:7070", "the host's name is unknown"),
            (&format!("http://{address}"), "wants TLS"),
        ] {
            let mut client = foil_proto::v1::jobs_client::JobsClient::new(connect(url).unwrap());
            let asked = request(foil_proto::v1::ListJobsRequest::default(), UNARY_DEADLINE);
            let status = client.list(asked).await.unwrap_err();
            assert!(is_unavailable(&status), "{status:?}");
            assert!(unreached(&status).contains(reason), "{url}: {} of {status:?}", unreached(&status));
        }
        connect("http://host:80").unwrap();
    }

    #[test]
    fn a_servers_own_refusal_is_final() {
        for code in [Code::Internal, Code::Unknown, Code::InvalidArgument, Code::Aborted] {
            assert!(!is_unavailable(&Status::new(code, "no")), "{code:?}");
        }
    }
}
