//! References of jobs to objects outside their own prefixes: inputs and objects of other jobs.

use std::collections::BTreeMap;

use crate::job::JobState;

/// Keys with the number of jobs that refer to each.
#[derive(Debug, Default)]
pub(super) struct References(BTreeMap<String, usize>);

impl References {
    pub(super) fn add(&mut self, state: &JobState) {
        for key in state.outside_keys() {
            *self.0.entry(key).or_default() += 1;
        }
    }

    /// Reverts [`Self::add`]: the keys are the same, because a job's submission never changes.
    pub(super) fn remove(&mut self, state: &JobState) {
        for key in state.outside_keys() {
            if let Some(count) = self.0.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The referenced keys that begin with `prefix`.
    pub(super) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a String> {
        self.0.range(prefix.to_owned()..).map(|(key, _)| key).take_while(move |key| key.starts_with(prefix))
    }
}
