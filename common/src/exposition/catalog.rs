//! The metrics that live as long as the process.

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
pub(super) const COUNTERS: &[(&str, &[&str], &str)] = &[
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
pub(super) const ALARMS: &[&str] = &[
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

pub(super) const GAUGES: &[(&str, &[&str], &str)] = &[
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
pub(super) const HISTOGRAMS: &[(&str, &[&str], &str, &[f64])] = &[
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
