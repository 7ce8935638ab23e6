//! The layer that makes statuses fit for every client: of a bounded length, and of the code that gRPC has for them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Code;

/// Longest message, percent-encoded. Clients take 8 KiB of headers at least, and the details tell the message again.
const MESSAGE_BYTES: usize = 4096;
/// Longest details, in base64. What is longer is left out: half of it says nothing.
const DETAILS_BYTES: usize = 8192;

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
const DETAILS: &str = "grpc-status-details-bin";

/// How tonic begins to tell of a message that is too large, as OUT_OF_RANGE.
const TOO_LARGE: &str = "Error, decoded message length too large";
/// How it begins to tell of one that is none, as INTERNAL.
const JUNK: [&str; 4] = [
    "failed to decode Protobuf message",
    "protocol error: received message with invalid compression flag",
    "protocol error: received message with compressed-flag but no grpc-encoding was specified",
    "Unexpected EOF decoding stream",
];

/// Amends the status of a response, in its headers or in its trailers.
pub(super) async fn amend(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    amend_headers(response.headers_mut());
    response.map(|body| Body::new(Amended(body)))
}

fn amend_headers(headers: &mut HeaderMap) {
    let (Some(code), Some(message)) = (headers.get(STATUS), headers.get(MESSAGE)) else { return };
    let (code, message) = (Code::from_bytes(code.as_bytes()), message.to_str().unwrap_or_default());
    if let Some(right) = right_code(code, &plain(message)) {
        headers.insert(STATUS, HeaderValue::from(right as i32));
    } else if message.len() > MESSAGE_BYTES
        && let Ok(cut) = HeaderValue::from_str(cut_encoded(message))
    {
        headers.insert(MESSAGE, cut);
    }
    if headers.get(DETAILS).is_some_and(|details| details.len() > DETAILS_BYTES) {
        headers.remove(DETAILS);
    }
}

fn right_code(code: Code, message: &str) -> Option<Code> {
    match code {
        Code::OutOfRange if message.starts_with(TOO_LARGE) => Some(Code::ResourceExhausted),
        Code::Internal | Code::Unknown if JUNK.iter().any(|junk| message.starts_with(junk)) => {
            Some(Code::InvalidArgument)
        }
        _ => None,
    }
}

/// The beginning of a message, with its blanks; enough to know it by.
fn plain(message: &str) -> String {
    message.chars().take(256).collect::<String>().replace("%20", " ").replace("%2C", ",").replace("%3A", ":")
}

/// Cut between characters: an encoded one begins with `%` and goes on with continuation bytes, `%80` to `%BF`.
fn cut_encoded(message: &str) -> &str {
    let mut end = message.floor_char_boundary(MESSAGE_BYTES);
    if let Some(sign) = message[..end].rfind('%').filter(|sign| end - sign < 3) {
        end = sign;
    }
    let is_continuation = |at: usize| {
        let byte = message.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        message[at..].starts_with('%') && byte.is_some_and(|byte| byte & 0xc0 == 0x80)
    };
    while is_continuation(end) && end >= 3 {
        end -= 3;
    }
    &message[..end]
}

struct Amended(Body);

impl HttpBody for Amended {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    amend_headers(trailers);
                }
                frame
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn amended(status: &Status) -> (HeaderMap, Status) {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        amend_headers(&mut headers);
        let status = Status::from_header_map(&headers).unwrap();
        (headers, status)
    }

    #[test]
    fn a_status_of_megabytes_becomes_one_that_clients_read() {
        for letter in ["x", "坏", "é", "🦀"] {
            let text = letter.repeat(1 << 20);
            let details = ErrorDetails::with_bad_request_violation("spec", text.clone());
            let (headers, status) =
                amended(&Status::with_error_details(Code::InvalidArgument, text.clone(), details));
            let size: usize = headers.values().map(HeaderValue::len).sum();
            assert!(size < 8192, "{size} bytes of headers");
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().len() > 1000 && text.starts_with(status.message()), "{letter}");
        }
    }

    #[test]
    fn an_ordinary_status_stays_as_it_is() {
        let details = ErrorDetails::with_bad_request_violation("spec.rounds", "it must be 1 at least");
        let status = Status::with_error_details(Code::InvalidArgument, "spec.rounds: größer, 100 %", details);
        let (_, after) = amended(&status);
        assert_eq!(after.message(), status.message());
        assert_eq!(after.details(), status.details());
        assert_eq!(amended(&Status::internal("a bug")).1.code(), Code::Internal);
        assert_eq!(amended(&Status::out_of_range("offset")).1.code(), Code::OutOfRange);
    }
}
