//! Spans of a rank's work, below the span that the coordinator sends with its task.

use std::fmt;
use std::thread;

use foil_common::otlp::{self, AttributeValue, Span, SpanKind, TraceContext};

/// A piece of work, from its creation until it is dropped. It is exported if the environment names a
/// collector and the task's trace is recorded. Without them it costs nothing.
#[must_use = "work ends when its span is dropped"]
#[derive(Debug)]
pub struct WorkSpan(Option<Span>);

impl WorkSpan {
    /// Begins work as a child of the work of `parent`.
    pub(super) fn begin(parent: Option<TraceContext>, name: &'static str) -> Self {
        let recorded = parent.filter(|parent| parent.is_sampled() && otlp::sends_spans());
        Self(recorded.map(|parent| Self::open(parent, name, otlp::now())))
    }

    fn open(parent: TraceContext, name: &'static str, start: u64) -> Span {
        // If a chunk is leased twice, several processes have spans below it.
        let context = parent.child(&format!("{name} {start} {}", std::process::id()));
        Span {
            context,
            parent: Some(parent),
            name: name.to_owned(),
            kind: SpanKind::Internal,
            start,
            end: start,
            attributes: Vec::new(),
            error: None,
        }
    }

    /// The parent context for the parts of this work.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|span| span.context)
    }

    pub fn with(mut self, name: &'static str, value: impl Into<AttributeValue>) -> Self {
        self.note(name, value);
        self
    }

    pub fn note(&mut self, name: &'static str, value: impl Into<AttributeValue>) {
        if let Some(span) = &mut self.0 {
            span.attributes.push((name, value.into()));
        }
    }

    /// Discards the work without a span.
    pub fn discard(mut self) {
        self.0 = None;
    }

    /// Ends the work with its result.
    pub fn end<T, E: fmt::Display>(mut self, result: &Result<T, E>) {
        if let (Some(span), Err(error)) = (&mut self.0, result) {
            span.error = Some(error.to_string());
        }
    }
}

impl Drop for WorkSpan {
    fn drop(&mut self) {
        let Some(mut span) = self.0.take() else { return };
        span.end = otlp::now();
        if thread::panicking() {
            span.error.get_or_insert_with(|| "panicked".to_owned());
        }
        otlp::send(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_an_id_of_its_own_below_its_parent() {
        let parent = TraceContext::root("chunk");
        let span = WorkSpan::open(parent, "load", 7);
        assert_eq!((span.parent, span.start), (Some(parent), 7));
        assert_ne!(span.context, WorkSpan::open(parent, "load", 8).context);
        assert_ne!(span.context, WorkSpan::open(parent, "upload", 7).context);
    }

    #[test]
    fn without_a_collector_nothing_is_kept() {
        let span = WorkSpan::begin(Some(TraceContext::root("chunk")), "load").with("foil.rank", 1_u32);
        assert!(span.0.is_none() && span.context().is_none());
    }
}
