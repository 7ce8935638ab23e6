//! Public keys of an issuer: a JSON Web Key Set (RFC 7517).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

/// Maximum number of keys in a set.
const MAX_KEYS: usize = 64;
/// Size in bytes of a P-256 coordinate and of an Ed25519 key.
const COORDINATE: usize = 32;
/// Tag of an uncompressed point.
const UNCOMPRESSED: u8 = 4;

/// The accepted algorithms. Algorithms without a key or with a shared secret are excluded, because anyone who
/// knows the public key could sign with those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Algorithm {
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    public: PublicKey,
}

#[derive(Debug, Clone)]
enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl PublicKey {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self {
            Self::Rsa { modulus, exponent } => RsaPublicKeyComponents { n: modulus, e: exponent }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
            Self::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Self::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
        };
        verified.is_ok()
    }
}

/// Why a signature is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyFault {
    /// The set has no such key, but a newer set may have it.
    Unknown,
    Mismatch,
}

/// The signing keys of an issuer.
#[derive(Debug, Clone, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
}

/// A key set, and a key in it, in serialized form.
#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a key set. Keys for other purposes or algorithms are skipped.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Document { keys } =
            serde_json::from_str(text).map_err(|error| format!("it is no JSON Web Key Set: {error}"))?;
        if keys.len() > MAX_KEYS {
            return Err(format!("it has {} keys, more than the maximum of {MAX_KEYS}", keys.len()));
        }
        let keys: Vec<Key> =
            keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).filter_map(read).collect();
        match keys.is_empty() {
            true => Err("it has no key for RS256, ES256 or EdDSA signatures".to_owned()),
            false => Ok(Self { keys }),
        }
    }

    /// Checks a signature with the key of this id or, without an id, with the only key of the algorithm.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), KeyFault> {
        let mut fitting = self
            .keys
            .iter()
            .filter(|key| key.public.algorithm() == algorithm && (id.is_none() || key.id.as_deref() == id));
        let (Some(key), None) = (fitting.next(), fitting.next()) else { return Err(KeyFault::Unknown) };
        if key.public.verify(message, signature) { Ok(()) } else { Err(KeyFault::Mismatch) }
    }
}

/// The key, if it is a signing key of an accepted algorithm.
fn read(jwk: Jwk) -> Option<Key> {
    if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
    let coordinate = |text: &Option<String>| bytes(text).filter(|bytes| bytes.len() == COORDINATE);
    let public = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => PublicKey::Rsa { modulus: bytes(&jwk.n)?, exponent: bytes(&jwk.e)? },
        ("EC", Some("P-256")) => {
            PublicKey::P256([vec![UNCOMPRESSED], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat())
        }
        ("OKP", Some("Ed25519")) => PublicKey::Ed25519(coordinate(&jwk.x)?),
        _ => return None,
    };
    let named = match public.algorithm() {
        Algorithm::Rs256 => "RS256",
        Algorithm::Es256 => "ES256",
        Algorithm::EdDsa => "EdDSA",
    };
    let fits = jwk.alg.is_none_or(|alg| alg == named);
    fits.then_some(Key { id: jwk.kid, public })
}
