//! Traces and metrics for an OpenTelemetry collector, by OTLP over gRPC or HTTP.
//!
//! Spans are values: code that knows how a piece of work went creates one and passes it to [`send`], which
//! does nothing if the environment names no collector. Ids derive from names ([`TraceContext`]), so that a
//! coordinator that takes over continues with the same spans. Metrics are read from the `/metrics` page.

mod collector;
mod config;
mod context;
mod exporter;
mod list;
mod page;
mod span;
#[cfg(test)]
mod tests;

pub use self::config::{Config, ConfigError};
pub use self::context::{NotTraceparent, TraceContext};
pub use self::exporter::{Exporter, now, send, sends_spans};
pub use self::span::{Attribute, AttributeValue, Span, SpanKind};
