//! The coordinator's TLS: certificates that are read again when their files change.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use foil_common::tls::{PemFile, TlsError};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

/// Interval at which the files are compared with what was read of them.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// The PEM files of the coordinator's TLS.
#[derive(Debug, Clone)]
pub struct ServerTlsFiles {
    /// The coordinator's certificate, followed by those of intermediate CAs.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// CA certificates, one of which must have signed the certificate of every client, agent and rank
    /// (mTLS).
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of these CAs: the certificates of clients that are refused though they have not
    /// expired.
    pub client_crl: Option<PathBuf>,
}

/// The present configuration of TLS. Cheap to clone; clones see the same renewals.
#[derive(Debug, Clone)]
pub struct ServerTls {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: ServerTlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Contents {
    certificate: PemFile,
    key: PemFile,
    client_ca: Option<PemFile>,
    client_crl: Option<PemFile>,
}

impl ServerTls {
    /// Reads the files, and from then on watches them until `stop`: new connections use new certificates,
    /// open ones go on. Files that cannot be used are logged, and the last good ones stay in use. Must be
    /// called within a tokio runtime.
    pub fn start(files: ServerTlsFiles, stop: CancellationToken) -> Result<Self, TlsError> {
        let contents = Contents::read(&files)?;
        let config = RwLock::new(contents.config()?);
        let tls = Self { shared: Arc::new(Shared { files, config }) };
        tokio::spawn(stop.run_until_cancelled_owned(tls.clone().watch(contents)));
        Ok(tls)
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        // The value is replaced as a whole, so a panic elsewhere cannot leave it inconsistent.
        TlsAcceptor::from(Arc::clone(&self.shared.config.read().unwrap_or_else(PoisonError::into_inner)))
    }

    async fn watch(self, mut last: Contents) {
        let mut last_error = String::new();
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let files = self.shared.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || Contents::read(&files)).await else { return };
            let reloaded = match read {
                Ok(contents) if contents == last => continue,
                Ok(contents) => contents.config().map(|config| (contents, config)),
                Err(error) => Err(error),
            };
            match reloaded {
                Ok((contents, config)) => {
                    *self.shared.config.write().unwrap_or_else(PoisonError::into_inner) = config;
                    (last, last_error) = (contents, String::new());
                    tracing::info!("reloaded the TLS certificates");
                }
                // A renewal may replace one file after the other: the next look sees both.
                Err(error) if error.to_string() == last_error => {}
                Err(error) => {
                    last_error = error.to_string();
                    tracing::error!(%error, "cannot reload the TLS certificates; keeping the last ones");
                }
            }
        }
    }
}

impl Contents {
    fn read(files: &ServerTlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: PemFile::read(&files.certificate)?,
            key: PemFile::read_private(&files.key)?,
            client_ca: files.client_ca.as_deref().map(PemFile::read).transpose()?,
            client_crl: files.client_crl.as_deref().map(PemFile::read).transpose()?,
        })
    }

    /// TLS 1.2 and 1.3, for HTTP/2 (gRPC) and HTTP/1.1 (Prometheus and probes).
    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let invalid = |error: rustls::Error| TlsError::invalid(self.certificate.path(), &error);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(invalid)?;
        let builder = match &self.client_ca {
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()?), provider);
                let verifier = match &self.client_crl {
                    // Refuses certificates of CAs of which there is no list.
                    Some(crl) => {
                        verifier.with_crls(crl.revocation_lists()?).only_check_end_entity_revocation()
                    }
                    None => verifier,
                };
                let verifier = verifier
                    // Probes have no certificate. What they may not reach, `rpc::auth` refuses.
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| TlsError::invalid(ca.path(), &error))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_single_cert(self.certificate.certificates()?, self.key.key()?).map_err(invalid)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
