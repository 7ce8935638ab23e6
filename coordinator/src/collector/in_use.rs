//! Keys that uploads and submissions in progress use, and keys that a collection is deleting. No key is both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The keys in use in this process. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct InUse(Arc<Mutex<Keys>>);

#[derive(Debug, Default)]
struct Keys {
    /// Held keys, with the number of holds.
    held: BTreeMap<String, usize>,
    condemned: BTreeSet<String>,
}

/// A key is currently being deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is being deleted, because no job named it")]
pub struct BeingDeleted {
    pub key: String,
}

/// Keys that cannot be condemned while this value lives.
#[derive(Debug)]
pub struct Hold {
    keys: Vec<String>,
    in_use: InUse,
}

/// Keys that cannot be held while this value lives.
#[derive(Debug)]
pub(super) struct Condemned {
    pub(super) keys: Vec<String>,
    in_use: InUse,
}

impl InUse {
    /// Holds all keys or none.
    ///
    /// # Errors
    /// One of the keys is currently being deleted.
    pub fn hold(&self, keys: impl IntoIterator<Item = String>) -> Result<Hold, BeingDeleted> {
        let wanted: Vec<String> = keys.into_iter().collect();
        let mut keys = self.lock();
        if let Some(key) = wanted.iter().find(|key| keys.condemned.contains(*key)) {
            return Err(BeingDeleted { key: key.clone() });
        }
        for key in &wanted {
            *keys.held.entry(key.clone()).or_default() += 1;
        }
        Ok(Hold { keys: wanted, in_use: self.clone() })
    }

    /// Condemns those of the keys that are not held.
    pub(super) fn condemn(&self, keys: impl IntoIterator<Item = String>) -> Condemned {
        let mut known = self.lock();
        let free: Vec<String> = keys.into_iter().filter(|key| !known.held.contains_key(key)).collect();
        known.condemned.extend(free.iter().cloned());
        Condemned { keys: free, in_use: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut keys = self.in_use.lock();
        for key in &self.keys {
            if let Some(count) = keys.held.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    keys.held.remove(key);
                }
            }
        }
    }
}

impl Drop for Condemned {
    fn drop(&mut self) {
        let mut keys = self.in_use.lock();
        for key in &self.keys {
            keys.condemned.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_key_is_held_or_condemned_and_never_both() {
        let in_use = InUse::default();
        let first = in_use.hold(keys(&["a", "b"])).unwrap();
        let second = in_use.hold(keys(&["b"])).unwrap();
        let condemned = in_use.condemn(keys(&["a", "b", "c"]));
        assert_eq!(condemned.keys, ["c"]);
        let refused = in_use.hold(keys(&["d", "c"])).unwrap_err();
        assert_eq!(refused.key, "c");
        assert_eq!(in_use.condemn(keys(&["d"])).keys, ["d"], "a refused hold holds nothing");
        drop(condemned);
        in_use.hold(keys(&["c"])).unwrap();
        drop(first);
        assert_eq!(in_use.condemn(keys(&["a", "b"])).keys, ["a"]);
        drop(second);
        assert_eq!(in_use.condemn(keys(&["a", "b"])).keys, ["a", "b"]);
    }
}
