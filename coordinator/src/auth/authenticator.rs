//! Authentication: maps a caller's credentials to its principal.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificate::Subject;
use super::jwt::{JwtConfig, Verifier, is_jwt};
use super::principal::Principal;
use super::token_file::{TokenFault, TokenTable};
use super::watched::{Changes, ConfigError, RELOAD_INTERVAL, Reading, Secrecy, Watched};

/// Size limit of a presented token; headers have their own limit.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// How callers prove their identity.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// File with the hashes of the tokens.
    pub token_file: Option<PathBuf>,
    /// Accept JSON Web Tokens.
    pub jwt: Option<JwtConfig>,
    /// Accept client certificates that name a principal; the TLS handshake verifies them.
    pub certificates: bool,
}

impl AuthConfig {
    /// True if callers have any way to prove their identity.
    pub fn is_given(&self) -> bool {
        self.token_file.is_some() || self.jwt.is_some() || self.certificates
    }
}

/// Credentials that a caller presents.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// Value of the header `authorization`.
    pub authorization: Option<&'a str>,
    /// Subject of its verified certificate.
    pub certificate: Option<&'a Subject>,
}

/// Why a caller is not authenticated. The messages are for the caller and reveal no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Missing(&'static str),
    #[error(
        "the client certificate names no principal: {0}; give one that does, or a token with --token-file"
    )]
    Certificate(String),
    #[error("the token is not valid: {0}")]
    Token(String),
    #[error(
        "the client certificate is not accepted: {0}; ask the coordinator's administrator for another, and give it with --tls-cert and --tls-key"
    )]
    Revoked(String),
    /// The same proof has come to name another principal during the call.
    #[error("the credentials now belong to another principal; repeat the call")]
    Changed,
}

impl Refusal {
    /// Reason of the status' `ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "CREDENTIALS_MISSING",
            Self::Certificate(_) | Self::Token(_) | Self::Revoked(_) | Self::Changed => "CREDENTIALS_INVALID",
        }
    }
}

/// Authenticates callers. Cheap to clone; clones see the same changes of the files.
#[derive(Debug, Clone)]
pub struct Authenticator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tokens: Option<Watched<TokenTable>>,
    jwt: Option<Verifier>,
    certificates: bool,
    changes: Changes,
}

impl Authenticator {
    /// Reads the files and watches them until `stop`. Must be called within a tokio runtime.
    pub fn start(config: &AuthConfig, stop: &CancellationToken) -> Result<Self, ConfigError> {
        let changes = Changes::default();
        let tokens = config.token_file.clone().map(|path| {
            let parse = |text: &str| TokenTable::parse(text).map_err(|problem| problem.to_string());
            Watched::start(
                Reading { path, secrecy: Secrecy::Private, parse, interval: RELOAD_INTERVAL },
                changes.clone(),
                stop.clone(),
            )
        });
        let tokens = tokens.transpose()?;
        if tokens.as_ref().is_some_and(|tokens| tokens.current().is_empty()) {
            tracing::warn!("the token file holds no token yet; `foil token create` prints a line for it");
        }
        let jwt = config.jwt.as_ref().map(|jwt| Verifier::start(jwt, &changes, stop)).transpose()?;
        Ok(Self { shared: Arc::new(Shared { tokens, jwt, certificates: config.certificates, changes }) })
    }

    /// Notified of each change of the files, after which a principal may be invalid.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changes.subscribe()
    }

    /// The principal of a caller. A token takes precedence over a certificate, which may belong to a machine
    /// with many users; a wrong token is refused regardless of the certificate.
    pub async fn authenticate(&self, evidence: Evidence<'_>, now: SystemTime) -> Result<Principal, Refusal> {
        match (evidence.authorization, evidence.certificate) {
            (Some(header), _) => self.bearer(header, now).await,
            (None, Some(subject)) if self.shared.certificates => {
                let principal = subject.principal().map_err(Refusal::Certificate)?;
                match principal.expires {
                    Some(expires) if now >= expires => Err(Refusal::Revoked("it has expired".to_owned())),
                    _ => Ok(principal),
                }
            }
            (None, _) => Err(Refusal::Missing(self.wanted())),
        }
    }

    async fn bearer(&self, header: &str, now: SystemTime) -> Result<Principal, Refusal> {
        let wrong = |problem: &str| Refusal::Token(problem.to_owned());
        let token = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(wrong("the header authorization must be \"Bearer TOKEN\"")),
        };
        if token.len() > MAX_TOKEN_BYTES {
            return Err(wrong("it is too long"));
        }
        if let Some(jwt) = self.shared.jwt.as_ref().filter(|_| is_jwt(token)) {
            return jwt.verify(token, now).await.map_err(|problem| wrong(&problem));
        }
        let Some(tokens) = &self.shared.tokens else {
            let taken = if self.shared.jwt.is_some() { "a JWT of its issuer" } else { "none" };
            return Err(wrong(&format!("this coordinator takes {taken}")));
        };
        tokens.current().find(token, now).cloned().map_err(|fault| match fault {
            TokenFault::Unknown => wrong("this coordinator does not know it; ask its administrator for one"),
            TokenFault::Expired => wrong("it has expired; ask the coordinator's administrator for a new one"),
        })
    }

    fn wanted(&self) -> &'static str {
        match (self.shared.tokens.is_some() || self.shared.jwt.is_some(), self.shared.certificates) {
            (false, true) => {
                "this coordinator requires a client certificate: give one that its client CA has signed with --tls-cert and --tls-key"
            }
            (true, true) => {
                "this coordinator requires a token, or a client certificate that its client CA has signed: name the file of a token \
                 with --token-file (FOIL_TOKEN_FILE), or give --tls-cert and --tls-key"
            }
            (true | false, false) => {
                "this coordinator requires a token: name the file that holds yours with --token-file (FOIL_TOKEN_FILE)"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::auth::token::Token;
    use crate::auth::{Role, Source, entry_line};
    use crate::tenant::Tenant;

    struct Fixture {
        _directory: tempfile::TempDir,
        token: String,
        authenticator: Authenticator,
    }

    fn fixture(with_tokens: bool, certificates: bool) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let token = Token::generate(&mut StdRng::seed_from_u64(3)).unwrap();
        fs::write(&path, entry_line("ada", &Tenant::default(), Role::Viewer, &token, None)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let config = AuthConfig { token_file: with_tokens.then_some(path), jwt: None, certificates };
        let authenticator = Authenticator::start(&config, &CancellationToken::new()).unwrap();
        Fixture { _directory: directory, token: token.reveal().to_owned(), authenticator }
    }

    fn bob() -> Subject {
        Subject { common_name: "bob".into(), units: vec!["operator".into()], ..Subject::default() }
    }

    #[tokio::test]
    async fn a_token_counts_before_a_certificate_and_a_wrong_one_is_never_overlooked() {
        let Fixture { token, authenticator, _directory } = fixture(true, true);
        let (bob, machine) = (bob(), Subject { common_name: "host".into(), ..Subject::default() });
        let ask = async |authorization: Option<&str>, certificate| {
            authenticator.authenticate(Evidence { authorization, certificate }, SystemTime::UNIX_EPOCH).await
        };
        let bearer = format!("Bearer {token}");
        for certificate in [None, Some(&bob), Some(&machine)] {
            let ada = ask(Some(&bearer), certificate).await.unwrap();
            assert_eq!((ada.name.as_str(), ada.role, ada.source), ("ada", Role::Viewer, Source::Token));
        }
        assert_eq!(ask(None, Some(&bob)).await.unwrap().name, "bob");
        assert_eq!(ask(Some(&format!("bearer  {token}")), None).await.unwrap().name, "ada");
        assert!(matches!(ask(None, Some(&machine)).await, Err(Refusal::Certificate(_))));
        assert!(matches!(ask(None, None).await, Err(Refusal::Missing(_))));
        let long = format!("Bearer {}", "a".repeat(9000));
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer x", &token, &format!("Basic {token}"), &bearer[..40], &long]
        {
            assert!(matches!(ask(Some(wrong), Some(&bob)).await, Err(Refusal::Token(_))), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_refusal_asks_for_what_the_coordinator_takes() {
        for (tokens, certificates, wanted) in [
            (true, false, &["--token-file"][..]),
            (false, true, &["requires a client certificate", "--tls-cert"]),
            (true, true, &["--token-file", "--tls-cert"]),
        ] {
            let fixture = fixture(tokens, certificates);
            let ask = async |evidence: Evidence<'_>| {
                fixture.authenticator.authenticate(evidence, SystemTime::UNIX_EPOCH).await
            };
            let told = ask(Evidence::default()).await.unwrap_err().to_string();
            assert!(wanted.iter().all(|part| told.contains(part)), "{told}");
            let bearer = format!("Bearer {}", fixture.token);
            let authorization = Some(bearer.as_str());
            assert_eq!(ask(Evidence { authorization, certificate: None }).await.is_ok(), tokens);
            let subject = bob();
            assert_eq!(
                ask(Evidence { authorization: None, certificate: Some(&subject) }).await.is_ok(),
                certificates
            );
        }
    }
}
