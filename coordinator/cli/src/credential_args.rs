//! Command line arguments for the credentials of servers and clients: certificates, tokens and their files.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use foil_common::tls::ServerTlsFiles;
use foil_coordinator::audit::AuditFile;
use foil_coordinator::auth::{AuthConfig, JwtConfig, KeySource};

use super::duration::{self, Interval};

/// Environment variables of [`ServerTlsArgs`] and [`AuthArgs`].
pub(crate) const SERVER_VARIABLES: [&str; 5] = [
    "FOIL_SERVER_TLS_CERT",
    "FOIL_SERVER_TLS_KEY",
    "FOIL_SERVER_TLS_CLIENT_CA",
    "FOIL_SERVER_TOKEN_FILE",
    "FOIL_SERVER_TLS_CRL",
];
/// Environment variables of [`CredentialArgs`].
pub(crate) const CLIENT_VARIABLES: [&str; 4] =
    ["FOIL_TLS_CA", "FOIL_TLS_CERT", "FOIL_TLS_KEY", "FOIL_TOKEN_FILE"];

#[derive(Debug, Args)]
pub(crate) struct ServerTlsArgs {
    /// Serve TLS with this certificate (PEM, followed by those of intermediate CAs). Reloaded when the file
    /// changes.
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[0], requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[1], requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authenticate clients and agents by certificates that one of these CAs has signed (mTLS): the
    /// subject's CN is the name, O the tenant (default: default), and one OU the role: viewer,
    /// submitter, operator, admin or agent. Required from everyone without a token; only /healthz and
    /// /readyz answer without either.
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[2], requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Refuse client certificates that these lists revoke (PEM, one list for each CA that signs client
    /// certificates). Reloaded when the file changes.
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[4], requires = "tls_client_ca")]
    tls_crl: Option<PathBuf>,
}

impl ServerTlsArgs {
    pub(crate) fn files(&self) -> Option<ServerTlsFiles> {
        let (certificate, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        let (client_ca, client_crl) = (self.tls_client_ca.clone(), self.tls_crl.clone());
        Some(ServerTlsFiles { certificate, key, client_ca, client_crl })
    }
}

#[derive(Debug, Args)]
pub(crate) struct AuthArgs {
    /// Authenticate clients and agents by bearer tokens. The file has one per line: NAME TENANT ROLE
    /// blake3:HASH [expires=DATE], as `foil token create` prints it. Reloaded when the file changes.
    #[arg(long, value_name = "FILE", env = SERVER_VARIABLES[3])]
    token_file: Option<PathBuf>,
    /// Authenticate clients by JSON Web Tokens of this OIDC issuer (the claim iss). They have the claims
    /// sub, tenant and role, or those named below, and are sent like other tokens.
    #[arg(long, value_name = "URL", requires_all = ["jwt_audience", "jwks"])]
    jwt_issuer: Option<String>,
    /// Audience that the claim aud of these tokens must contain.
    #[arg(long, value_name = "NAME", requires = "jwt_issuer")]
    jwt_audience: Option<String>,
    /// The issuer's public keys for RS256, ES256 or EdDSA, as a JSON Web Key Set: a file, reloaded when it
    /// changes, or an https:// URL, fetched every hour and when a token names an unknown key.
    #[arg(long, value_name = "FILE-or-URL", requires = "jwt_issuer", value_parser = str::parse::<KeySource>)]
    jwks: Option<KeySource>,
    /// CA certificates (PEM) for an https:// URL of --jwks, reloaded at each fetch. Default: those that this
    /// system trusts
    #[arg(long, value_name = "FILE", requires = "jwks")]
    jwks_ca: Option<PathBuf>,
    /// Claim that holds the principal's name.
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    jwt_name_claim: String,
    /// Claim that holds its tenant. Dots select a nested claim.
    #[arg(long, value_name = "CLAIM", default_value = "tenant")]
    jwt_tenant_claim: String,
    /// Claim that holds its role: a string, or a list of groups that includes one role.
    #[arg(long, value_name = "CLAIM", default_value = "role")]
    jwt_role_claim: String,
    /// Append a JSON line to this file for each call that changes something or is refused; "-" is standard
    /// output. With authentication, the store also keeps these lines, under audit/.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Time for which the store keeps these lines, such as 365d, or off to keep them forever. The leader
    /// deletes whole days, never the current one.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration::interval)]
    audit_retention: Interval,
}

impl AuthArgs {
    pub(crate) fn audit_file(&self) -> Option<AuditFile> {
        let path = self.audit_log.clone()?;
        Some(if path.as_os_str() == "-" { AuditFile::Standard } else { AuditFile::Path(path) })
    }

    pub(crate) fn audit_retention(&self) -> Option<Duration> {
        self.audit_retention.0
    }

    /// The authentication of a coordinator with these TLS files.
    pub(crate) fn config(&self, tls: Option<&ServerTlsFiles>) -> AuthConfig {
        let certificates = tls.is_some_and(|files| files.client_ca.is_some());
        AuthConfig { token_file: self.token_file.clone(), jwt: self.jwt(), certificates }
    }

    fn jwt(&self) -> Option<JwtConfig> {
        Some(JwtConfig {
            issuer: self.jwt_issuer.clone()?,
            audience: self.jwt_audience.clone()?,
            keys: self.jwks.clone()?,
            keys_ca: self.jwks_ca.clone(),
            name_claim: self.jwt_name_claim.clone(),
            tenant_claim: self.jwt_tenant_claim.clone(),
            role_claim: self.jwt_role_claim.clone(),
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct CredentialArgs {
    /// CA certificates (PEM) for https:// coordinators. Default: those that this system trusts
    #[arg(long, value_name = "FILE", env = CLIENT_VARIABLES[0])]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate of this client (PEM), for a coordinator that requires one (mTLS).
    #[arg(long, value_name = "FILE", env = CLIENT_VARIABLES[1], requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", env = CLIENT_VARIABLES[2], requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// File that holds your token, for a coordinator that authenticates users by tokens. Reloaded when it
    /// changes, and sent only over TLS or to this machine.
    #[arg(long, value_name = "FILE", env = CLIENT_VARIABLES[3])]
    pub(crate) token_file: Option<PathBuf>,
}
