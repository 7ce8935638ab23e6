//! The error of parsing or rendering a template.

use std::fmt;

/// A fault of the template or of its variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::text) struct Error {
    what: String,
    line: Option<u32>,
}

impl Error {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Error { what: what.into(), line: None }
    }

    /// An unsupported construct of Jinja2: better refused than rendered differently.
    pub(super) fn unsupported(construct: impl fmt::Display) -> Self {
        Error::new(format!("{construct} is not supported in chat templates here"))
    }

    /// Sets the line, unless an inner one is set.
    pub(super) fn at(mut self, line: u32) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.line {
            Some(line) => write!(f, " (line {line} of the template)"),
            None => Ok(()),
        }
    }
}
