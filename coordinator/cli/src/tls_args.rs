//! Command line arguments of TLS.

use std::path::PathBuf;

use clap::Args;
use foil_common::rpc::TlsFiles;
use foil_coordinator::tls::ServerTlsFiles;

/// Environment variables of [`ServerTlsArgs`].
pub(crate) const SERVER_VARIABLES: [&str; 3] =
    ["FOIL_SERVER_TLS_CERT", "FOIL_SERVER_TLS_KEY", "FOIL_SERVER_TLS_CLIENT_CA"];

#[derive(Debug, Args)]
pub(crate) struct ServerTlsArgs {
    /// Serve TLS with this certificate (PEM, followed by those of intermediate CAs). It is read again when
    /// the file changes.
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[0], requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[1], requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Require clients, agents and ranks to show a certificate that one of these CAs has signed (mTLS). Only
    /// /healthz and /readyz answer without.
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[2], requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

impl ServerTlsArgs {
    pub(crate) fn files(&self) -> Option<ServerTlsFiles> {
        let (certificate, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        Some(ServerTlsFiles { certificate, key, client_ca: self.tls_client_ca.clone() })
    }
}

#[derive(Debug, Args)]
pub(crate) struct ClientTlsArgs {
    /// CA certificates (PEM) for https:// coordinators. Default: those that this system trusts
    #[arg(long, value_name = "FILE", env = "FOIL_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Certificate of this client (PEM), for a coordinator that requires one (mTLS).
    #[arg(long, value_name = "FILE", env = "FOIL_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", env = "FOIL_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl ClientTlsArgs {
    pub(crate) fn files(&self) -> TlsFiles {
        TlsFiles { ca: self.tls_ca.clone(), identity: self.tls_cert.clone().zip(self.tls_key.clone()) }
    }
}
