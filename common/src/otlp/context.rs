//! Identity of a span: the trace that it is part of, and its own id. Written as W3C Trace Context's
//! `traceparent`.

use std::fmt;
use std::str::FromStr;

/// Identity of a span, and whether its trace is recorded.
///
/// Ids derive from names, so that processes that know the same names agree on the ids without communication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

/// A text that is not a valid `traceparent`, which the standard says to ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 00-TRACE-PARENT-FLAGS, in lower-case hex of 32, 16 and 2 digits")]
pub struct NotTraceparent;

impl TraceContext {
    /// The root span of a new trace, which is recorded.
    pub fn root(name: &str) -> Self {
        let hash = hash(b"trace", &[name.as_bytes()]);
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        trace.copy_from_slice(&hash[..16]);
        span.copy_from_slice(&hash[16..24]);
        Self { trace: not_zero(trace), span: not_zero(span), sampled: true }
    }

    /// A child of this span. The names of a span's children must differ.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let hash = hash(b"span", &[&self.trace, &self.span, name.as_bytes()]);
        let mut span = [0; 8];
        span.copy_from_slice(&hash[..8]);
        Self { span: not_zero(span), ..*self }
    }

    /// False if the program that began the trace does not record it.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    pub(super) fn trace_id(&self) -> Vec<u8> {
        self.trace.to_vec()
    }

    pub(super) fn span_id(&self) -> Vec<u8> {
        self.span.to_vec()
    }
}

fn hash(kind: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().into()
}

/// Avoids an id of zeros, which is invalid.
fn not_zero<const N: usize>(mut id: [u8; N]) -> [u8; N] {
    if id == [0; N] {
        id[N - 1] = 1;
    }
    id
}

/// Bytes from lower-case hex; `None` if all are zero.
fn id<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let is_lower = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 2 * N || !is_lower {
        return None;
    }
    let mut id = [0; N];
    for (byte, at) in id.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    (id != [0; N]).then_some(id)
}

impl FromStr for TraceContext {
    type Err = NotTraceparent;

    fn from_str(text: &str) -> Result<Self, NotTraceparent> {
        let parsed = || {
            let mut fields = text.splitn(5, '-');
            let mut field = || fields.next();
            let (version, trace, span, flags) = (field()?, id(field()?)?, id(field()?)?, field()?);
            let version: [u8; 1] = if version == "00" { [0] } else { id(version)? };
            // Version 0 has four fields; a later one may have more.
            let is_valid = version != [0xff] && (version != [0] || field().is_none()) && flags.len() == 2;
            let flags = if flags == "00" { [0] } else { id::<1>(flags)? };
            is_valid.then_some(Self { trace, span, sampled: flags[0] & 1 == 1 })
        };
        parsed().ok_or(NotTraceparent)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_it_is_written() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), EXAMPLE);
        let unsampled: TraceContext = EXAMPLE.replace("-01", "-00").parse().unwrap();
        assert!(!unsampled.is_sampled() && !unsampled.child("a").is_sampled());
        let later = EXAMPLE.replacen("00-", "cc-", 1) + "-what-the-future-adds";
        assert_eq!(later.parse(), Ok(context));
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        for text in [
            "",
            "00",
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replacen("00-", "ff-", 1),
            &format!("{EXAMPLE}-more"),
            &EXAMPLE.replace("-01", "-1"),
            &EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &EXAMPLE.replace("00f067aa0ba902b7", "00f067aa0dd902é"),
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(NotTraceparent), "{text}");
        }
    }

    #[test]
    fn ids_derive_from_names() {
        let (one, other) = (TraceContext::root("one"), TraceContext::root("other"));
        assert_eq!(one, TraceContext::root("one"));
        assert_ne!(one.trace_id(), other.trace_id());
        let child = one.child("a");
        assert_eq!(child, one.child("a"));
        assert_eq!(child.trace_id(), one.trace_id());
        let ids = [child, one.child("b"), child.child("a"), other.child("a"), one];
        for (at, id) in ids.iter().enumerate() {
            assert!(ids[at + 1..].iter().all(|later| later.span_id() != id.span_id()));
        }
    }
}
