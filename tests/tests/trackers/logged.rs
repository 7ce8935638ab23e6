//! The values of a job's log that trackers must have, with the names from the documentation.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Values by metric and step.
pub(super) type Values = BTreeMap<(String, i64), f64>;

/// The name of a phase's metrics in trackers, according to the documentation.
fn place(phase: &str, metric: Option<&str>) -> String {
    let work = phase.split_once('.').expect("a phase's id").1;
    let place = match work {
        "sft" => "sft/summary",
        "preferences.generate" => "preferences/generate",
        "preferences.evaluation.generate" => "preferences/generate_evaluation",
        "reward.generate" => "reward/generate",
        "reward.train" => "reward/summary",
        "reward.evaluate" => "reward/eval",
        "reward.evaluate_fresh" => "reward/eval_fresh",
        "policy.generate" => "policy/generate",
        "policy.score" => "policy/score",
        "policy.train" => "policy/summary",
        "policy.evaluate" => "policy/eval",
        other => panic!("a phase {other}"),
    };
    let Some(metric) = metric else { return place.replace("summary", "train") };
    let trains = place.ends_with("summary");
    let renamed = match metric {
        _ if trains => metric,
        "reward_mean" => "reward",
        "reward_sd" => "reward_std",
        "length_mean" => "completions/mean_length",
        "length_max" => "completions/max_length",
        "truncated_rate" => "completions/clipped_ratio",
        "kl_per_token" => "kl",
        "kl" => "objective/kl",
        metric => metric,
    };
    format!("{place}/{renamed}")
}

/// The steps of a job's log, from metrics.jsonl.
pub(super) fn logged_steps(file: &Path) -> Values {
    let text = std::fs::read_to_string(file).expect("metrics.jsonl");
    let mut values = Values::new();
    // The number of steps in earlier rounds, by model, and the phase being read.
    let (mut before, mut reading): (BTreeMap<String, i64>, _) = (BTreeMap::new(), (String::new(), 0));
    for line in text.lines() {
        let fields: Value = serde_json::from_str(line).expect("a JSON line");
        let Some(step) = fields["step"].as_i64() else { continue };
        let phase = fields["phase"].as_str().expect("a phase");
        let model = place(phase, None);
        if reading.0 != phase {
            let offset = before.get(&model).copied().unwrap_or(0);
            reading = (phase.to_owned(), offset);
        }
        let step = reading.1 + step;
        before.insert(model.clone(), step);
        for (name, value) in fields.as_object().expect("an object") {
            let is_label = ["phase", "round", "attempt", "step", "steps"].contains(&name.as_str());
            if let Some(value) = value.as_f64().filter(|_| !is_label) {
                let first = values.insert((format!("{model}/{name}"), step), value);
                assert!(first.is_none(), "the log has {name} of {step} twice");
            }
        }
    }
    values
}

/// The metrics of a job's phases, from its events as `foil watch` prints them.
pub(super) fn logged_phases(events: &str) -> Values {
    let mut values = Values::new();
    for line in events.lines().filter(|line| line.starts_with('{')) {
        let event: Value = serde_json::from_str(line).expect("a JSON line");
        let done = &event["phase_committed"];
        let Some(phase) = done["phase"].as_str() else { continue };
        let round: i64 = phase[1..3].parse().expect("a round");
        for metric in done["metrics"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let key = place(phase, metric["name"].as_str());
            // Protobuf's JSON omits zeros and represents non-finite values as text.
            let value = if metric["value"].is_null() { Some(0.0) } else { metric["value"].as_f64() };
            let Some(value) = value else { continue };
            if let Some(error) = metric["se"].as_f64() {
                values.insert((format!("{key}_se"), round), error);
            }
            values.insert((key, round), value);
        }
    }
    assert!(values.len() > 20, "{events}");
    values
}

/// Fails unless a server has each value of the log once and nothing else.
pub(super) fn assert_same(found: &BTreeMap<(String, i64), Vec<f64>>, logged: &Values) {
    let wrong: Vec<_> = found.iter().filter(|(_, values)| values.len() != 1).collect();
    assert!(wrong.is_empty(), "came more than once: {wrong:?}");
    let lacking: Vec<_> = logged.keys().filter(|key| !found.contains_key(*key)).collect();
    assert!(lacking.is_empty(), "did not come: {lacking:?}");
    let foreign: Vec<_> = found.keys().filter(|key| !logged.contains_key(*key)).collect();
    assert!(foreign.is_empty(), "is not in the log: {foreign:?}");
    for (key, value) in logged {
        assert_eq!(found[key][0], *value, "{key:?}");
    }
}
