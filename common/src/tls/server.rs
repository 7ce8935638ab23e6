//! A server's TLS, whose certificates are reloaded when their files change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

use super::{PemFile, TlsError};

/// Interval at which the files are compared with their last read content.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// The PEM files of a server's TLS.
#[derive(Debug, Clone)]
pub struct ServerTlsFiles {
    /// The server's certificate, followed by those of intermediate CAs.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// CA certificates, one of which must have signed the certificate of every client, agent and rank
    /// (mTLS).
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of these CAs, with unexpired client certificates to refuse.
    pub client_crl: Option<PathBuf>,
}

/// The current TLS configuration. Cheap to clone; clones see the same renewals.
#[derive(Debug, Clone)]
pub struct ServerTls {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: ServerTlsFiles,
    current: watch::Sender<Arc<Settings>>,
}

/// Contents of the files.
#[derive(Debug)]
struct Settings {
    config: Arc<ServerConfig>,
    /// Verifies clients' certificates, if there is a client CA.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Contents {
    certificate: PemFile,
    key: PemFile,
    client_ca: Option<PemFile>,
    client_crl: Option<PemFile>,
}

impl ServerTls {
    /// Reads the files, and from then on watches them until `stop`: new connections use new certificates, and
    /// open ones continue as long as their clients' certificates are accepted. Files that cannot be used are
    /// logged, and the last good ones stay in use. Must be called within a tokio runtime.
    pub fn start(files: ServerTlsFiles, stop: CancellationToken) -> Result<Self, TlsError> {
        let contents = Contents::read(&files)?;
        let current = watch::Sender::new(Arc::new(contents.settings()?));
        let tls = Self { shared: Arc::new(Shared { files, current }) };
        tokio::spawn(stop.run_until_cancelled_owned(tls.clone().watch(contents)));
        Ok(tls)
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.shared.current.borrow().config))
    }

    /// Checks again a certificate chain that a handshake has verified, the client's certificate first.
    pub fn check_client(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let settings = Arc::clone(&self.shared.current.borrow());
        let (Some(clients), Some((own, intermediates))) = (&settings.clients, chain.split_first()) else {
            return Err("no certificates are accepted any more".to_owned());
        };
        let verified = clients.verify_client_cert(own, intermediates, UnixTime::now());
        verified.map(drop).map_err(|error| error.to_string())
    }

    /// Notified of each change of the files, after which a certificate may be refused.
    pub fn changes(&self) -> Changes {
        Changes(self.shared.current.subscribe())
    }

    async fn watch(self, mut last: Contents) {
        let mut last_error = String::new();
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let files = self.shared.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || Contents::read(&files)).await else { return };
            let reloaded = match read {
                Ok(contents) if contents == last => continue,
                Ok(contents) => contents.settings().map(|settings| (contents, settings)),
                Err(error) => Err(error),
            };
            match reloaded {
                Ok((contents, settings)) => {
                    self.shared.current.send_replace(Arc::new(settings));
                    (last, last_error) = (contents, String::new());
                    tracing::info!("reloaded the TLS certificates");
                }
                // A renewal may replace one file after the other: the next check sees both.
                Err(error) if error.to_string() == last_error => {}
                Err(error) => {
                    last_error = error.to_string();
                    tracing::error!(%error, "cannot reload the TLS certificates; keeping the last ones");
                }
            }
        }
    }
}

/// Changes of the TLS files.
#[derive(Debug, Clone)]
pub struct Changes(watch::Receiver<Arc<Settings>>);

impl Changes {
    /// Completes after the next change.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// True if there was a change since the last time.
    pub fn take(&mut self) -> bool {
        let changed = self.0.has_changed().unwrap_or_default();
        self.0.mark_unchanged();
        changed
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
    fn settings(&self) -> Result<Settings, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let invalid = |error: rustls::Error| TlsError::invalid(self.certificate.path(), &error);
        let clients = self.clients(&provider)?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(invalid)?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
            None => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_single_cert(self.certificate.certificates()?, self.key.key()?).map_err(invalid)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Settings { config: Arc::new(config), clients })
    }

    fn clients(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let Some(ca) = &self.client_ca else { return Ok(None) };
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()?), Arc::clone(provider));
        let verifier = match &self.client_crl {
            // Refuses certificates of CAs for which there is no list.
            Some(crl) => verifier.with_crls(crl.revocation_lists()?).only_check_end_entity_revocation(),
            None => verifier,
        };
        // Probes have no certificate. `rpc::auth` refuses what they may not reach.
        let verifier = verifier.allow_unauthenticated().build();
        verifier.map(Some).map_err(|error| TlsError::invalid(ca.path(), &error))
    }
}
