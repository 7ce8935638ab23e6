//! Findings of a step: values, and the bounds that they are held to.

use std::fmt::Display;
use std::io::{self, Write};

use serde::{Deserialize, Deserializer, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// The value is 1, and 0 if the condition does not hold.
    Holds,
}

/// A value of one check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) check: String,
    /// NaN is null in JSON, and within no bound.
    #[serde(deserialize_with = "nan_if_null")]
    pub(crate) value: f64,
    pub(crate) unit: String,
    /// None for a value that is only reported.
    pub(crate) bound: Option<Bound>,
    /// Whether a value out of bounds fails the whole check, rather than being less than hoped for.
    pub(crate) must: bool,
}

fn nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Finding {
    /// A value that is only reported.
    pub(crate) fn note(check: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { check: check.into(), value, unit: unit.to_owned(), bound: None, must: false }
    }

    /// A value that must be within its bound for jobs to be trusted.
    pub(crate) fn must(check: impl Into<String>, value: f64, unit: &str, bound: Bound) -> Self {
        Self { bound: Some(bound), must: true, ..Self::note(check, value, unit) }
    }

    /// A value that healthy machines reach.
    pub(crate) fn may(check: impl Into<String>, value: f64, unit: &str, bound: Bound) -> Self {
        Self { bound: Some(bound), ..Self::note(check, value, unit) }
    }

    /// A condition that must hold for jobs to be trusted.
    pub(crate) fn must_hold(check: impl Into<String>, holds: bool) -> Self {
        Self::must(check, f64::from(u8::from(holds)), "", Bound::Holds)
    }

    /// A condition that healthy machines meet.
    pub(crate) fn may_hold(check: impl Into<String>, holds: bool) -> Self {
        Self { must: false, ..Self::must_hold(check, holds) }
    }

    pub(crate) fn is_within(&self) -> bool {
        match self.bound {
            None => true,
            Some(Bound::AtMost(bound)) => self.value <= bound,
            Some(Bound::AtLeast(bound)) => self.value >= bound,
            Some(Bound::Holds) => self.value == 1.0,
        }
    }

    /// Whether it fails the whole check.
    pub(crate) fn fails(&self) -> bool {
        self.must && !self.is_within()
    }

    /// Its line of the table.
    pub(crate) fn row(&self, step: &str) -> String {
        let number = |number: f64| match number.abs() {
            small if small != 0.0 && small < 1e-3 => format!("{number:.1e}"),
            large if large >= 1e5 => format!("{number:.3e}"),
            _ => format!("{number:.4}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        };
        let bound = match self.bound {
            None | Some(Bound::Holds) => String::new(),
            Some(Bound::AtMost(bound)) => format!("<= {}", number(bound)),
            Some(Bound::AtLeast(bound)) => format!(">= {}", number(bound)),
        };
        let outcome = match (self.bound, self.is_within(), self.must) {
            (None, ..) => "",
            (_, true, _) => "ok",
            (_, false, true) => "FAILED",
            (_, false, false) => "missed",
        };
        let value = match self.bound {
            Some(Bound::Holds) => if self.is_within() { "yes" } else { "no" }.to_owned(),
            _ => format!("{} {}", number(self.value), self.unit),
        };
        let row = format!("{step:<12}{:<58}{:<16}{bound:<12}{outcome}", self.check, value.trim_end());
        row.trim_end().to_owned()
    }
}

/// Prints a step's findings for the process that started it, each as soon as it is known.
pub(crate) fn report(finding: &Finding) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(finding)?)?;
    stdout.flush()
}

/// Writes to the step's log.
pub(crate) fn log(text: &dyn Display) -> io::Result<()> {
    writeln!(io::stderr().lock(), "{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_held_to_their_bounds() {
        let most = |value| Finding::must("error", value, "", Bound::AtMost(0.5));
        assert!(!most(0.5).fails() && most(0.6).fails() && most(f64::NAN).fails());
        let least = |value| Finding::may("speed", value, "GB/s", Bound::AtLeast(300.0));
        assert!(least(300.0).is_within() && !least(299.0).is_within() && !least(299.0).fails());
        assert!(Finding::must_hold("equal", false).fails() && !Finding::must_hold("equal", true).fails());
        assert!(Finding::note("memory", f64::NAN, "GB").is_within());
    }

    #[test]
    fn a_finding_survives_the_pipe_between_processes() {
        for value in [0.25, f64::NAN, f64::INFINITY] {
            let finding = Finding::must("gradient", value, "", Bound::AtMost(1e-4));
            let read: Finding = serde_json::from_str(&serde_json::to_string(&finding).unwrap()).unwrap();
            assert_eq!((read.fails(), &read.check), (finding.fails(), &finding.check));
        }
    }

    #[test]
    fn rows_show_value_bound_and_outcome() {
        let row = |finding: Finding| finding.row("kernels").split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            row(Finding::must("gradient", 2e-5, "", Bound::AtMost(1e-4))),
            "kernels gradient 2.0e-5 <= 1.0e-4 ok"
        );
        assert_eq!(
            row(Finding::may("bus", 210.0, "GB/s", Bound::AtLeast(300.0))),
            "kernels bus 210 GB/s >= 300 missed"
        );
        assert_eq!(row(Finding::must_hold("equal bits", false)), "kernels equal bits no FAILED");
        assert_eq!(row(Finding::may_hold("room", true)), "kernels room yes ok");
        assert_eq!(row(Finding::note("tokens", 123_456.0, "/s")), "kernels tokens 1.235e5 /s");
    }
}
