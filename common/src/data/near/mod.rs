//! Near-duplicates: texts that share most of their word n-grams.
//!
//! A text is the set of its n-grams of words; a row has a set for its prompt and one for each response. The
//! similarity of two rows is the lowest Jaccard similarity of corresponding sets. Candidates are found by
//! MinHash (Broder 1997): signatures are cut into bands, which must match as a whole. Each candidate is then
//! compared exactly, so that hashing decides only which near-duplicates are missed: fewer than one in a
//! hundred at the threshold itself, and fewer above it. All hashes are fixed: the same rows give the same
//! result.

mod ngrams;

use std::collections::{HashMap, HashSet};

use self::ngrams::{Ngrams, mix};
use super::rows::{Message, Prompt, Role, Row};

/// Number of hashes in a signature.
const HASHES: usize = 64;
/// Maximum number of bands.
const BANDS: usize = 32;
/// Maximum number of hashes in a band.
const BAND_HASHES: usize = 32;
/// Fraction of the pairs at the threshold that the bands must find.
const RECALL: f64 = 0.99;
/// Maximum number of rows with an equal band that a row is compared with, for each band.
const COMPARED: usize = 8;

/// Finds rows whose texts are nearly equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearDuplicates {
    threshold: f64,
    ngram: usize,
    /// Number of hashes in a band.
    rows: usize,
    bands: usize,
}

/// Ids of texts by the bands of their signatures.
struct Index {
    bands: Vec<HashMap<u32, Entries>>,
}

/// Texts with an equal band.
struct Entries {
    first: u32,
    others: Vec<u32>,
}

impl NearDuplicates {
    /// `threshold` is above 0 and at most 1, `ngram` at least 1.
    pub fn new(threshold: f64, ngram: usize) -> Self {
        let bands = |rows: usize| BANDS.min(HASHES / rows);
        let found = |rows: usize| {
            let missed = 1.0 - threshold.powi(i32::try_from(rows).unwrap_or(i32::MAX));
            1.0 - missed.powi(i32::try_from(bands(rows)).unwrap_or(i32::MAX))
        };
        // Wider bands have fewer false candidates.
        let rows = (1..=BAND_HASHES).rev().find(|&rows| found(rows) >= RECALL).unwrap_or(1);
        NearDuplicates { threshold, ngram: ngram.max(1), rows, bands: bands(rows) }
    }

    /// Approximate bytes of memory per row for finding duplicates.
    pub fn bytes_per_row(&self) -> u64 {
        16 * self.bands as u64
    }

    /// For each row, the earlier row that it nearly equals and that is not itself a duplicate.
    pub fn of_rows<T: Row>(&self, rows: &[T]) -> Vec<Option<usize>> {
        let mut index = Index::new(self.bands);
        let mut duplicates = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate() {
            let parts = self.parts(row);
            let bands = self.bands_of(parts.iter().zip(0u64..).flat_map(|(part, tag)| part.tagged(tag)));
            let near = index.candidates(&bands).into_iter().find(|&earlier| {
                let other = self.parts(&rows[earlier as usize]);
                parts.len() == other.len()
                    && parts.iter().zip(&other).all(|(one, two)| self.is_near(one, two))
            });
            if near.is_none() {
                index.insert(&bands, u32::try_from(number).unwrap_or(u32::MAX));
            }
            duplicates.push(near.map(|earlier| earlier as usize));
        }
        duplicates
    }

    /// Whether each of `measured` nearly equals one of `trained` without being equal to any. System turns are
    /// ignored, because many prompts share them.
    pub fn of_prompts<'a>(
        &self,
        measured: &[&Prompt],
        trained: impl Iterator<Item = &'a Prompt>,
    ) -> Vec<bool> {
        let ngrams = |prompt: &Prompt| self.ngrams(said(prompt));
        let mut index = Index::new(self.bands);
        for (number, prompt) in measured.iter().enumerate() {
            let bands = self.bands_of(ngrams(prompt).tagged(0));
            index.insert(&bands, u32::try_from(number).unwrap_or(u32::MAX));
        }
        let (mut is_near, mut is_equal) = (vec![false; measured.len()], vec![false; measured.len()]);
        for prompt in trained {
            let own = ngrams(prompt);
            for candidate in index.candidates(&self.bands_of(own.tagged(0))) {
                let candidate = candidate as usize;
                if measured[candidate] == prompt {
                    is_equal[candidate] = true;
                } else if !is_near[candidate] {
                    is_near[candidate] = self.is_near(&own, &ngrams(measured[candidate]));
                }
            }
        }
        is_near.into_iter().zip(is_equal).map(|(near, equal)| near && !equal).collect()
    }

    fn is_near(&self, one: &Ngrams, other: &Ngrams) -> bool {
        one.similarity(other) >= self.threshold
    }

    fn parts<T: Row>(&self, row: &T) -> Vec<Ngrams> {
        let prompt = self.ngrams(row.prompt().messages.iter());
        let responses = row.responses().into_iter().map(|text| Ngrams::new([text], self.ngram));
        std::iter::once(prompt).chain(responses).collect()
    }

    fn ngrams<'a>(&self, messages: impl Iterator<Item = &'a Message>) -> Ngrams {
        Ngrams::new(messages.map(|message| message.content.as_str()), self.ngram)
    }

    /// The bands of a set's signature.
    fn bands_of(&self, ngrams: impl Iterator<Item = u64>) -> Vec<u32> {
        let signature = signature(ngrams);
        let band = |(number, hashes): (usize, &[u64])| {
            let hash = hashes.iter().fold(number as u64, |hash, part| mix(hash ^ part));
            (hash >> 32) as u32
        };
        signature.chunks_exact(self.rows).take(self.bands).enumerate().map(band).collect()
    }
}

/// The turns other than the system's.
fn said(prompt: &Prompt) -> impl Iterator<Item = &Message> {
    prompt.messages.iter().filter(|message| message.role != Role::System)
}

/// The minimum of each of [`HASHES`] hash functions. Two sets have equal minima with a probability equal to
/// their Jaccard similarity. n-grams are hashes already, so multiplication permutes them well enough.
fn signature(ngrams: impl Iterator<Item = u64>) -> [u64; HASHES] {
    let functions: [(u64, u64); HASHES] =
        std::array::from_fn(|number| (mix(number as u64) | 1, mix(!(number as u64))));
    let mut least = [u64::MAX; HASHES];
    for ngram in ngrams {
        for (least, (factor, offset)) in least.iter_mut().zip(functions) {
            *least = (*least).min(ngram.wrapping_mul(factor).wrapping_add(offset));
        }
    }
    least
}

impl Index {
    fn new(bands: usize) -> Self {
        Index { bands: (0..bands).map(|_| HashMap::new()).collect() }
    }

    fn insert(&mut self, bands: &[u32], text: u32) {
        for (map, band) in self.bands.iter_mut().zip(bands) {
            match map.entry(*band) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(Entries { first: text, others: Vec::new() });
                }
                std::collections::hash_map::Entry::Occupied(mut entry) => {
                    if entry.get().others.len() + 1 < COMPARED {
                        entry.get_mut().others.push(text);
                    }
                }
            }
        }
    }

    /// The texts that share a band, in order.
    fn candidates(&self, bands: &[u32]) -> Vec<u32> {
        let mut found = HashSet::new();
        for entries in self.bands.iter().zip(bands).filter_map(|(map, band)| map.get(band)) {
            found.insert(entries.first);
            found.extend(&entries.others);
        }
        let mut found: Vec<u32> = found.into_iter().collect();
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests;
