//! A collector's protocol and address.

use url::Url;

use super::Signal;

/// How requests are sent to a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::otlp) enum Protocol {
    #[default]
    Grpc,
    /// Protobuf messages in POST requests.
    Http,
}

/// The value of a variable that names a protocol.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::Http),
        "http/json" => {
            Err("http/json is not supported; expected http/protobuf, which collectors take on the \
                            same port, or grpc"
                .to_owned())
        }
        _ => Err("expected grpc or http/protobuf".to_owned()),
    }
}

impl Protocol {
    /// The URL for requests of `signal`, from the value of a variable: the one for both signals or, if
    /// `is_own`, the signal's own, whose path is complete.
    pub(super) fn endpoint(self, text: &str, signal: Signal, is_own: bool) -> Result<Url, String> {
        let mut url = parse(text)?;
        match self {
            Self::Grpc if url.path() != "/" => Err(
                "gRPC takes a URL without a path, http://HOST:PORT or https://HOST:PORT; for OTLP over HTTP \
                     set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"
                    .to_owned(),
            ),
            Self::Http if !is_own => {
                // Every http:// URL has a path.
                if let Ok(mut path) = url.path_segments_mut() {
                    path.pop_if_empty().extend(["v1", signal.path()]);
                }
                Ok(url)
            }
            Self::Grpc | Self::Http => Ok(url),
        }
    }

    /// The collector on this machine, at the protocol's default port.
    pub(super) fn local(self) -> &'static str {
        match self {
            Self::Grpc => "http://localhost:4317",
            Self::Http => "http://localhost:4318",
        }
    }
}

/// A collector's URL, of either protocol.
fn parse(text: &str) -> Result<Url, String> {
    const EXPECTED: &str = "expected the URL of a collector, http://HOST:PORT or https://HOST:PORT";
    let url = Url::parse(text).map_err(|problem| format!("{EXPECTED}; {problem}"))?;
    let has_password = !url.username().is_empty() || url.password().is_some();
    if has_password || url.query().is_some() || url.fragment().is_some() {
        return Err(
            "expected a URL without password, ? and #; give credentials in OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned(),
        );
    }
    match (url.scheme(), url.host_str()) {
        ("http" | "https", Some(_)) => Ok(url),
        _ => Err(EXPECTED.to_owned()),
    }
}
