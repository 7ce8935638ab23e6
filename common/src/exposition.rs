//! The `/metrics` page: every series with its help and type.
//!
//! Counters, histograms and gauges that live as long as the process go through the `metrics` crate. Gauges
//! whose series come and go, such as those of agents, are set as whole families instead. A series that is not
//! in the latest family disappears, so that no alert depends on something that does not exist.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Bucket bounds in seconds, from an append to a local disk to an object store that is unavailable.
const APPEND_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Bucket bounds in seconds, from a tiny chunk to a day of training.
const PHASE_SECONDS: &[f64] =
    &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0];

/// Bucket bounds in seconds, from a step of a tiny model to one of a large model on few devices.
const STEP_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Bucket bounds in seconds, from a copy of a tiny model to an upload over a slow line; also for recoveries.
const SAVE_SECONDS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// Name, labels and help of each.
const COUNTERS: &[(&str, &[&str], &str)] = &[
    (
        "foil_artifact_bytes_total",
        &["direction"],
        "Bytes of artifacts that clients and ranks transferred, by direction.",
    ),
    ("foil_attempts_total", &["cause"], "Attempts that ended, by cause."),
    ("foil_audit_records_lost_total", &[], "Records that the audit log's file or the store did not take."),
    (
        "foil_calls_refused_total",
        &["reason"],
        "Calls refused by authentication, for the caller's role, or for a web page's origin, by reason.",
    ),
    ("foil_checkpoint_verify_failures_total", &[], "Committed checkpoints that could not be read back."),
    ("foil_checkpoints_committed_total", &[], "Checkpoints committed."),
    (
        "foil_connections_closed_total",
        &["reason"],
        "Connections that the coordinator closed or refused itself, by reason.",
    ),
    ("foil_chunks_done_total", &[], "Chunks of map phases done."),
    ("foil_chunks_leased_again_total", &[], "Chunks leased a second time because they straggled."),
    ("foil_determinism_alarms_total", &[], "Chunks computed twice with different bytes."),
    (
        "foil_direct_transfers_total",
        &["direction"],
        "Objects that ranks read and wrote in the store itself, by direction as seen from the coordinator.",
    ),
    ("foil_duplicate_chunks_total", &[], "Chunks that were computed twice."),
    (
        "foil_fenced_writes_total",
        &[],
        "Times this process found that another coordinator had taken the lead.",
    ),
    ("foil_job_transitions_total", &["from", "to", "reason"], "Changes of a job's state."),
    (
        "foil_nonfinite_total",
        &["phase"],
        "Steps skipped because their loss or gradient was not finite, by phase.",
    ),
    ("foil_object_verify_failures_total", &[], "Objects whose bytes did not match their hash."),
    ("foil_objects_deleted_total", &[], "Unreferenced objects deleted."),
    (
        "foil_otlp_dropped_total",
        &["signal"],
        "Spans and points of metrics that no OTLP collector took, by signal.",
    ),
    ("foil_objectstore_requests_total", &["op", "code"], "Requests to the store, by operation and outcome."),
    ("foil_phases_committed_total", &["kind"], "Phases committed, by kind."),
    (
        "foil_rank_exits_total",
        &["cause", "signal"],
        "Rank processes that ended, by cause, and by signal where one killed them.",
    ),
    ("foil_ranks_lost_total", &[], "Rank processes lost while they were needed."),
    ("foil_snapshot_verify_failures_total", &[], "Snapshots of the log that could not be read back."),
    (
        "foil_worker_faults_total",
        &[],
        "Ranks that never connected or reported falsely, by their agent's fault.",
    ),
    ("foil_steps_committed_total", &[], "Optimizer steps in committed phases."),
    (
        "foil_steps_replayed_total",
        &[],
        "Optimizer steps taken again because no checkpoint held them when an attempt ended.",
    ),
    ("foil_tokens_total", &["phase"], "Tokens that training has read, by phase."),
    (
        "foil_tracker_failures_total",
        &["tracker"],
        "Deliveries to experiment trackers that failed and are tried again, by tracker.",
    ),
    (
        "foil_tracker_points_total",
        &["tracker"],
        "Values of metrics that experiment trackers took, by tracker.",
    ),
];

/// Counters of a coordinator that alerts and dashboards watch. They exist from the start, because a series
/// that begins at 1 shows no increase.
const ALARMS: &[&str] = &[
    "foil_audit_records_lost_total",
    "foil_checkpoint_verify_failures_total",
    "foil_checkpoints_committed_total",
    "foil_chunks_done_total",
    "foil_determinism_alarms_total",
    "foil_fenced_writes_total",
    "foil_object_verify_failures_total",
    "foil_ranks_lost_total",
    "foil_snapshot_verify_failures_total",
    "foil_steps_committed_total",
    "foil_worker_faults_total",
];

const GAUGES: &[(&str, &[&str], &str)] = &[
    ("foil_agent_ranks", &[], "Rank processes that run on this agent."),
    ("foil_build_info", &["version", "build"], "1, with version and build as labels."),
    ("foil_checkpoint_bytes", &[], "Size of the checkpoint committed last."),
    ("foil_connections", &[], "Open connections to the coordinator."),
    (
        "foil_drift_mean",
        &["kind"],
        "Nats per token between sampler and trainer in the latest phase that compared them, by kind.",
    ),
    (
        "foil_goodput_ratio",
        &[],
        "Fraction of the steps since this coordinator leads that were not taken again.",
    ),
    (
        "foil_gpu_memory_bytes",
        &["phase"],
        "Peak bytes of tensors on rank 0's GPU since it started, by phase.",
    ),
    ("foil_grad_norm", &["objective"], "Gradient norm of the latest step, by objective."),
    (
        "foil_kl",
        &[],
        "KL divergence of the latest evaluated policy from its reference, in nats per completion.",
    ),
    ("foil_leader", &[], "1 while this coordinator leads its store."),
    ("foil_loss", &["objective"], "Loss of the latest step, by objective."),
    ("foil_reward_mean", &[], "Mean reward of the latest evaluated policy."),
    (
        "foil_straggler_ratio",
        &["kind"],
        "Duration of the slowest chunk over the median one in the latest map phase of three chunks or more, by kind.",
    ),
    (
        "foil_tracker_behind_jobs",
        &["tracker"],
        "Jobs of whose log an experiment tracker lacks something, by tracker.",
    ),
    (
        "foil_tracker_behind_seconds",
        &["tracker"],
        "Longest time for which an experiment tracker has lacked something of a job's log, by tracker.",
    ),
];

/// Name, labels, help and bucket bounds of each.
const HISTOGRAMS: &[(&str, &[&str], &str, &[f64])] = &[
    (
        "foil_checkpoint_stall_seconds",
        &[],
        "Time for which training waited for a checkpoint, by rank's share.",
        SAVE_SECONDS,
    ),
    (
        "foil_checkpoint_upload_seconds",
        &[],
        "Time to write, hash and upload a rank's share of a checkpoint.",
        SAVE_SECONDS,
    ),
    (
        "foil_collective_wait_seconds",
        &["phase"],
        "Time of a step for which a rank waited for the others, by phase. Of ranks on CPU: on a GPU the device waits, not its host.",
        STEP_SECONDS,
    ),
    ("foil_log_append_seconds", &[], "Time until a record of the log was durable.", APPEND_SECONDS),
    ("foil_phase_seconds", &["kind"], "Duration of committed phases, by kind.", PHASE_SECONDS),
    (
        "foil_recovery_seconds",
        &["stage"],
        "Time from an attempt's end to the next one's start (devices), and from there to its first step, chunk or \
         commit (progress), by stage.",
        SAVE_SECONDS,
    ),
    ("foil_step_seconds", &["phase"], "Duration of optimizer steps, by phase.", STEP_SECONDS),
];

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

/// The description of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    pub name: &'static str,
    /// counter, gauge or histogram.
    pub kind: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// All metrics except those set as whole families.
pub fn described() -> impl Iterator<Item = Description> {
    let described = |kind| move |name, labels, help| Description { name, kind, labels, help };
    let (counter, gauge, histogram) = (described("counter"), described("gauge"), described("histogram"));
    let counters = COUNTERS.iter().map(move |(name, labels, help)| counter(*name, *labels, *help));
    let gauges = GAUGES.iter().map(move |(name, labels, help)| gauge(*name, *labels, *help));
    let histograms = HISTOGRAMS.iter().map(move |(name, labels, help, _)| histogram(*name, *labels, *help));
    counters.chain(gauges).chain(histograms)
}

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

fn families() -> MutexGuard<'static, BTreeMap<&'static str, Family>> {
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
