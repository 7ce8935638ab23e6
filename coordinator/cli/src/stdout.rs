//! Output to the user: standard output, and notes on standard error. Nothing else writes to standard output.

use std::io::{self, Write};

use foil_common::telemetry;
use serde_json::Value;

use super::terminal;

/// Prints a line. A closed pipe (`foil list | head -1`) is no error.
pub(crate) fn line(text: &str) -> io::Result<()> {
    write(&format!("{text}\n"))
}

/// Prints sentences, wrapped to the width of the terminal.
pub(crate) fn prose(text: &str) -> io::Result<()> {
    let columns = terminal::stdout_columns();
    line(&text.split('\n').map(|line| terminal::wrap(line, columns)).collect::<Vec<_>>().join("\n"))
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

/// Prints a message for people on standard error.
pub(crate) fn note(text: &str) {
    telemetry::note("foil", text);
}

/// An error with its causes, without repetition: many messages include their cause.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("data.golden: {source}")]
    struct Told {
        source: std::io::Error,
    }

    #[test]
    fn a_cause_is_printed_once() {
        let told = Told { source: std::io::Error::other("line 3 is no JSON") };
        assert_eq!(chain(&anyhow::Error::new(told)), "data.golden: line 3 is no JSON");
        let nested = anyhow!("no route").context("cannot connect");
        assert_eq!(chain(&nested), "cannot connect: no route");
        let result: anyhow::Result<()> = Err(anyhow!("inner")).context("outer: inner");
        assert_eq!(chain(&result.unwrap_err()), "outer: inner");
    }
}
