//! Certificates and keys in PEM files, and servers that use them.

mod server;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, RootCertStore};

pub use self::server::{Changes, ServerTls, ServerTlsFiles};
use crate::private::{self, Exposed};

/// A file of certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds no {expected} in PEM format", path = path.display())]
    Missing { path: PathBuf, expected: &'static str },
    #[error("{path} cannot be used: {reason}", path = path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
    #[error(transparent)]
    Exposed(#[from] Exposed),
    #[error("this system has no CA certificates; name the CA of the coordinator with --tls-ca")]
    NoSystemRoots,
}

impl TlsError {
    pub fn invalid(path: &Path, reason: &dyn fmt::Display) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// The content of a PEM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemFile {
    path: PathBuf,
    // Not printed: it may be a key.
    bytes: Bytes,
}

#[derive(Clone, PartialEq, Eq)]
struct Bytes(Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

impl PemFile {
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        let bytes = fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), bytes: Bytes(bytes) })
    }

    /// Reads a private key, which must not be open to others.
    pub fn read_private(path: &Path) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Read { path: path.to_owned(), source };
        private::check_private(path, &fs::metadata(path).map_err(failed)?)?;
        Self::read(path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes.0
    }

    /// Its certificates, at least one.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.bytes()).collect();
        let certificates = certificates.map_err(|error| TlsError::invalid(&self.path, &error))?;
        match certificates.is_empty() {
            true => Err(self.missing("certificate")),
            false => Ok(certificates),
        }
    }

    pub fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.bytes()).map_err(|_| self.missing("private key"))
    }

    /// Its revocation lists, at least one.
    pub fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(self.bytes()).collect();
        let lists = lists.map_err(|error| TlsError::invalid(&self.path, &error))?;
        if lists.is_empty() { Err(self.missing("revocation list (X509 CRL)")) } else { Ok(lists) }
    }

    /// Its certificates as trusted CA roots.
    pub fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| TlsError::invalid(&self.path, &error))?;
        }
        Ok(roots)
    }

    fn missing(&self, expected: &'static str) -> TlsError {
        TlsError::Missing { path: self.path.clone(), expected }
    }
}

/// The CA certificates that this system trusts.
pub fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 { Err(TlsError::NoSystemRoots) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        fs::write(&path, "a key").unwrap();
        let with_mode = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            PemFile::read_private(&path)
        };
        let refused = with_mode(0o644).unwrap_err().to_string();
        assert!(refused.contains("mode 644") && refused.contains("chmod 600"), "{refused}");
        for private in [0o600, 0o400, 0o440] {
            with_mode(private).unwrap();
        }
    }

    #[test]
    fn a_file_without_a_certificate_or_key_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        assert!(PemFile::read(&path).unwrap_err().to_string().contains("cannot read"));
        fs::write(&path, "secret words").unwrap();
        let file = PemFile::read(&path).unwrap();
        assert!(!format!("{file:?}").contains("secret"));
        for (error, expected) in [
            (file.certificates().unwrap_err(), "cert.pem holds no certificate in PEM format"),
            (file.key().unwrap_err(), "cert.pem holds no private key in PEM format"),
            (file.roots().unwrap_err(), "cert.pem holds no certificate"),
            (file.revocation_lists().unwrap_err(), "cert.pem holds no revocation list"),
        ] {
            assert!(error.to_string().contains(expected), "{error}");
        }
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(&path, nonsense).unwrap();
        let error = PemFile::read(&path).unwrap().roots().unwrap_err().to_string();
        assert!(error.contains("cannot be used"), "{error}");
    }
}
