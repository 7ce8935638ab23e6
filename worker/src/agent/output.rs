//! The output of a rank process: JSON lines, except for what libraries print. Each line is forwarded to the
//! log and shipped to the store; the tail is kept to explain how the process ended.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use foil_common::log_line::LogLine;
use foil_common::oom;
use foil_common::telemetry::{self, LogFormat};
use foil_proto::v1;
use serde::de::IgnoredAny;

use super::shipper::LogSink;

/// Number of output lines in the report of a rank's exit.
const TAIL_LINES: usize = 50;
/// Longer lines are truncated in that report.
const TAIL_LINE_BYTES: usize = 2000;
/// Number of lines that may follow an out-of-memory message for it to count as the cause of the exit. A
/// backtrace has some hundreds; the process survived an older message.
const OOM_WINDOW_LINES: usize = 1000;

/// The end of a process's output.
#[derive(Debug, Default)]
pub(super) struct OutputTail {
    /// The last [`TAIL_LINES`] lines, oldest first.
    pub(super) tail: Vec<String>,
    /// The out-of-memory message, if one is within the last [`OOM_WINDOW_LINES`] lines.
    pub(super) shortage: Option<v1::MemoryShortage>,
}

/// Collects the end of a process's output from its reader threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Output(Arc<Mutex<Buffer>>);

#[derive(Debug, Default)]
struct Buffer {
    tail: VecDeque<String>,
    /// The last out-of-memory message, and the number of lines since.
    shortage: Option<(v1::MemoryShortage, usize)>,
}

impl Output {
    fn push(&self, line: &str) {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shortage) = oom::parse(line) {
            buffer.shortage = Some((shortage, 0));
        } else if let Some((_, since)) = &mut buffer.shortage {
            *since += 1;
        }
        if buffer.tail.len() == TAIL_LINES {
            buffer.tail.pop_front();
        }
        let max = TAIL_LINE_BYTES.min(line.len());
        let cut = (0..=max).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        buffer.tail.push_back(line[..cut].to_owned());
    }

    pub(super) fn take(&self) -> OutputTail {
        let buffer = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let shortage =
            buffer.shortage.filter(|&(_, since)| since < OOM_WINDOW_LINES).map(|(shortage, _)| shortage);
        OutputTail { tail: buffer.tail.into(), shortage }
    }
}

/// Copies a rank's output line by line to standard error, where this process's log goes too.
pub(super) fn forward(
    session_id: &str,
    output: impl Read + Send + 'static,
    format: LogFormat,
    buffer: Output,
    sink: LogSink,
) -> io::Result<JoinHandle<()>> {
    let session = session_id.to_owned();
    thread::Builder::new().name(format!("log {session_id}")).spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches(['\n', '\r']);
            sink.push(line);
            let human = (format == LogFormat::Human).then(|| LogLine::parse(line)).flatten();
            let human = human.map(|parsed| parsed.human());
            let line = human.as_deref().unwrap_or(line);
            buffer.push(line);
            if let Some(line) = log_line(line, &session, format) {
                telemetry::write_line(&line);
            }
            bytes.clear();
        }
    })
}

/// The line for this process's log. In a JSON log, lines that are not JSON (printed by libraries) are
/// wrapped, and empty lines are dropped.
fn log_line<'a>(line: &'a str, session: &str, format: LogFormat) -> Option<Cow<'a, str>> {
    let is_object = || line.starts_with('{') && serde_json::from_str::<IgnoredAny>(line).is_ok();
    match format {
        LogFormat::Human => Some(line.into()),
        LogFormat::Json if line.trim().is_empty() => None,
        LogFormat::Json if is_object() => Some(line.into()),
        LogFormat::Json => Some(telemetry::json_line("INFO", "rank", line, &[("session", session)]).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_log_stays_json_whatever_a_library_prints() {
        let json = |line| log_line(line, "s1", LogFormat::Json);
        let logged = r#"{"level":"INFO","message":"step"}"#;
        assert_eq!(json(logged).as_deref(), Some(logged));
        assert_eq!(json("  "), None);
        for line in ["[W socket.cpp:460] a \"warning\"", "{ torn", "42"] {
            let logged: serde_json::Value = serde_json::from_str(&json(line).unwrap()).unwrap();
            assert_eq!((&logged["message"], &logged["session"]), (&line.into(), &"s1".into()));
        }
        assert_eq!(log_line("plain", "s1", LogFormat::Human).as_deref(), Some("plain"));
    }

    #[test]
    fn the_tail_keeps_the_last_lines_and_cuts_long_ones_at_a_character() {
        let output = Output::default();
        for line in 0..60 {
            output.push(&line.to_string());
        }
        output.push(&"é".repeat(2000));
        let lines = output.take().tail;
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[0], "11");
        assert_eq!(lines[TAIL_LINES - 1].len(), TAIL_LINE_BYTES);
    }

    #[test]
    fn an_out_of_memory_message_counts_through_a_backtrace_and_no_longer() {
        for (frames, counts) in [(0, true), (OOM_WINDOW_LINES - 1, true), (OOM_WINDOW_LINES, false)] {
            let output = Output::default();
            output.push("memory allocation of 64 bytes failed");
            output.push("memory allocation of 4096 bytes failed");
            for frame in 0..frames {
                output.push(&format!("  {frame}: core::ops::function::FnOnce::call_once"));
            }
            let requested = output.take().shortage.and_then(|shortage| shortage.requested_bytes);
            assert_eq!(requested, counts.then_some(4096), "{frames}");
        }
    }
}
