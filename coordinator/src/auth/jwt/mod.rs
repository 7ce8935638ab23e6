//! JSON Web Tokens of an OIDC issuer (RFC 7519, OpenID Connect Core 3.1.3.7).

mod claims;
mod keys;
mod remote;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use self::keys::{Algorithm, KeyFault, KeySet};
use self::remote::RemoteKeys;
use super::principal::Principal;
use super::watched::{Changes, ConfigError, RELOAD_INTERVAL, Reading, Secrecy, Watched};

/// Which tokens are accepted, and how their claims are interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtConfig {
    /// The claim `iss` of every token.
    pub issuer: String,
    /// Must be in the claim `aud`.
    pub audience: String,
    pub keys: KeySource,
    /// CA certificates (PEM) that the certificate of the key server must be signed by. Default: the
    /// system's.
    pub keys_ca: Option<PathBuf>,
    /// The claims that hold name, tenant and role; the path to a nested claim has dots.
    pub name_claim: String,
    pub tenant_claim: String,
    pub role_claim: String,
}

/// Location of the issuer's keys, a JSON Web Key Set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// Reread when it changes.
    File(PathBuf),
    /// Fetched again every hour, and when a token names an unknown key.
    Url(String),
}

impl std::str::FromStr for KeySource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, _)) = text.split_once("://") else { return Ok(Self::File(text.into())) };
        let url = url::Url::parse(text).map_err(|error| error.to_string())?;
        let is_near = match url.host() {
            Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match scheme {
            "https" => Ok(Self::Url(text.to_owned())),
            "http" if is_near => Ok(Self::Url(text.to_owned())),
            _ => Err("keys are fetched by https:// only, or from this machine; or give a file".to_owned()),
        }
    }
}

#[derive(Debug)]
enum Keys {
    File(Watched<KeySet>),
    Remote(RemoteKeys),
}

/// Verifies tokens.
#[derive(Debug)]
pub(super) struct Verifier {
    config: JwtConfig,
    keys: Keys,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood; none is supported.
    crit: Option<Value>,
}

/// The parts of a token.
struct Parts<'a> {
    algorithm: Algorithm,
    key: Option<String>,
    /// Signed bytes: header and claims as received.
    message: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// True if a token has the form of a JWT; other tokens belong to the token file.
pub(super) fn is_jwt(token: &str) -> bool {
    token.starts_with("eyJ") && token.matches('.').count() == 2
}

impl Verifier {
    /// Must be called within a tokio runtime. Keys behind a URL are fetched when a token needs them.
    pub(super) fn start(
        config: &JwtConfig,
        changes: &Changes,
        stop: &CancellationToken,
    ) -> Result<Self, ConfigError> {
        let keys = match (&config.keys, &config.keys_ca) {
            (KeySource::File(_), Some(ca)) => {
                let reason = "it is for keys behind a URL, and --jwks names a file".to_owned();
                return Err(ConfigError::Invalid { path: ca.clone(), reason });
            }
            (KeySource::File(path), None) => {
                let (path, parse) = (path.clone(), KeySet::parse as fn(&str) -> _);
                let reading = Reading { path, secrecy: Secrecy::Public, parse, interval: RELOAD_INTERVAL };
                Keys::File(Watched::start(reading, changes.clone(), stop.clone())?)
            }
            (KeySource::Url(url), ca) => Keys::Remote(RemoteKeys::new(url, ca.as_deref())?),
        };
        Ok(Self { config: config.clone(), keys })
    }

    /// The principal of a token, or the reason why it is not accepted.
    pub(super) async fn verify(&self, token: &str, now: SystemTime) -> Result<Principal, String> {
        let parts = take_apart(token)?;
        let keys = match &self.keys {
            Keys::File(keys) => keys.current(),
            Keys::Remote(keys) => keys.current().await,
        };
        let verified = match (parts.check(&keys), &self.keys) {
            (Err(KeyFault::Unknown), Keys::Remote(remote)) => parts.check(&remote.newer(&keys).await),
            (verified, _) => verified,
        };
        verified.map_err(|fault| match fault {
            KeyFault::Unknown => "its issuer has no such key (kid)".to_owned(),
            KeyFault::Mismatch => "its signature does not match".to_owned(),
        })?;
        let claims: Map<String, Value> =
            serde_json::from_slice(&parts.payload).map_err(|_| "its claims are no JSON object".to_owned())?;
        claims::principal(&claims, &self.config, now)
    }
}

impl Parts<'_> {
    fn check(&self, keys: &Arc<KeySet>) -> Result<(), KeyFault> {
        keys.verify(self.algorithm, self.key.as_deref(), self.message.as_bytes(), &self.signature)
    }
}

fn take_apart(token: &str) -> Result<Parts<'_>, String> {
    let malformed = || "it is no JWT of three parts".to_owned();
    let (message, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
    let (header, payload) = message.split_once('.').ok_or_else(malformed)?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed());
    let Header { alg, kid, crit } = serde_json::from_slice(&decode(header)?).map_err(|_| malformed())?;
    if crit.is_some() {
        return Err("it needs extensions that are not known here (crit)".to_owned());
    }
    let algorithm = serde_json::from_value(Value::String(alg))
        .map_err(|_| "its algorithm is not accepted (alg); expected RS256, ES256 or EdDSA".to_owned())?;
    let (payload, signature) = (decode(payload)?, decode(signature)?);
    Ok(Parts { algorithm, key: kid, message, payload, signature })
}

#[cfg(test)]
impl Verifier {
    async fn rewind_fetch(&self) {
        if let Keys::Remote(keys) = &self.keys {
            keys.rewind().await;
        }
    }
}
