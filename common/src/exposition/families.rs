//! Gauges that are set as whole families.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A gauge with all of its current series.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    series: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Family {
    pub fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, series: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, labels: &[(&'static str, &str)], value: f64) -> Self {
        self.series.push((labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(), value));
        self
    }

    /// Prometheus text format; empty if there are no series.
    pub fn render(&self) -> String {
        let Self { name, help, series } = self;
        let mut text = String::new();
        if series.is_empty() {
            return text;
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (labels, value) in series {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{name}{labels} {value}");
        }
        text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The families by name; global, as the recorder is.
static FAMILIES: Mutex<BTreeMap<&'static str, Family>> = Mutex::new(BTreeMap::new());

pub(super) fn families() -> MutexGuard<'static, BTreeMap<&'static str, Family>> {
    // The map is consistent at any moment, even after a panic.
    FAMILIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces the families of the same names.
pub fn show(shown: impl IntoIterator<Item = Family>) {
    families().extend(shown.into_iter().map(|family| (family.name, family)));
}

/// Removes all families, when this process no longer owns what they describe.
pub fn hide() {
    families().clear();
}
