use std::error::Error as _;
use std::io;

use crate::failpoint::Injected;
use crate::redact;

/// The error of a request to the store, with advice.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the key {key:?} cannot be used: {reason}")]
    BadKey { key: String, reason: &'static str },
    #[error("cannot open the store {location}: {reason}; {advice}")]
    Open { location: String, reason: String, advice: &'static str },
    #[error("the store {location} has no object {key}")]
    NotFound { location: String, key: String },
    #[error(
        "the store {location} let the same key be created twice, so it cannot keep Foil's log; use a local directory \
         on a file system with hard links, or S3, Google Cloud Storage or Azure with conditional writes"
    )]
    NotExclusive { location: String },
    #[error("the store {location} is full (writing {key}); free some space, and work continues")]
    NoSpace { location: String, key: String },
    #[error(
        "there is no bucket or container for the store {location} ({operation} of {key}: {reason}); create it, or correct \
         the URL"
    )]
    NoBucket { location: String, operation: &'static str, key: String, reason: String },
    #[error(
        "the store {location} refused {operation} of {key}: {reason}; check its permissions and credentials"
    )]
    Denied { location: String, operation: &'static str, key: String, reason: String },
    #[error("the store {location} failed at {operation} of {key}: {reason}")]
    Unavailable { location: String, operation: &'static str, key: String, reason: String },
    #[error(
        "the object {key} is already there with other content (BLAKE3 {existing}, offered {offered}); objects never \
         change: write under another key"
    )]
    Conflict { key: String, existing: String, offered: String },
    #[error(
        "the object {key} is damaged: expected {expected}, found {found}; restore it from a copy or remove it and \
         the job that made it"
    )]
    Corrupt { key: String, expected: String, found: String },
    #[error(
        "what was sent as {key} is not what was announced: expected {expected}, got {found}; send it again"
    )]
    Mismatch { key: String, expected: String, found: String },
}

impl StoreError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Unavailable { .. })
    }

    /// An injected failure, as if the store had not answered.
    pub(crate) fn injected(injected: &Injected, key: &str) -> Self {
        let (location, reason) = (injected.site.to_owned(), injected.to_string());
        Self::Unavailable { location, operation: "write", key: key.to_owned(), reason }
    }

    /// Whether a retry within seconds may succeed.
    pub(crate) fn is_brief(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Value of the metric's `code` label.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::NoBucket { .. } => "no_bucket",
            Self::NoSpace { .. } => "no_space",
            Self::Denied { .. } => "denied",
            Self::Unavailable { .. } => "unavailable",
            Self::Conflict { .. } => "conflict",
            Self::Corrupt { .. } => "corrupt",
            Self::BadKey { .. } | Self::Open { .. } | Self::NotExclusive { .. } | Self::Mismatch { .. } => {
                "invalid"
            }
        }
    }

    pub(crate) fn from_object_store(
        location: &str,
        operation: &'static str,
        key: &str,
        error: &object_store::Error,
    ) -> Self {
        use object_store::Error;
        let (location, key) = (location.to_owned(), key.to_owned());
        match error {
            // A key to be written need not exist, so it is the bucket or directory that does not exist.
            Error::NotFound { .. } if matches!(operation, "create" | "put") => {
                Self::NoBucket { location, operation, key, reason: reason(error) }
            }
            Error::NotFound { .. } => Self::NotFound { location, key },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Self::Denied { location, operation, key, reason: reason(error) }
            }
            _ if is_disk_full(error) => Self::NoSpace { location, key },
            _ if is_refused_by_disk(error) => {
                Self::Denied { location, operation, key, reason: reason(error) }
            }
            _ => Self::Unavailable { location, operation, key, reason: reason(error) },
        }
    }
}

/// An error with its causes: HTTP's outer errors say little, and only the last one distinguishes an unknown
/// host from one that refuses connections or does not speak TLS. Clients quote the requested URL, which may
/// be signed: its secrets are redacted.
pub(super) fn reason(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    if let Some(advice) = no_credentials(&text) {
        text = format!("{text}; {advice}");
    }
    redact::secrets(&text).into_owned()
}

/// Advice if a provider's client found no credentials in the environment and so asked the cloud's metadata
/// service, which answers only on the cloud's own machines.
fn no_credentials(text: &str) -> Option<&'static str> {
    let services = [
        (
            "169.254.169.254/latest/",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public bucket)",
        ),
        ("169.254.169.254/metadata/identity", "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
        ("/computeMetadata/", "set GOOGLE_SERVICE_ACCOUNT to the file of a service account's key"),
    ];
    services.into_iter().find(|(address, _)| text.contains(address)).map(|(_, advice)| advice)
}

fn is_disk_full(error: &object_store::Error) -> bool {
    has_io_kind(error, &[io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded])
}

/// Whether the disk refuses writes permanently, which only the cause shows.
fn is_refused_by_disk(error: &object_store::Error) -> bool {
    has_io_kind(error, &[io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied])
}

fn has_io_kind(error: &object_store::Error, kinds: &[io::ErrorKind]) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.downcast_ref::<io::Error>().is_some_and(|io| kinds.contains(&io.kind())) {
            return true;
        }
        source = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("error sending request")]
    struct Sending(#[source] io::Error);

    #[test]
    fn an_error_includes_its_last_cause() {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "Connection refused (os error 111)");
        let error = object_store::Error::Generic { store: "S3", source: Box::new(Sending(refused)) };
        let told = StoreError::from_object_store("s3://b", "get", "k", &error).to_string();
        assert!(told.contains("error sending request: Connection refused (os error 111)"), "{told}");
        assert_eq!(told.matches("error sending request").count(), 1, "{told}");
    }

    #[test]
    fn a_want_of_credentials_is_told() {
        let told = |url: &str| {
            let source = format!("Error performing PUT {url} in 3s - HTTP error").into();
            let error = object_store::Error::Generic { store: "S3", source };
            StoreError::from_object_store("s3://b", "get", "k", &error).to_string()
        };
        let own = told("http://169.254.169.254/latest/api/token");
        assert!(own.contains("HTTP error; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{own}");
        let google = told("http://metadata.google.internal/computeMetadata/v1/instance");
        assert!(google.contains("set GOOGLE_SERVICE_ACCOUNT"), "{google}");
        assert!(!told("https://s3.eu-west-1.amazonaws.com/b/k").contains("set "));
    }

    #[test]
    fn a_read_only_disk_is_not_retried() {
        for (kind, code) in [
            (io::ErrorKind::ReadOnlyFilesystem, "denied"),
            (io::ErrorKind::PermissionDenied, "denied"),
            (io::ErrorKind::StorageFull, "no_space"),
            (io::ErrorKind::TimedOut, "unavailable"),
        ] {
            let source = Box::new(Sending(io::Error::from(kind)));
            let error = object_store::Error::Generic { store: "LocalFileSystem", source };
            let told = StoreError::from_object_store("/store", "create", "k", &error);
            assert_eq!((told.code(), told.is_brief()), (code, code == "unavailable"), "{kind}: {told}");
        }
    }

    #[test]
    fn a_write_that_is_not_found_means_a_missing_bucket() {
        let missing =
            || object_store::Error::NotFound { path: "p".into(), source: "The bucket does not exist".into() };
        let told = |operation| StoreError::from_object_store("s3://b", operation, "k", &missing());
        assert!(matches!(told("get"), StoreError::NotFound { .. }));
        let put = told("create").to_string();
        assert!(put.contains("no bucket or container") && put.contains("create it"), "{put}");
    }
}
