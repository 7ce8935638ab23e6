//! What a rank process prints: passed on line by line, and what of it its end is explained by.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use foil_common::oom;
use foil_common::telemetry::{self, LogFormat};
use foil_proto::v1;
use serde::de::IgnoredAny;

/// Lines of a rank's output that go with the report of its end.
const TAIL_LINES: usize = 50;
/// Longer lines are cut in that report.
const TAIL_LINE_BYTES: usize = 2000;
/// How many lines may follow the word of an end. A backtrace has some hundreds, and a shortage that was told of longer
/// ago has been lived through.
const LAST_WORDS_LINES: usize = 1000;

/// What a process has printed.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The last [`TAIL_LINES`] lines, oldest first.
    pub(super) tail: Vec<String>,
    /// The memory that it said it lacked within its last [`LAST_WORDS_LINES`] lines.
    pub(super) shortage: Option<v1::MemoryShortage>,
}

/// The end of a process's output, as its readers gather it.
#[derive(Clone, Debug, Default)]
pub(super) struct Output(Arc<Mutex<Gathered>>);

#[derive(Debug, Default)]
struct Gathered {
    tail: VecDeque<String>,
    /// The last shortage told of, and the lines since.
    shortage: Option<(v1::MemoryShortage, usize)>,
}

impl Output {
    fn push(&self, line: &str) {
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shortage) = oom::parse(line) {
            gathered.shortage = Some((shortage, 0));
        } else if let Some((_, since)) = &mut gathered.shortage {
            *since += 1;
        }
        if gathered.tail.len() == TAIL_LINES {
            gathered.tail.pop_front();
        }
        let most = TAIL_LINE_BYTES.min(line.len());
        let cut = (0..=most).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        gathered.tail.push_back(line[..cut].to_owned());
    }

    pub(super) fn take(&self) -> Said {
        let gathered = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let shortage =
            gathered.shortage.filter(|&(_, since)| since < LAST_WORDS_LINES).map(|(shortage, _)| shortage);
        Said { tail: gathered.tail.into(), shortage }
    }
}

/// Copies a rank's output to this process's standard error, where its log goes too, line by line.
pub(super) fn forward(
    session_id: &str,
    output: impl Read + Send + 'static,
    format: LogFormat,
    gathered: Output,
) -> io::Result<JoinHandle<()>> {
    let session = session_id.to_owned();
    thread::Builder::new().name(format!("log {session_id}")).spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches(['\n', '\r']);
            gathered.push(line);
            if let Some(line) = passed_on(line, &session, format) {
                telemetry::write_line(&line);
            }
            bytes.clear();
        }
    })
}

/// A rank's line as it stands in this process's log. What libraries print is no JSON, and becomes a line of the log's own
/// form where that is JSON; empty lines are left out there.
fn passed_on<'a>(line: &'a str, session: &str, format: LogFormat) -> Option<Cow<'a, str>> {
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
    fn a_log_in_json_stays_json_whatever_a_library_prints() {
        let json = |line| passed_on(line, "s1", LogFormat::Json);
        let logged = r#"{"level":"INFO","message":"step"}"#;
        assert_eq!(json(logged).as_deref(), Some(logged));
        assert_eq!(json("  "), None);
        for line in ["[W socket.cpp:460] a \"warning\"", "{ torn", "42"] {
            let told: serde_json::Value = serde_json::from_str(&json(line).unwrap()).unwrap();
            assert_eq!((&told["message"], &told["session"]), (&line.into(), &"s1".into()));
        }
        assert_eq!(passed_on("plain", "s1", LogFormat::Human).as_deref(), Some("plain"));
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
    fn a_shortage_is_heard_through_the_backtrace_behind_it_and_forgotten_after_that() {
        for (frames, heard) in [(0, true), (LAST_WORDS_LINES - 1, true), (LAST_WORDS_LINES, false)] {
            let output = Output::default();
            output.push("memory allocation of 64 bytes failed");
            output.push("memory allocation of 4096 bytes failed");
            for frame in 0..frames {
                output.push(&format!("  {frame}: core::ops::function::FnOnce::call_once"));
            }
            let requested = output.take().shortage.and_then(|shortage| shortage.requested_bytes);
            assert_eq!(requested, heard.then_some(4096), "{frames}");
        }
    }
}
