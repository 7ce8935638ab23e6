//! Secrets of rank processes: the coordinator gives one to each process it starts, and believes a peer to be that process
//! if it knows the secret.
//!
//! A secret follows from the key of the coordinator process and the session, so that nothing here is random. The log keeps
//! its fingerprint alone: a later leader recognizes the process, and a reader of the store cannot speak for it.

use std::fmt;

/// Mints secrets.
#[derive(Clone)]
pub struct Mint([u8; blake3::KEY_LEN]);

impl Mint {
    pub fn new(key: [u8; blake3::KEY_LEN]) -> Self {
        Self(key)
    }

    /// The secret of a session, which is never used twice.
    pub fn secret(&self, session: &str) -> String {
        blake3::keyed_hash(&self.0, session.as_bytes()).to_hex().to_string()
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mint(…)")
    }
}

/// What may be kept of a secret.
pub fn fingerprint(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// Whether the fingerprint is that of the secret. Takes the same time whatever the secret is; false where there is no
/// fingerprint.
pub fn proves(secret: &str, fingerprint: &str) -> bool {
    // Hashes are compared in constant time.
    blake3::Hash::from_hex(fingerprint).is_ok_and(|known| known == blake3::hash(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_sessions_own_and_proves_itself() {
        let mint = Mint::new([7; 32]);
        let (secret, other) = (mint.secret("s1"), mint.secret("s2"));
        assert_ne!(secret, other);
        assert_ne!(secret, Mint::new([8; 32]).secret("s1"));
        let known = fingerprint(&secret);
        assert!(proves(&secret, &known) && !known.contains(&secret));
        for wrong in [other.as_str(), "", &secret[1..]] {
            assert!(!proves(wrong, &known), "{wrong:?}");
        }
        assert!(!proves("", "") && !proves(&secret, ""), "a log of an older version keeps none");
        assert_eq!(format!("{mint:?}"), "Mint(…)");
    }
}
