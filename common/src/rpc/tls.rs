//! TLS of connections to a coordinator.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::CertificateError::{
    Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
    UnknownIssuer,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, Error as Rustls, RootCertStore};
use tonic::transport::{ClientTlsConfig, Identity};

use crate::tls::{PemFile, TlsError, system_roots};

/// The other side ended the connection with a TLS alert.
pub(super) const REJECTED: &str = "it rejected the TLS handshake, most likely for this client's certificate: give one that is valid and \
                                   that its client CA has signed with --tls-cert and --tls-key";
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The files for connections to `https://` addresses. They are read again whenever a broken connection is replaced, so that
/// certificates can be renewed while a process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// CA certificates, one of which must have signed the coordinator's. Default: the system's.
    pub ca: Option<PathBuf>,
    /// Certificate chain and private key of this client, for a coordinator that requires a certificate
    /// (mTLS).
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// The configuration for a gRPC server at `host`.
    pub(crate) fn config(&self, host: &str) -> Result<ClientTlsConfig, TlsError> {
        let config = ClientTlsConfig::new()
            // An IPv6 address has brackets in a URL, but not in a certificate.
            .domain_name(host.trim_matches(['[', ']']))
            .trust_anchors(self.roots()?.roots)
            .timeout(HANDSHAKE_TIMEOUT);
        let Some((certificate, key)) = self.identity()? else { return Ok(config) };
        Ok(config.identity(Identity::from_pem(certificate.bytes(), key.bytes())))
    }

    /// The configuration for servers that speak HTTP.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let roots = self.roots()?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = self.identity()? else { return Ok(builder.with_no_client_auth()) };
        let chain = certificate.certificates()?;
        builder
            .with_client_auth_cert(chain, key.key()?)
            .map_err(|error| TlsError::invalid(certificate.path(), &error))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        match &self.ca {
            Some(ca) => PemFile::read(ca)?.roots(),
            None => system_roots(),
        }
    }

    /// The contents of this client's certificate and key files, checked for usability.
    fn identity(&self) -> Result<Option<(PemFile, PemFile)>, TlsError> {
        let Some((certificate, key)) = &self.identity else { return Ok(None) };
        let (certificate, key) = (PemFile::read(certificate)?, PemFile::read_private(key)?);
        certificate.certificates()?;
        key.key()?;
        Ok(Some((certificate, key)))
    }

    /// The command line options that give another process these files.
    pub fn arguments(&self) -> Vec<(&'static str, PathBuf)> {
        let mut arguments: Vec<_> = self.ca.iter().map(|ca| ("--tls-ca", ca.clone())).collect();
        if let Some((certificate, key)) = &self.identity {
            arguments.extend([("--tls-cert", certificate.clone()), ("--tls-key", key.clone())]);
        }
        arguments
    }
}

/// Why a TLS handshake failed, with advice; `None` if `cause` is another error.
pub(super) fn handshake_advice(cause: &(dyn Error + 'static)) -> Option<String> {
    let error = cause.downcast_ref::<Rustls>().or_else(|| {
        let io = cause.downcast_ref::<io::Error>()?;
        io.get_ref()?.downcast_ref::<Rustls>()
    })?;
    Some(match error {
        Rustls::InvalidCertificate(UnknownIssuer) => {
            "its certificate was signed by a CA that is not trusted here; name the coordinator's CA with --tls-ca".to_owned()
        }
        Rustls::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            "its certificate has expired; renew it (and check this machine's clock)".to_owned()
        }
        Rustls::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            "its certificate is not valid yet; check the clocks of both machines".to_owned()
        }
        Rustls::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is for another host; use a host name that the certificate holds".to_owned()
        }
        Rustls::InvalidMessage(_) => {
            "what answers there does not speak TLS; use http://, or start it with --tls-cert and --tls-key".to_owned()
        }
        Rustls::AlertReceived(_) => REJECTED.to_owned(),
        other => format!("the TLS handshake failed: {other}"),
    })
}
