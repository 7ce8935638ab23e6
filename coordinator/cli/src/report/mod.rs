//! Reports of a job: a table of rounds, and a JSON object.

mod best;
mod failure;
mod sources;

use foil_common::drift;
use foil_common::spec::{Method, RewardLoss};
use foil_common::stats::REWARD_GAIN;
use foil_coordinator::job::alarms;
use foil_proto::v1;
use serde_json::{Map, Value, json};

use foil_common::plural::counted;

use crate::size;

pub(crate) use self::best::best;
pub(crate) use self::failure::failure;
pub(crate) use self::sources::{source, sources};

/// Number of spaces between columns.
const BETWEEN_COLUMNS: usize = 2;

/// Metrics that the JSON object always has for every round, `null` if they were not measured.
const REWARD: [&str; 3] = ["accuracy", "ece", "loss"];
const POLICY: [&str; 7] =
    ["reward_gain", "reward_mean", "gold_mean", "kl", "drift", "length_mean", "truncated_rate"];

/// Local paths of a run's results.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalArtifacts {
    pub(crate) policy: Option<String>,
    pub(crate) reward: Option<String>,
}

/// The state in lower case: succeeded, failed, …
pub(crate) fn state_name(job: &v1::Job) -> String {
    job.state().as_str_name().trim_start_matches("JOB_STATE_").to_lowercase()
}

/// A job as JSON, with id and state as in [`summary`].
pub(crate) fn json(job: &v1::Job) -> serde_json::Result<Value> {
    let mut object = Map::new();
    object.insert("job".to_owned(), json!(job.id));
    if let Value::Object(fields) = serde_json::to_value(job)? {
        object.extend(fields.into_iter().filter(|(name, _)| name != "id"));
    }
    object.insert("state".to_owned(), json!(state_name(job)));
    Ok(Value::Object(object))
}

/// The final object of `foil run --json`.
pub(crate) fn summary(job: &v1::Job, artifacts: &LocalArtifacts, seconds: f64) -> Value {
    let rounds = job.rounds.iter().map(|round| {
        json!({
            "round": round.round,
            "reward": figures(&round.reward, &REWARD),
            "policy": policy(&round.policy),
        })
    });
    let mut summary = json!({
        "job": job.id,
        "name": job.name,
        "state": state_name(job),
        "start": figures(&job.start, &["gold_mean"]),
        "rounds": rounds.collect::<Vec<_>>(),
        "best_round": (job.best_round > 0).then_some(job.best_round),
        "best": best(job).map(|best| best.json()),
        "alarms": alarms(job),
        "warnings": job.warnings,
        "artifacts": { "policy": artifacts.policy, "reward": artifacts.reward },
        "seconds": seconds,
    });
    if let Some(failure) = &job.failure {
        summary["error"] = failure::json(failure);
    }
    summary
}

/// Metrics of the policy; `drift` is from the evaluation, else from the RefLogProbs phase.
fn policy(metrics: &[v1::Metric]) -> Value {
    let mut figures = figures(metrics, &POLICY);
    let drift = [drift::MEAN, "log_probs_drift_mean"].into_iter().find_map(|name| figures.get(name).cloned());
    if let Some(drift) = drift {
        figures["drift"] = drift;
    }
    figures
}

fn figures(metrics: &[v1::Metric], required: &[&str]) -> Value {
    let mut figures: Map<String, Value> =
        required.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    for metric in metrics {
        figures.insert(metric.name.clone(), json!(metric.value));
        if let Some(se) = metric.se {
            figures.insert(format!("{}_se", metric.name), json!(se));
        }
    }
    Value::Object(figures)
}

/// A metric that tables of rounds show.
pub(crate) struct Column {
    pub(crate) head: &'static str,
    pub(crate) side: Side,
    pub(crate) metric: &'static str,
    /// Digits after the decimal point; the minimum if there is an error.
    pub(crate) digits: usize,
}

/// The model that a metric describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Reward,
    Policy,
}

pub(crate) const COLUMNS: [Column; 7] = [
    Column { head: "RM human", side: Side::Reward, metric: "accuracy", digits: 3 },
    Column { head: "RM fresh", side: Side::Reward, metric: "fresh_accuracy", digits: 3 },
    Column { head: "gain", side: Side::Policy, metric: REWARD_GAIN, digits: 2 },
    Column { head: "reward", side: Side::Policy, metric: "reward_mean", digits: 2 },
    Column { head: "gold", side: Side::Policy, metric: "gold_mean", digits: 2 },
    Column { head: "KL", side: Side::Policy, metric: "kl", digits: 3 },
    Column { head: "length", side: Side::Policy, metric: "length_mean", digits: 1 },
];

/// The rounds of a job, one line each. Each metric has its standard error, or else its 95 % interval in
/// brackets. The start policy's gain is 0 by definition. Empty columns are omitted; `*` marks the best round.
/// If the table is wider than `columns`, spaces around ± are omitted, and then the table is split.
pub(crate) fn table(job: &v1::Job, columns: usize) -> String {
    let wide = align(&cells(job, " ± "));
    let widest = wide.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    if widest <= columns { wide } else { in_parts(&cells(job, "±"), columns) }
}

/// Several tables of as many columns as fit, each with the first column.
fn in_parts(cells: &[Vec<String>], columns: usize) -> String {
    let count = cells.first().map_or(0, Vec::len);
    let width = |column: usize| {
        cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (mut parts, mut part, mut used) = (Vec::new(), Vec::new(), width(0));
    for column in 1..count {
        let wanted = width(column) + BETWEEN_COLUMNS;
        if used + wanted > columns && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            used = width(0);
        }
        part.push(column);
        used += wanted;
    }
    parts.push(part);
    let of = |part: &Vec<usize>| {
        let pick = |row: &Vec<String>| {
            [0].iter().chain(part).filter_map(|column| row.get(*column).cloned()).collect()
        };
        align(&cells.iter().map(pick).collect::<Vec<_>>())
    };
    parts.iter().map(of).collect::<Vec<_>>().join("\n\n")
}

/// The head and the rounds of a job's table, with `between` before an error; empty before the first round.
pub(crate) fn cells(job: &v1::Job, between: &str) -> Vec<Vec<String>> {
    let empty = Vec::new();
    let has_gain =
        job.rounds.iter().any(|round| round.policy.iter().any(|metric| metric.name == REWARD_GAIN));
    let mut own = job.start.clone();
    if has_gain {
        own.push(v1::Metric { name: REWARD_GAIN.to_owned(), value: 0.0, se: None });
    }
    let start = (String::from("start"), &empty, &own);
    let rounds = job.rounds.iter().map(|round| {
        let mark = if round.round == job.best_round { " *" } else { "" };
        (format!("{}{mark}", round.round), &round.reward, &round.policy)
    });
    let rows: Vec<_> = (!job.start.is_empty()).then_some(start).into_iter().chain(rounds).collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let mut cells: Vec<Vec<String>> = vec![vec!["round".to_owned()]];
    cells.extend(rows.iter().map(|(name, ..)| vec![name.clone()]));
    for column in &COLUMNS {
        let figures: Vec<String> = rows
            .iter()
            .map(|(_, reward, policy)| {
                let metrics = if column.side == Side::Reward { reward } else { policy };
                figure(metrics, column, between)
            })
            .collect();
        if figures.iter().all(String::is_empty) {
            continue;
        }
        cells[0].push(column.head.to_owned());
        for (row, figure) in cells[1..].iter_mut().zip(figures) {
            row.push(if figure.is_empty() { "–".to_owned() } else { figure });
        }
    }
    cells
}

fn figure(metrics: &[v1::Metric], column: &Column, between: &str) -> String {
    let Some(metric) = metrics.iter().find(|metric| metric.name == column.metric) else {
        return String::new();
    };
    let digits = digits_of(column.digits, metric.se);
    let end = |end: &str| {
        let name = format!("{}_{end}", column.metric);
        metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value)
    };
    match (metric.se, end("low").zip(end("high"))) {
        (Some(se), _) => format!("{}{between}{se:.digits$}", fixed(metric.value, digits)),
        // A rate of 0 or 1.
        (None, Some((low, high))) => {
            let gap = if between.starts_with(' ') { " " } else { "" };
            let [value, low, high] = [metric.value, low, high].map(|value| fixed(value, digits));
            format!("{value}{gap}[{low},{gap}{high}]")
        }
        (None, None) => fixed(metric.value, digits),
    }
}

/// Notes on how to read the table, and warnings.
pub(crate) fn notes(job: &v1::Job) -> Vec<String> {
    let has_gain =
        job.rounds.iter().any(|round| round.policy.iter().any(|metric| metric.name == REWARD_GAIN));
    let gain = has_gain.then(|| {
        "gain: reward minus the start policy's on the same prompts, in standard deviations of the latter, by the round's own \
         reward model. Rewards of different rounds come from different reward models and are not comparable."
            .to_owned()
    });
    gain.into_iter().chain(alarms(job).into_iter().map(|alarm| format!("warning: {alarm}"))).collect()
}

/// Left-aligned columns, two spaces apart.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The progress of a phase: `37 of 96 prompts`, `step 12 of 40, loss 0.578`, `761.1 KiB of 1.1 MiB loaded`.
pub(crate) fn progress(told: &v1::PhaseProgress) -> String {
    let (done, total) = (told.done, told.total);
    let count = match (told.unit.as_str(), told.unit.strip_prefix("bytes ")) {
        ("steps", _) => format!("step {done} of {total}"),
        (_, Some(what)) => format!("{} of {} {what}", size::text(done), size::text(total)),
        (unit, None) => format!("{done} of {total} {unit}"),
    };
    std::iter::once(count).chain(main_metrics(&told.step)).collect::<Vec<_>>().join(", ")
}

/// A specification in one line: `2 rounds of rejection against bradley_terry, 2 ranks on cpu`.
pub(crate) fn outline(spec: &v1::JobSpec) -> String {
    let method = Method::parse(spec.policy_step.as_ref().and_then(|step| step.method.as_ref()));
    let loss = RewardLoss::parse(spec.reward_step.as_ref().and_then(|step| step.loss.as_ref()));
    let (method, loss) = (method.map_or("?", |method| method.name()), loss.map_or("?", |loss| loss.name()));
    let resources = spec.resources.clone().unwrap_or_default();
    format!(
        "{} of {method} against {loss}, {} on {}",
        counted(spec.rounds.unwrap_or_default(), "round"),
        counted(resources.ranks.unwrap_or_default(), "rank"),
        resources.device
    )
}

/// A number with fixed digits; a rounded zero has no sign.
pub(crate) fn fixed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        Some(zero) if zero.bytes().all(|byte| matches!(byte, b'0' | b'.')) => zero.to_owned(),
        _ => text,
    }
}

/// Digits after the decimal point: enough for two significant digits of the error, and at least `least`.
pub(crate) fn digits_of(least: usize, error: Option<f64>) -> usize {
    let digits = 1.0 - error.unwrap_or(0.0).log10().floor();
    // Rounding makes errors of equal values that are not quite 0.
    if digits > least as f64 && digits <= 8.0 { digits as usize } else { least }
}

/// The main metrics of a phase, the most important first: `loss 0.578`, `reward 1.250`.
pub(crate) fn main_metrics(metrics: &[v1::Metric]) -> Vec<String> {
    let telling = ["loss", "accuracy", REWARD_GAIN, "reward_mean", "gold_mean", "kl", "length_mean"];
    let found = telling.iter().filter_map(|name| metrics.iter().find(|metric| metric.name == *name));
    let name = |metric: &v1::Metric| metric.name.trim_end_matches("_mean").to_owned();
    found.take(4).map(|metric| format!("{} {}", name(metric), fixed(metric.value, 3))).collect()
}

#[cfg(test)]
pub(crate) mod tests;
