//! The `/metrics` page: every series with its help and type.
//!
//! Counters, histograms and gauges that live as long as the process go through the `metrics` crate. Gauges
//! whose series come and go, such as those of agents, are set as whole families instead. A series that is not
//! in the latest family disappears, so that no alert depends on something that does not exist.

mod catalog;
mod families;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use self::catalog::{ALARMS, COUNTERS, GAUGES, HISTOGRAMS};
pub use self::catalog::{Description, described};
use self::families::families;
pub use self::families::{Family, hide, show};

/// The recorder's settings: histograms with buckets, which can be aggregated over processes.
pub fn builder() -> Result<PrometheusBuilder, BuildError> {
    HISTOGRAMS.iter().try_fold(PrometheusBuilder::new(), |builder, (name, .., bounds)| {
        builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)
    })
}

/// Registers the help of each of Foil's metrics with the current recorder.
pub fn describe() {
    for (name, _, help) in COUNTERS {
        describe_counter!(*name, *help);
    }
    for (name, _, help) in GAUGES {
        describe_gauge!(*name, *help);
    }
    for (name, _, help, _) in HISTOGRAMS {
        describe_histogram!(*name, Unit::Seconds, *help);
    }
}

/// Starts the counters that alerts watch, at 0.
pub fn start_alarms() {
    for name in ALARMS {
        metrics::counter!(*name).increment(0);
    }
}

/// The `/metrics` page.
pub fn render(recorder: &PrometheusHandle) -> String {
    let mut text = recorder.render();
    text.extend(families().values().map(Family::render));
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// A page with every metric once, and a family.
    fn rendered() -> String {
        let recorder = builder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            for (name, ..) in COUNTERS {
                metrics::counter!(*name, "cause" => "x").increment(1);
            }
            for (name, ..) in GAUGES {
                metrics::gauge!(*name).set(1.5);
            }
            for (name, ..) in HISTOGRAMS {
                metrics::histogram!(*name).record(0.2);
            }
        });
        let family = Family::new("foil_agents", "Agents, by the state of their streams.");
        recorder.handle().render() + &family.with(&[("state", "connected")], 2.0).render()
    }

    #[test]
    fn every_series_has_help_and_type_and_histograms_have_buckets() {
        let text = rendered();
        for (kind, names) in [
            ("counter", COUNTERS.iter().map(|(name, ..)| *name).collect::<Vec<_>>()),
            ("gauge", GAUGES.iter().map(|(name, ..)| *name).chain(["foil_agents"]).collect()),
            ("histogram", HISTOGRAMS.iter().map(|(name, ..)| *name).collect()),
        ] {
            for name in names {
                assert!(text.contains(&format!("# HELP {name} ")), "{name}\n{text}");
                assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}\n{text}");
            }
        }
        assert!(text.contains("foil_log_append_seconds_bucket{le=\"0.25\"} 1\n"), "{text}");
        assert!(text.contains("foil_phase_seconds_bucket{le=\"+Inf\"} 1\n"), "{text}");
    }

    /// Skipped if there is no promtool (Debian's package prometheus has it).
    #[test]
    fn promtool_accepts_the_page() {
        let spawned = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut promtool) = spawned else {
            eprintln!("skipped: promtool is not installed");
            return;
        };
        promtool.stdin.take().unwrap().write_all(rendered().as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.is_empty(), "{told}");
    }

    #[test]
    fn a_family_shows_its_current_series() {
        let ages = || Family::new("foil_ages", "Ages.");
        let both = ages().with(&[("agent", "a")], 1.0).with(&[("agent", "b\"\\\n")], 2.5);
        assert_eq!(
            both.render(),
            "# HELP foil_ages Ages.\n# TYPE foil_ages gauge\nfoil_ages{agent=\"a\"} 1\n\
             foil_ages{agent=\"b\\\"\\\\\\n\"} 2.5\n"
        );
        assert!(ages().with(&[], 3.0).render().ends_with("\nfoil_ages 3\n"));
        assert_eq!(ages().render(), "");
    }

    #[test]
    fn a_series_that_is_not_set_again_disappears() {
        let recorder = PrometheusBuilder::new().build_recorder().handle();
        let shown = |agents: &[&str]| {
            let family = Family::new("foil_test_agents", "For this test.");
            show([agents.iter().fold(family, |family, agent| family.with(&[("agent", agent)], 1.0))]);
            render(&recorder)
        };
        assert!(shown(&["a", "b"]).contains("agent=\"b\""));
        let left = shown(&["a"]);
        assert!(left.contains("agent=\"a\"") && !left.contains("agent=\"b\""), "{left}");
        hide();
        assert_eq!(render(&recorder), "");
    }
}
