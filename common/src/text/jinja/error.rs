//! Why a template cannot be read or rendered.

use std::fmt;

/// A fault of the template, or of the values it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::text) struct Error {
    what: String,
    line: Option<u32>,
}

impl Error {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Error { what: what.into(), line: None }
    }

    /// A construct that Jinja2 has and this engine has not: better refused than rendered otherwise.
    pub(super) fn unsupported(construct: impl fmt::Display) -> Self {
        Error::new(format!("{construct} is not supported in chat templates here"))
    }

    /// The innermost line wins.
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
