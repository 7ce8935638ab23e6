//! Middleware that normalizes statuses for every client: messages of limited length, and the standard gRPC
//! code.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tonic::Code;

use super::mapped_body::map_frames;

/// Size limit of a percent-encoded message. All clients accept 8 KiB of headers, and the details repeat the
/// message.
const MESSAGE_BYTES: usize = 4096;
/// Size limit of base64-encoded details. Longer ones are dropped, because they cannot be truncated.
const DETAILS_BYTES: usize = 8192;

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
const DETAILS: &str = "grpc-status-details-bin";

/// Prefix of tonic's OUT_OF_RANGE error for a message that is too large.
const TOO_LARGE: &str = "Error, decoded message length too large";
/// Prefixes of tonic's INTERNAL errors for bytes that are not a message.
const MALFORMED: [&str; 4] = [
    "failed to decode Protobuf message",
    "protocol error: received message with invalid compression flag",
    "protocol error: received message with compressed-flag but no grpc-encoding was specified",
    "Unexpected EOF decoding stream",
];

/// Normalizes the status of a response, in its headers or in its trailers.
pub(super) async fn normalize(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    normalize_headers(response.headers_mut());
    response.map(|body| {
        map_frames(body, |mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                normalize_headers(trailers);
            }
            frame
        })
    })
}

fn normalize_headers(headers: &mut HeaderMap) {
    let (Some(code), Some(message)) = (headers.get(STATUS), headers.get(MESSAGE)) else { return };
    let (code, message) = (Code::from_bytes(code.as_bytes()), message.to_str().unwrap_or_default());
    if let Some(standard) = standard_code(code, &decoded_start(message)) {
        headers.insert(STATUS, HeaderValue::from(standard as i32));
    } else if message.len() > MESSAGE_BYTES
        && let Ok(truncated) = HeaderValue::from_str(truncate_encoded(message))
    {
        headers.insert(MESSAGE, truncated);
    }
    if headers.get(DETAILS).is_some_and(|details| details.len() > DETAILS_BYTES) {
        headers.remove(DETAILS);
    }
}

fn standard_code(code: Code, message: &str) -> Option<Code> {
    match code {
        Code::OutOfRange if message.starts_with(TOO_LARGE) => Some(Code::ResourceExhausted),
        Code::Internal | Code::Unknown if MALFORMED.iter().any(|start| message.starts_with(start)) => {
            Some(Code::InvalidArgument)
        }
        _ => None,
    }
}

/// The start of a message, decoded as far as needed to recognize it.
fn decoded_start(message: &str) -> String {
    message.chars().take(256).collect::<String>().replace("%20", " ").replace("%2C", ",").replace("%3A", ":")
}

/// Truncates between characters: an encoded character starts with `%` and continues with bytes `%80` to
/// `%BF`.
fn truncate_encoded(message: &str) -> &str {
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

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn normalized(status: &Status) -> (HeaderMap, Status) {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        normalize_headers(&mut headers);
        let status = Status::from_header_map(&headers).unwrap();
        (headers, status)
    }

    #[test]
    fn a_status_of_megabytes_becomes_one_that_clients_read() {
        for letter in ["x", "坏", "é", "🦀"] {
            let text = letter.repeat(1 << 20);
            let details = ErrorDetails::with_bad_request_violation("spec", text.clone());
            let (headers, status) =
                normalized(&Status::with_error_details(Code::InvalidArgument, text.clone(), details));
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
        let (_, after) = normalized(&status);
        assert_eq!(after.message(), status.message());
        assert_eq!(after.details(), status.details());
        assert_eq!(normalized(&Status::internal("a bug")).1.code(), Code::Internal);
        assert_eq!(normalized(&Status::out_of_range("offset")).1.code(), Code::OutOfRange);
    }
}
