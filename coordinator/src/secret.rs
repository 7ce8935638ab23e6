//! Secrets of rank processes: the coordinator gives each process that it starts a secret, and accepts a peer
//! as that process if it presents the secret.
//!
//! A secret is derived from the coordinator process's key and the session, so nothing here is random. The log
//! keeps only its fingerprint: a later leader can verify the process, and a reader of the store cannot
//! impersonate it.

use std::fmt;

/// Derives secrets from a key.
#[derive(Clone)]
pub struct SecretIssuer([u8; blake3::KEY_LEN]);

impl SecretIssuer {
    pub fn new(key: [u8; blake3::KEY_LEN]) -> Self {
        Self(key)
    }

    /// The secret of a session; sessions are never reused.
    pub fn secret(&self, session: &str) -> String {
        blake3::keyed_hash(&self.0, session.as_bytes()).to_hex().to_string()
    }
}

impl fmt::Debug for SecretIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretIssuer(…)")
    }
}

/// Fingerprint of a secret, safe to store.
pub fn fingerprint(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// True if the fingerprint belongs to the secret. Runs in constant time; false without a fingerprint.
pub fn verify(secret: &str, fingerprint: &str) -> bool {
    // Hashes are compared in constant time.
    blake3::Hash::from_hex(fingerprint).is_ok_and(|known| known == blake3::hash(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_belongs_to_one_session_and_can_be_verified() {
        let issuer = SecretIssuer::new([7; 32]);
        let (secret, other) = (issuer.secret("s1"), issuer.secret("s2"));
        assert_ne!(secret, other);
        assert_ne!(secret, SecretIssuer::new([8; 32]).secret("s1"));
        let known = fingerprint(&secret);
        assert!(verify(&secret, &known) && !known.contains(&secret));
        for wrong in [other.as_str(), "", &secret[1..]] {
            assert!(!verify(wrong, &known), "{wrong:?}");
        }
        assert!(!verify("", "") && !verify(&secret, ""), "a log of an older version has none");
        assert_eq!(format!("{issuer:?}"), "SecretIssuer(…)");
    }
}
