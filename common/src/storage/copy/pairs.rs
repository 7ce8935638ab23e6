//! Objects of an ordered listing, each joined with its sidecar.

use std::collections::VecDeque;

use super::super::object::SIDECAR;
use super::super::{Scanned, Store};
use super::CopyError;
use super::listing::Listing;

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) key: String,
    /// In bytes.
    pub(super) size: u64,
    /// Time of its last write by the store's clock, in milliseconds since the Unix epoch.
    pub(super) modified: u64,
    /// Whether it has a sidecar.
    pub(super) hashed: bool,
}

impl Found {
    fn new(scanned: Scanned, hashed: bool) -> Self {
        Self { key: scanned.key, size: scanned.size, modified: scanned.modified, hashed }
    }

    /// Objects come in the order of their sidecars' keys, whether they have one or not.
    pub(super) fn place(&self) -> String {
        sidecar(&self.key)
    }
}

fn sidecar(key: &str) -> String {
    format!("{key}{SIDECAR}")
}

/// Objects below a prefix, in the order of their places.
pub(super) struct Pairs {
    listing: Listing,
    pairing: Pairing,
    ready: VecDeque<Found>,
}

impl Pairs {
    pub(super) fn new(store: &Store, prefix: &str) -> Self {
        let listing = Listing::new(store, prefix);
        Self { listing, pairing: Pairing::default(), ready: VecDeque::new() }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Found>, CopyError> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                return Ok(Some(found));
            }
            match self.listing.next().await? {
                Some(key) => self.pairing.take(key, &mut self.ready),
                None => return Ok(self.pairing.end()),
            }
        }
    }
}

/// Joins keys and sidecars. Other keys, such as `a-1`, may come between `a` and `a.b3`. Each key that waits
/// for its sidecar is a prefix of the next, so few keys wait.
#[derive(Debug, Default)]
struct Pairing {
    waiting: Vec<Scanned>,
}

impl Pairing {
    fn take(&mut self, next: Scanned, ready: &mut VecDeque<Found>) {
        while let Some(last) = self.waiting.pop_if(|last| sidecar(&last.key) <= next.key) {
            let hashed = sidecar(&last.key) == next.key;
            ready.push_back(Found::new(last, hashed));
        }
        if !next.key.ends_with(SIDECAR) {
            self.waiting.push(next);
        }
    }

    /// One of the objects left when there are no more keys.
    fn end(&mut self) -> Option<Found> {
        self.waiting.pop().map(|last| Found::new(last, false))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Characters that sort before and after the sidecar's, so that keys come in between.
        #[test]
        fn every_object_comes_once_with_its_sidecar_and_in_order(
            names in proptest::collection::btree_set("[-.@/ab3]{0,5}[ab3]", 0..40),
            hashed in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let objects: BTreeSet<String> = names.into_iter().filter(|name| !name.ends_with(SIDECAR)).collect();
            let hashed: BTreeSet<String> =
                objects.iter().zip(hashed).filter(|(_, hashed)| *hashed).map(|(key, _)| sidecar(key)).collect();
            let (mut pairing, mut ready) = (Pairing::default(), VecDeque::new());
            for key in objects.union(&hashed) {
                pairing.take(Scanned { key: key.clone(), size: 1, modified: 2 }, &mut ready);
                prop_assert!(pairing.waiting.len() <= 1 + key.len());
            }
            while let Some(found) = pairing.end() {
                ready.push_back(found);
            }
            let found: BTreeSet<(String, bool)> =
                ready.iter().map(|found| (found.key.clone(), found.hashed)).collect();
            let expected: BTreeSet<(String, bool)> =
                objects.iter().map(|key| (key.clone(), hashed.contains(&sidecar(key)))).collect();
            prop_assert_eq!(ready.len(), expected.len());
            prop_assert_eq!(found, expected);
            prop_assert!(ready.iter().map(Found::place).is_sorted());
        }
    }
}
