//! Logs and metrics.

#![expect(clippy::disallowed_methods, reason = "log lines have a time")]

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Map, Value};
use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::exposition;
use crate::redact::{self, Redacting};
use crate::version;

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text for a terminal.
    #[default]
    Human,
    /// One JSON object per line; it includes the fields of all open spans (job, phase, round, …).
    Json,
}

/// The format of the process's log.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

#[derive(Debug, Error)]
#[error("cannot set up telemetry: {0}")]
pub struct TelemetryError(String);

/// Sends logs to standard error. `RUST_LOG` wins over `default_filter`, for example `"info"`.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), TelemetryError> {
    init_with(format, default_filter, std::io::stderr)
}

/// Like [`init`], with another writer, for example one that preserves progress bars.
pub fn init_with<W>(format: LogFormat, default_filter: &str, writer: W) -> Result<(), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let _ = FORMAT.set(format);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_filter));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Redacting(writer));
    match format {
        LogFormat::Human => builder.with_ansi(colors()).with_target(false).try_init(),
        LogFormat::Json => {
            panic::set_hook(Box::new(panic_line));
            builder.fmt_fields(JsonFields::new()).event_format(FlatJson).try_init()
        }
    }
    .map_err(|error| TelemetryError(error.to_string()))
}

/// Whether to color lines on standard error.
fn colors() -> bool {
    let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    may_color(io::stderr().is_terminal(), variable)
}

/// Follows <https://no-color.org>, the CLICOLOR conventions and TERM.
fn may_color(on_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|force| force != "0") {
        return true;
    }
    let refused = set("CLICOLOR").is_some_and(|color| color == "0");
    on_terminal && !refused && set("TERM").is_some_and(|term| term != "dumb")
}

/// Writes a message for users to standard error, as a JSON line if the log is JSON.
pub fn note(program: &str, message: &str) {
    write_line(&match FORMAT.get() {
        Some(LogFormat::Json) => json_line("INFO", program, message, &[]),
        _ => message.to_owned(),
    });
}

/// Writes the error with which a process exits, independent of the log's filter and of whether the log could
/// be set up.
pub fn fatal(format: LogFormat, program: &str, message: &str) {
    let message = &redact::secrets(message);
    write_line(&match format {
        LogFormat::Human => format!("{program}: {message}"),
        LogFormat::Json => json_line("ERROR", program, message, &[]),
    });
}

/// A JSON line like those of [`LogFormat::Json`], for messages outside of the log.
pub fn json_line(level: &str, target: &str, message: &str, fields: &[(&str, &str)]) -> String {
    let mut line = head(level, target);
    line.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
    line.insert("message".into(), Value::from(message));
    Value::Object(line).to_string()
}

fn head(level: &str, target: &str) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("time".into(), Value::from(unix_seconds()));
    line.insert("level".into(), Value::from(level));
    line.insert("target".into(), Value::from(target));
    line
}

fn panic_line(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied().map(str::to_owned);
    let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
    let message = format!("panicked: {}", message.as_deref().unwrap_or("without a message"));
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let fields = [("thread", thread.name().unwrap_or("<unnamed>")), ("location", location.as_str())];
    write_line(&json_line("ERROR", "panic", &message, &fields));
}

/// Writes a line to standard error in one write, so that processes that share it do not mix their lines.
pub fn write_line(line: &str) {
    // Without standard error, the message cannot be reported.
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Installs the process's metrics recorder, which [`exposition::render`] renders.
pub fn install_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = exposition::builder().and_then(PrometheusBuilder::install_recorder);
    let recorder = recorder.map_err(|error| TelemetryError(error.to_string()))?;
    exposition::describe();
    metrics::gauge!("foil_build_info", "version" => version::VERSION, "build" => version::BUILD).set(1.0);
    Ok(recorder)
}

struct FlatJson;

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = head(event.metadata().level().as_str(), event.metadata().target());
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            let extensions = span.extensions();
            let Some(fields) = extensions.get::<FormattedFields<JsonFields>>() else { continue };
            if let Ok(Value::Object(fields)) = serde_json::from_str(fields) {
                line.extend(fields);
            }
        }
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Seconds since 1970, to the microsecond.
fn unix_seconds() -> f64 {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    micros as f64 / 1e6
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Read;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn colors_follow_the_terminal_and_the_users_settings() {
        let may = |on_terminal, variables: &[(&str, &str)]| {
            let variables: HashMap<_, _> = variables.iter().copied().collect();
            may_color(on_terminal, |name| variables.get(name).map(|value| (*value).to_owned()))
        };
        let xterm = ("TERM", "xterm");
        assert!(may(true, &[xterm]) && !may(false, &[xterm]));
        assert!(!may(true, &[]) && !may(true, &[("TERM", "dumb")]));
        assert!(!may(true, &[xterm, ("NO_COLOR", "1")]) && may(true, &[xterm, ("NO_COLOR", "")]));
        assert!(!may(true, &[xterm, ("CLICOLOR", "0")]) && may(false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!may(true, &[xterm, ("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
    }

    #[test]
    fn a_line_outside_the_log_has_the_format_of_the_log() {
        let line = json_line("ERROR", "foil", "cannot listen\non :1", &[("session", "s")]);
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["level"], &line["message"]), (&"ERROR".into(), &"cannot listen\non :1".into()));
        assert!(line["time"].is_f64() && line["target"] == "foil" && line["session"] == "s");
    }

    #[test]
    fn a_json_line_carries_the_fields_of_its_spans() {
        let (mut lines, writer) = io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields::new())
            .event_format(FlatJson)
            .with_writer(Mutex::new(writer))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let job = tracing::info_span!("job", job = "j1", round = 1);
            let _job = job.enter();
            let _rank = tracing::info_span!("rank", rank = 2).entered();
            tracing::info!(round = 3, seconds = 0.5, "phase done");
        });
        let mut text = String::new();
        lines.read_to_string(&mut text).unwrap();
        let line: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["job"], &line["rank"]), (&Value::from("j1"), &Value::from(2)));
        // The event's own field wins over its span's.
        assert_eq!((&line["round"], &line["message"]), (&Value::from(3), &Value::from("phase done")));
        assert_eq!((&line["level"], &line["seconds"]), (&Value::from("INFO"), &Value::from(0.5)));
    }
}
