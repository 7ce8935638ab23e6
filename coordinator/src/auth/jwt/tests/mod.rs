mod remote;

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::KeyPair as _;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::json;

use super::claims::LEEWAY;
use super::*;
use crate::auth::{Role, Source};

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A private key of the issuer.
enum Signer {
    Rsa(aws_lc_rs::rsa::KeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    fn rsa() -> Self {
        Self::Rsa(aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    fn p256() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap())
    }

    fn ed25519() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    fn jwk(&self, id: &str) -> Value {
        let mut key = match self {
            Self::Rsa(pair) => {
                // SEQUENCE { INTEGER of 257 bytes, the first of them 0; INTEGER 65537 }.
                let der = pair.public_key().as_ref();
                let (modulus, exponent) = (&der[9..9 + 256], &der[der.len() - 3..]);
                json!({ "kty": "RSA", "n": base64(modulus), "e": base64(exponent) })
            }
            Self::P256(pair) => {
                let point = pair.public_key().as_ref();
                json!({ "kty": "EC", "crv": "P-256", "x": base64(&point[1..33]), "y": base64(&point[33..]) })
            }
            Self::Ed25519(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key()) })
            }
        };
        key["kid"] = id.into();
        key["use"] = "sig".into();
        key
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let random = aws_lc_rs::rand::SystemRandom::new();
                pair.sign(&aws_lc_rs::signature::RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::P256(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let signature = base64(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// A token with these claims, signed by the key of this id.
    fn issue(&self, id: &str, claims: &Value) -> String {
        self.token(&json!({ "alg": self.algorithm(), "kid": id, "typ": "JWT" }), claims)
    }
}

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example.com",
        "aud": ["foil", "other"],
        "sub": "ada@example.com",
        "exp": NOW + 600,
        "nbf": NOW,
        "tenant": "vision",
        "role": "submitter",
    })
}

fn config(keys: KeySource) -> JwtConfig {
    JwtConfig {
        issuer: "https://id.example.com".into(),
        audience: "foil".into(),
        keys,
        keys_ca: None,
        name_claim: "sub".into(),
        tenant_claim: "tenant".into(),
        role_claim: "role".into(),
    }
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

struct Fixture {
    _directory: tempfile::TempDir,
    verifier: Verifier,
}

impl Fixture {
    fn new(keys: &[Value]) -> Self {
        Self::configured(keys, |_| {})
    }

    fn configured(keys: &[Value], edit: impl FnOnce(&mut JwtConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        fs::write(&path, set(keys)).unwrap();
        let mut config = config(KeySource::File(path));
        edit(&mut config);
        Self {
            verifier: Verifier::start(&config, &Changes::default(), &CancellationToken::new()).unwrap(),
            _directory: directory,
        }
    }

    async fn verify(&self, token: &str) -> Result<Principal, String> {
        self.verifier.verify(token, now()).await
    }
}

#[tokio::test]
async fn a_token_of_each_algorithm_names_its_principal() {
    let signers = [Signer::rsa(), Signer::p256(), Signer::ed25519()];
    let jwks: Vec<Value> = (1..).zip(&signers).map(|(id, signer)| signer.jwk(&format!("k{id}"))).collect();
    let fixture = Fixture::new(&jwks);
    for (id, signer) in (1..).zip(&signers) {
        let token = signer.issue(&format!("k{id}"), &claims());
        assert!(is_jwt(&token));
        let ada = fixture.verify(&token).await.unwrap();
        let expected = Principal {
            name: "ada@example.com".into(),
            tenant: "vision".parse().unwrap(),
            role: Role::Submitter,
            source: Source::Jwt,
            expires: Some(UNIX_EPOCH + Duration::from_secs(NOW + 600)),
        };
        assert_eq!(ada, expected, "{}", signer.algorithm());
        // A flipped bit in the claims or in the signature.
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        let mut admin = claims();
        admin["role"] = "admin".into();
        let forged = format!("{header}.{}.{signature}", base64(admin.to_string()));
        assert!(fixture.verify(&forged).await.unwrap_err().contains("signature"), "{}", signer.algorithm());
        let mut broken = URL_SAFE_NO_PAD.decode(signature).unwrap();
        broken[7] ^= 1;
        let broken = format!("{message}.{}", base64(broken));
        assert!(fixture.verify(&broken).await.unwrap_err().contains("signature"));
    }
    // Without a key id, the only key of the algorithm is used.
    let unnamed = signers[1].token(&json!({ "alg": "ES256" }), &claims());
    fixture.verify(&unnamed).await.unwrap();
    let ambiguous = Fixture::new(&[signers[1].jwk("a"), Signer::p256().jwk("b")]);
    assert!(ambiguous.verify(&unnamed).await.unwrap_err().contains("no such key"));
}

#[tokio::test]
async fn other_algorithms_and_keys_are_refused() {
    let (ours, stranger) = (Signer::p256(), Signer::p256());
    let fixture = Fixture::new(&[ours.jwk("k1"), Signer::ed25519().jwk("k2")]);
    let none = format!("{}.{}.", base64(json!({ "alg": "none" }).to_string()), base64(claims().to_string()));
    let shared = ours.token(&json!({ "alg": "HS256", "kid": "k1" }), &claims());
    let lower = ours.token(&json!({ "alg": "es256", "kid": "k1" }), &claims());
    for token in [&none, &shared, &lower] {
        assert!(fixture.verify(token).await.unwrap_err().contains("algorithm is not accepted"), "{token}");
    }
    for (token, problem) in [
        (stranger.issue("k1", &claims()), "signature"),
        (ours.issue("k9", &claims()), "no such key"),
        // The key of one algorithm is not used for another.
        (ours.issue("k2", &claims()), "no such key"),
        (ours.token(&json!({ "alg": "ES256", "kid": "k1", "crit": ["x"] }), &claims()), "extensions"),
        (ours.token(&json!({ "kid": "k1" }), &claims()), "three parts"),
        (ours.token(&json!({ "alg": "ES256", "kid": "k1" }), &json!([1])), "no JSON object"),
        ("eyJ.a.b".to_owned(), "three parts"),
        (ours.issue("k1", &claims()) + "=", "three parts"),
    ] {
        let refused = fixture.verify(&token).await.unwrap_err();
        assert!(refused.contains(problem), "{token}: {refused}");
    }
}

#[tokio::test]
async fn each_claim_counts() {
    let signer = Signer::ed25519();
    let fixture = Fixture::new(&[signer.jwk("k")]);
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        match value.is_null() {
            true => drop(claims.as_object_mut().unwrap().shift_remove(name)),
            false => claims[name] = value,
        }
        signer.issue("k", &claims)
    };
    let leeway = LEEWAY.as_secs();
    for (name, value, problem) in [
        ("iss", json!("https://id.example.com/"), "(iss)"),
        ("iss", Value::Null, "(iss)"),
        ("aud", json!("foil2"), "(aud)"),
        ("aud", json!(["other"]), "(aud)"),
        ("aud", json!([]), "(aud)"),
        ("aud", Value::Null, "(aud)"),
        ("exp", json!(NOW - leeway), "expired"),
        ("exp", Value::Null, "no time of expiry"),
        ("exp", json!("soon"), "exp is no time"),
        ("exp", json!(-1), "exp is no time"),
        ("exp", json!(1e300), "exp is no time"),
        ("nbf", json!(NOW + leeway + 1), "not valid yet"),
        ("nbf", json!({}), "nbf is no time"),
        ("sub", Value::Null, "claim sub"),
        ("sub", json!("a\nb"), "control characters"),
        ("tenant", Value::Null, "claim tenant"),
        ("tenant", json!("Vision"), "cannot name a tenant"),
        ("role", Value::Null, "no claim role"),
        ("role", json!("root"), "has no role"),
        ("role", json!(["viewer", "admin"]), "several roles"),
    ] {
        let refused = fixture.verify(&with(name, value.clone())).await.unwrap_err();
        assert!(refused.contains(problem), "{name} {value}: {refused}");
    }
    for (name, value) in [
        ("aud", json!("foil")),
        ("exp", json!(NOW - leeway + 1)),
        ("exp", json!(NOW as f64 + 0.5)),
        ("nbf", json!(NOW + leeway)),
        ("nbf", Value::Null),
        ("role", json!(["staff", "submitter"])),
    ] {
        fixture
            .verify(&with(name, value.clone()))
            .await
            .unwrap_or_else(|told| panic!("{name} {value}: {told}"));
    }
}

#[tokio::test]
async fn claims_have_the_names_of_the_issuer() {
    let signer = Signer::ed25519();
    let fixture = Fixture::configured(&[signer.jwk("k")], |config| {
        config.name_claim = "preferred_username".into();
        config.tenant_claim = "https://foil.example.com/tenant".into();
        config.role_claim = "realm_access.roles".into();
    });
    let mut claims = claims();
    claims["preferred_username"] = "ada".into();
    claims["https://foil.example.com/tenant"] = "speech".into();
    claims["realm_access"] = json!({ "roles": ["offline_access", "operator"] });
    let ada = fixture.verify(&signer.issue("k", &claims)).await.unwrap();
    assert_eq!((ada.name.as_str(), ada.tenant.as_str(), ada.role), ("ada", "speech", Role::Operator));
}

#[test]
fn a_set_must_have_a_key_and_is_bounded() {
    let good = Signer::p256().jwk("k");
    let mut encryption = good.clone();
    encryption["use"] = "enc".into();
    let mut other = good.clone();
    other["alg"] = "ES384".into();
    let mut short = good.clone();
    short["x"] = "AAAA".into();
    let shared = json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "s" });
    for unusable in [&encryption, &other, &short, &shared, &json!({ "kty": 1 })] {
        let refused = KeySet::parse(&set(std::slice::from_ref(unusable))).unwrap_err();
        assert!(refused.contains("no key for RS256, ES256 or EdDSA"), "{unusable}: {refused}");
        KeySet::parse(&set(&[unusable.clone(), good.clone()])).unwrap();
    }
    assert!(KeySet::parse(&set(&vec![good; 65])).unwrap_err().contains("maximum of 64"));
    for text in ["", "{}", "[]", r#"{"keys":{}}"#] {
        assert!(KeySet::parse(text).unwrap_err().contains("no JSON Web Key Set"), "{text}");
    }
}

#[test]
fn keys_are_fetched_safely_or_read_from_a_file() {
    let parse = |text: &str| text.parse::<KeySource>();
    assert_eq!(parse("/etc/jwks.json"), Ok(KeySource::File("/etc/jwks.json".into())));
    for url in ["https://id.example.com/keys", "http://127.0.0.1:1/keys", "http://localhost:1/"] {
        assert_eq!(parse(url), Ok(KeySource::Url(url.into())));
    }
    for wrong in ["http://id.example.com/keys", "ftp://127.0.0.1/x", "https://"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
