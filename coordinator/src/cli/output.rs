//! The one place that writes to standard output.

use std::io::{self, Write};

use foil_common::telemetry;
use serde_json::Value;

/// Prints a line. A reader that went away (`foil list | head -1`) is no error.
pub(crate) fn line(text: &str) -> io::Result<()> {
    write(&format!("{text}\n"))
}

/// Prints `value` as one line of JSON.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| {
            io::Error::new(error.kind(), format!("standard output cannot be written: {error}"))
        }),
    }
}

/// Prints a line on standard error, for readers rather than for programs.
pub(crate) fn note(text: &str) {
    telemetry::write_line(text);
}
