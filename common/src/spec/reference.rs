use std::fmt;

use super::SpecError;
use super::check::path as field_path;

/// Defines a reference to something a client uploads.
macro_rules! reference {
    ($(#[$meta:meta])* $name:ident, $scheme:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            /// A local path; only in a client, before upload.
            Path(String),
            /// The object `inputs/{blake3}` of the store.
            Input { blake3: String, name: String },
        }

        impl $name {
            pub(crate) fn parse(at: &str, field: &str, text: &str) -> Result<Self, SpecError> {
                let field = &field_path(at, field);
                Ok(match uploaded(field, text, $scheme)? {
                    Some((blake3, name)) => Self::Input { blake3, name },
                    None => Self::Path(text.to_owned()),
                })
            }

            /// The store's key, once uploaded.
            pub fn key(&self) -> Option<String> {
                match self {
                    Self::Path(_) => None,
                    Self::Input { blake3, .. } => Some(format!("inputs/{blake3}")),
                }
            }

            /// What messages call it: the path, or the name it had where it came from.
            pub fn name(&self) -> &str {
                match self {
                    Self::Path(name) | Self::Input { name, .. } => name,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Path(path) => f.write_str(path),
                    Self::Input { blake3, name } => write!(f, "{}{blake3}:{name}", $scheme),
                }
            }
        }
    };
}

reference! {
    /// A data file. On the wire a local path, or `input:{blake3}:{file name}` once uploaded.
    InputRef, "input:"
}

reference! {
    /// A model directory. On the wire a local path, or `model:{blake3}:{directory name}` once uploaded: that object
    /// is the JSON of an `Artifact` that lists the directory's files.
    ModelRef, "model:"
}

/// The hash and the name in an uploaded reference; `None` for a local path.
fn uploaded(field: &str, text: &str, scheme: &str) -> Result<Option<(String, String)>, SpecError> {
    if text.is_empty() {
        return Err(SpecError::field(field, "an empty path", "a path"));
    }
    let Some(rest) = text.strip_prefix(scheme) else {
        let foreign = text.starts_with("input:") || text.starts_with("model:");
        if foreign || text.contains("://") {
            let expected = format!("a local path or {scheme}<BLAKE3>:<name>");
            return Err(SpecError::field(field, text, &expected)
                .advice("inputs by URL are not supported; download them and name the local path"));
        }
        return Ok(None);
    };
    let (blake3, name) = rest.split_once(':').unwrap_or((rest, ""));
    if blake3.len() != 64 || !blake3.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(SpecError::field(field, text, &format!("{scheme}<64 hex digits of BLAKE3>:<name>")));
    }
    Ok(Some((blake3.to_owned(), name.to_owned())))
}
