//! Bearer tokens. They are random, so guessing is not a concern and no slow hash is needed; only their hashes
//! are stored.

use std::fmt;

use rand::TryRngCore;

/// Prefix of every token, by which repository and log scanners find leaked ones.
pub const PREFIX: &str = "foil_";
/// Number of random bytes in a new token.
const RANDOM_BYTES: usize = 32;
/// Minimum number of characters after the prefix: 128 random bits in hex.
const MIN_CHARACTERS: usize = 32;

/// A token. It is never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new token of 256 random bits.
    pub fn generate<R: TryRngCore>(random: &mut R) -> Result<Self, R::Error> {
        let mut bytes = [0; RANDOM_BYTES];
        random.try_fill_bytes(&mut bytes)?;
        Ok(Self(format!("{PREFIX}{}", blake3::Hash::from_bytes(bytes).to_hex())))
    }

    /// The token in the form that its holder presents.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> blake3::Hash {
        hash(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

pub(super) fn hash(token: &str) -> blake3::Hash {
    blake3::hash(token.as_bytes())
}

/// True if a text has the form of a token. Hand-picked passwords do not, whatever a token file contains.
pub(super) fn is_well_formed(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|random| {
        random.len() >= MIN_CHARACTERS && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn tokens_differ_are_well_formed_and_stay_hidden() {
        let mut random = StdRng::seed_from_u64(1);
        let (one, two) = (Token::generate(&mut random).unwrap(), Token::generate(&mut random).unwrap());
        assert_ne!(one, two);
        assert!(is_well_formed(one.reveal()) && one.reveal().len() == PREFIX.len() + 64);
        assert_eq!(format!("{one:?}"), "Token(…)");
        assert!(!one.hash().to_hex().contains(&one.reveal()[PREFIX.len()..]));
        for chosen in ["", "password", "foil_", "foil_0123456789abcdef", &one.reveal()[1..]] {
            assert!(!is_well_formed(chosen), "{chosen}");
        }
    }
}
