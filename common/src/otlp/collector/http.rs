//! OTLP over HTTP with protobuf messages. Everything that a server could do is bounded: redirections are not
//! followed, answers have a size limit, and each request has a timeout.

#![expect(clippy::disallowed_methods, reason = "a server may name the time of the next request")]

use std::error::Error;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};

use super::{CONNECT_TIMEOUT, Failure};
use crate::otlp::config::Target;
use crate::redact;
use crate::version::VERSION;

const PROTOBUF: &str = "application/x-protobuf";
/// Size limit of an answer.
const ANSWER_BYTES: usize = 64 << 10;
/// Size limit of a server's text quoted in a message.
const WORDS_BYTES: usize = 300;

pub(super) struct HttpClient {
    target: Target,
    client: Client,
}

impl HttpClient {
    pub(super) fn new(target: Target) -> Result<Self, String> {
        // A redirection could send the headers to addresses that only this machine can reach.
        let builder = Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(target.timeout)
            .user_agent(format!("foil/{VERSION}"))
            .default_headers(target.headers.clone().into_headers());
        let builder = match target.endpoint.scheme() {
            "https" => {
                let tls = target.tls.client_config().map_err(|problem| problem.to_string())?;
                builder.tls_backend_preconfigured(tls)
            }
            // A system without CA certificates can still send without TLS.
            _ => builder.tls_certs_only([]),
        };
        let client = builder.build().map_err(|problem| innermost(&problem))?;
        Ok(Self { target, client })
    }

    pub(super) async fn send<A: Message + Default>(&self, request: &impl Message) -> Result<A, Failure> {
        let message = request.encode_to_vec();
        let post = self.client.post(self.target.endpoint.clone());
        let post = post.header(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        let post = match self.target.compress {
            true => post.header(CONTENT_ENCODING, HeaderValue::from_static("gzip")).body(gzip(&message)?),
            false => post.body(message),
        };
        let mut response = post.send().await.map_err(unreached)?;
        let body = body(&mut response).await?;
        match response.status().is_success() {
            true => answer(&response, body),
            false => Err(refusal(&response, &body, SystemTime::now())),
        }
    }
}

fn gzip(message: &[u8]) -> Result<Vec<u8>, Failure> {
    let write = || -> io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(message)?;
        encoder.finish()
    };
    write().map_err(|problem| Failure::permanent(problem.to_string()))
}

async fn body(response: &mut Response) -> Result<Bytes, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreached)? {
        if body.len() + chunk.len() > ANSWER_BYTES {
            return Err(Failure::permanent(format!("its answer is larger than {ANSWER_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// Parses the answer to an accepted request. An answer in another form is not a failure, since some servers
/// deviate, but a web page shows that the server is not a collector.
fn answer<A: Message + Default>(response: &Response, body: Bytes) -> Result<A, Failure> {
    match content_type(response) {
        PROTOBUF => {
            A::decode(body).map_err(|problem| Failure::permanent(format!("its answer is no OTLP: {problem}")))
        }
        "text/html" => {
            Err(Failure::permanent("it answers with a web page; is this the address of OTLP over HTTP?"))
        }
        _ => Ok(A::default()),
    }
}

/// The failure that a status indicates, with the server's own text.
fn refusal(response: &Response, body: &[u8], now: SystemTime) -> Failure {
    let status = response.status();
    let words = match content_type(response) {
        PROTOBUF => tonic_types::Status::decode(body).map(|status| status.message).unwrap_or_default(),
        "text/html" => String::new(),
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    let words = words[..words.floor_char_boundary(WORDS_BYTES)].replace(char::is_control, " ");
    let words = redact::secrets(words.trim());
    let colon = if words.is_empty() { "" } else { ": " };
    let advice = match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "; is this the address of OTLP over HTTP?",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; check OTEL_EXPORTER_OTLP_HEADERS",
        _ if status.is_redirection() => {
            ", a redirection, which is not followed; give the address that it leads to"
        }
        _ => "",
    };
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Failure {
        reason: format!("it answers {status}{colon}{words}{advice}"),
        is_transient: is_transient(status),
        pause: retry_after.and_then(|text| pause(text, now)),
    }
}

/// "Retryable Response Codes" of OTLP's specification.
fn is_transient(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The value of `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
fn pause(text: &str, now: SystemTime) -> Option<Duration> {
    let seconds = text.trim().parse().ok().map(Duration::from_secs);
    // A date in the past asks for no pause.
    let date = || httpdate::parse_http_date(text).ok()?.duration_since(now).ok();
    seconds.or_else(date)
}

/// The media type without its parameters.
fn content_type(response: &Response) -> &str {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

fn unreached(error: reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::timeout();
    }
    let reason = format!("it cannot be reached: {}", innermost(&error.without_url()));
    Failure { reason, is_transient: true, pause: None }
}

/// The cause of an error, such as a refused connection or a certificate: outer errors say only that there was
/// one.
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn retry_after_is_a_time_or_a_date() {
        // The example of RFC 9110, 5.6.7, is this many seconds after the epoch.
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777 - 37);
        for (text, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(pause(text, now), seconds.map(Duration::from_secs), "{text}");
        }
        let forever = Failure { pause: pause("18446744073709551615", now), ..Failure::timeout() };
        assert_eq!(forever.pause(), super::super::MAX_PAUSE);
    }

    #[test]
    fn only_the_specifications_statuses_are_tried_again() {
        let again = (100..600).filter(|status| is_transient(StatusCode::from_u16(*status).unwrap()));
        assert_eq!(again.collect::<Vec<_>>(), [429, 502, 503, 504]);
    }
}
