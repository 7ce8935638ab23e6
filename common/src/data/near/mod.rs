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
use super::row_set::{Lines, RowSet, SpillError};
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

/// Numbers of texts by the bands of their signatures.
struct Index {
    bands: Vec<Band>,
}

/// The texts by one band: a linked list for each of its values.
#[derive(Default)]
struct Band {
    first: HashMap<u32, u32>,
    /// The text after each text; [`LAST`] if there is none.
    next: Vec<u32>,
}

const LAST: u32 = u32::MAX;

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
    pub fn of_rows<T: Row>(&self, rows: &RowSet<T>) -> Result<Vec<Option<usize>>, SpillError> {
        let mut index = Index::new(self.bands);
        let mut duplicates = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate() {
            let parts = self.parts(&row?);
            let bands = self.bands_of(parts.iter().zip(0u64..).flat_map(|(part, tag)| part.tagged(tag)));
            let mut near = None;
            for earlier in index.candidates(&bands) {
                let other = self.parts(&rows.get(earlier as usize)?);
                if parts.len() == other.len()
                    && parts.iter().zip(&other).all(|(one, two)| self.is_near(one, two))
                {
                    near = Some(earlier as usize);
                    break;
                }
            }
            if near.is_none() {
                index.insert(&bands, u32::try_from(number).unwrap_or(u32::MAX));
            }
            duplicates.push(near);
        }
        Ok(duplicates)
    }

    /// Whether each distinct prompt of `measured` nearly equals one of `trained` without being equal to any.
    /// System turns are ignored, because many prompts share them.
    pub fn of_prompts(&self, measured: &Lines, trained: &Lines) -> Result<Vec<bool>, SpillError> {
        let ngrams = |prompt: &Prompt| self.ngrams(said(prompt));
        let mut index = Index::new(self.bands);
        let (mut seen, mut rows, mut keys) = (HashSet::new(), Vec::new(), Vec::new());
        for (row, read) in measured.prompts().enumerate() {
            let (key, prompt) = read?;
            if seen.insert(key) {
                let bands = self.bands_of(ngrams(&prompt).tagged(0));
                index.insert(&bands, u32::try_from(rows.len()).unwrap_or(u32::MAX));
                rows.push(row);
                keys.push(key);
            }
        }
        let (mut is_near, mut is_equal) = (vec![false; rows.len()], vec![false; rows.len()]);
        for read in trained.prompts() {
            let (key, prompt) = read?;
            let own = ngrams(&prompt);
            for candidate in index.candidates(&self.bands_of(own.tagged(0))) {
                let candidate = candidate as usize;
                if keys[candidate] == key {
                    is_equal[candidate] = true;
                } else if !is_near[candidate] {
                    is_near[candidate] = self.is_near(&own, &ngrams(&measured.prompt(rows[candidate])?));
                }
            }
        }
        Ok(is_near.into_iter().zip(is_equal).map(|(near, equal)| near && !equal).collect())
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
        Index { bands: (0..bands).map(|_| Band::default()).collect() }
    }

    /// Adds a text; numbers ascend from 0.
    fn insert(&mut self, bands: &[u32], text: u32) {
        for (band, value) in self.bands.iter_mut().zip(bands) {
            band.insert(*value, text);
        }
    }

    /// The texts that share a band, in order.
    fn candidates(&self, bands: &[u32]) -> Vec<u32> {
        let mut found: Vec<u32> =
            self.bands.iter().zip(bands).flat_map(|(band, value)| band.texts(*value)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Band {
    fn insert(&mut self, value: u32, text: u32) {
        let (length, last) = self.texts(value).fold((0, None), |(length, _), text| (length + 1, Some(text)));
        if length >= COMPARED {
            return;
        }
        // Texts that were not added have no next one.
        self.next.resize(text as usize + 1, LAST);
        match last {
            None => drop(self.first.insert(value, text)),
            Some(last) => self.next[last as usize] = text,
        }
    }

    /// The texts with this value of the band, in order.
    fn texts(&self, value: u32) -> impl Iterator<Item = u32> {
        let next = |text: &u32| self.next.get(*text as usize).copied().filter(|next| *next != LAST);
        std::iter::successors(self.first.get(&value).copied(), next)
    }
}

#[cfg(test)]
mod tests;
