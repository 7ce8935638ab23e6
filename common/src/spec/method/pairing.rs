//! Which completions make a pair.

use super::super::SpecError;
use super::super::check::{path, size, wire_size};
use super::super::choice::choices;

/// The pairs of a prompt's completions by their rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    BestWorst,
    /// The best against the worst, the second best against the second worst, …: at most this many pairs, at
    /// least 1.
    TopBottom(usize),
    All,
}

choices! {
    PairingName:
    #[default]
    BestWorst = "best_worst",
    TopBottomK = "top_bottom_k",
    All = "all",
}

impl Pairing {
    /// The maximum number of the n completions that pairs use.
    pub(super) fn max_completions(self, samples: u32) -> u32 {
        let paired = match self {
            Self::BestWorst => 2,
            Self::TopBottom(k) => wire_size(k).saturating_mul(2),
            Self::All => samples,
        };
        paired.min(samples)
    }

    pub(super) fn parse(at: &str, pairing: &str, pairs_k: Option<u32>) -> Result<Self, SpecError> {
        let name = PairingName::parse(at, "pairing", pairing)?;
        if name == PairingName::TopBottomK {
            return Ok(Self::TopBottom(size(at, "pairs_k", pairs_k, 2, 1)?));
        }
        match pairs_k {
            Some(k) => {
                Err(SpecError::field(&path(at, "pairs_k"), k, &format!("nothing when pairing is {name}"))
                    .advice("leave it out, or set pairing: top_bottom_k"))
            }
            None if name == PairingName::All => Ok(Self::All),
            None => Ok(Self::BestWorst),
        }
    }

    /// The wire form: `pairing` and `pairs_k`.
    pub(super) fn to_wire(self) -> (String, Option<u32>) {
        let (name, pairs_k) = match self {
            Self::BestWorst => (PairingName::BestWorst, None),
            Self::TopBottom(k) => (PairingName::TopBottomK, Some(wire_size(k))),
            Self::All => (PairingName::All, None),
        };
        (name.to_string(), pairs_k)
    }
}
