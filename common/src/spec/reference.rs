use std::fmt;

use super::SpecError;
use super::check::path as field_path;

/// A data file. On the wire a local path, or `input:{blake3}:{file name}` once uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputRef {
    /// A local path; only in a client, before upload.
    Path(String),
    /// `s3://`, `gs://`, `az://` or `https://`; only in a client, which reads it with its user's credentials
    /// and uploads the content.
    Url(String),
    /// The upload with this hash, of the job's tenant.
    Input { blake3: String, name: String },
}

/// A model directory. On the wire a local path, `model:{blake3}:{directory name}` once uploaded, or
/// `job:{job}/{artifact}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A local path; only in a client, before upload.
    Path(String),
    /// The upload with this hash, of the job's tenant: the JSON of an `Artifact` that lists the directory's
    /// files.
    Input { blake3: String, name: String },
    /// A model of another job in the same store. The job is given by its id or by its name, which means the
    /// newest job of that name.
    Artifact { job: String, artifact: String },
}

/// Schemes of the URLs that data files may be read from.
const URL_SCHEMES: [&str; 4] = ["s3", "gs", "az", "https"];

const INPUT: &str = "input:";
const MODEL: &str = "model:";
const ARTIFACT: &str = "job:";

/// Whether a reference names something in the store rather than a local path.
pub(super) fn is_stored(text: &str) -> bool {
    [INPUT, MODEL, ARTIFACT].iter().any(|scheme| text.starts_with(scheme)) || text.contains("://")
}

impl InputRef {
    pub(crate) fn parse(at: &str, field: &str, text: &str) -> Result<Self, SpecError> {
        if let Some((scheme, _)) = text.split_once("://") {
            return match URL_SCHEMES.contains(&scheme) {
                true => Ok(Self::Url(text.to_owned())),
                false => {
                    let error = SpecError::field(&field_path(at, field), text, "a local path, or a URL");
                    Err(error.advice("URLs of inputs begin with s3://, gs://, az:// or https://"))
                }
            };
        }
        let uploaded = uploaded(&field_path(at, field), text, INPUT)?;
        Ok(match uploaded {
            Some((blake3, name)) => Self::Input { blake3, name },
            None => Self::Path(text.to_owned()),
        })
    }

    /// Name for messages: the path, or the original file name.
    pub fn name(&self) -> &str {
        match self {
            Self::Path(name) | Self::Url(name) | Self::Input { name, .. } => name,
        }
    }
}

impl ModelRef {
    pub(crate) fn parse(at: &str, field: &str, text: &str) -> Result<Self, SpecError> {
        let field = &field_path(at, field);
        if let Some(rest) = text.strip_prefix(ARTIFACT) {
            return match rest.split_once('/') {
                Some((job, artifact)) if !job.is_empty() && !artifact.is_empty() => {
                    Ok(Self::Artifact { job: job.to_owned(), artifact: artifact.to_owned() })
                }
                _ => Err(SpecError::field(field, text, "job:<id or name>/<artifact>, as job:hh/policy@2")),
            };
        }
        Ok(match uploaded(field, text, MODEL)? {
            Some((blake3, name)) => Self::Input { blake3, name },
            None => Self::Path(text.to_owned()),
        })
    }

    /// Name for messages: the path, the original directory name, or the job's artifact.
    pub fn name(&self) -> String {
        match self {
            Self::Path(name) | Self::Input { name, .. } => name.clone(),
            Self::Artifact { job, artifact } => format!("{job}/{artifact}"),
        }
    }
}

impl fmt::Display for InputRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) | Self::Url(path) => f.write_str(path),
            Self::Input { blake3, name } => write!(f, "{INPUT}{blake3}:{name}"),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Input { blake3, name } => write!(f, "{MODEL}{blake3}:{name}"),
            Self::Artifact { job, artifact } => write!(f, "{ARTIFACT}{job}/{artifact}"),
        }
    }
}

/// Hash and name of what looks like an uploaded data file or model.
pub(super) fn hash_and_name(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix(INPUT).or_else(|| text.strip_prefix(MODEL))?;
    rest.split_once(':').filter(|(hash, _)| is_blake3(hash))
}

fn is_blake3(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Hash and name of an uploaded reference; `None` for a local path.
fn uploaded(field: &str, text: &str, scheme: &str) -> Result<Option<(String, String)>, SpecError> {
    if text.is_empty() {
        return Err(SpecError::field(field, "an empty path", "a path"));
    }
    let Some(rest) = text.strip_prefix(scheme) else {
        if is_stored(text) {
            let expected = format!("a local path or {scheme}<BLAKE3>:<name>");
            return Err(SpecError::field(field, text, &expected)
                .advice("models by URL are not supported; download them and name the local path"));
        }
        return Ok(None);
    };
    let (blake3, name) = rest.split_once(':').unwrap_or((rest, ""));
    if !is_blake3(blake3) {
        return Err(SpecError::field(field, text, &format!("{scheme}<64 hex digits of BLAKE3>:<name>")));
    }
    Ok(Some((blake3.to_owned(), name.to_owned())))
}
