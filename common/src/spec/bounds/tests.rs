use std::time::{Duration, Instant};

use serde_json::{Map, json};

use super::*;
use crate::spec::Job;
use crate::spec::contract::fields;

/// Every field of a job that holds `wanted`, as the names that lead to it.
fn leaves(message: &str, at: &[String], wanted: fn(&Kind) -> bool, found: &mut Vec<(Vec<String>, bool)>) {
    for field in fields(message) {
        let at = [at, std::slice::from_ref(&field.name)].concat();
        match &field.kind {
            Kind::Message(inner) if field.repeated => {
                let first = format!("{}[0]", field.name);
                leaves(inner, &[&at[..at.len() - 1], &[first]].concat(), wanted, found);
            }
            Kind::Message(inner) => leaves(inner, &at, wanted, found),
            kind if wanted(kind) => found.push((at, field.repeated)),
            _ => {}
        }
    }
}

fn with(path: &[String], value: Value) -> v1::JobSpec {
    let mut spec = json!({
        "name": "bounded", "policy": { "model": "m" },
        "data": { "preferences": ["p"], "golden": ["g"], "prompts": ["q"] },
    });
    if path[0] == "data" && path.len() > 1 && ["generator", "gold_preferences"].contains(&path[1].as_str()) {
        spec["data"] = json!({ "generator": { "name": "letters" }, "preferences": ["p"] });
    }
    let mut at = &mut spec;
    for name in &path[..path.len() - 1] {
        if let Some(list) = name.strip_suffix("[0]") {
            at[list] = json!([{}]);
            at = &mut at[list][0];
            continue;
        }
        if !at[name].is_object() {
            at[name] = Value::Object(Map::new());
        }
        at = &mut at[name];
    }
    at[&path[path.len() - 1]] = value;
    serde_json::from_value(spec).unwrap()
}

fn refusal(path: &[String], value: Value) -> Option<String> {
    let started = Instant::now();
    let result = Job::try_from(with(path, value));
    assert!(started.elapsed() < Duration::from_secs(2), "{path:?}");
    result.err().map(|error| error.to_string())
}

#[test]
fn every_number_has_a_bound_and_its_refusal_names_the_field() {
    let mut numbers = Vec::new();
    leaves(contract::JOB_SPEC, &[], |kind| matches!(kind, Kind::Count | Kind::Real), &mut numbers);
    assert!(numbers.len() > 50, "{numbers:?}");
    for (path, repeated) in numbers {
        let field = path.join(".");
        let value = |number: Value| if repeated { json!([number]) } else { number };
        let count = {
            let mut counts = Vec::new();
            leaves(contract::JOB_SPEC, &[], |kind| matches!(kind, Kind::Count), &mut counts);
            counts.iter().any(|(count, _)| *count == path)
        };
        let extremes = match count {
            true => vec![json!(0), json!(1), json!(u32::MAX)],
            false => {
                vec![json!(0.0), json!(-1.0), json!(f64::MAX), json!("NaN"), json!("Infinity"), json!(1e-320)]
            }
        };
        for extreme in extremes {
            let message = refusal(&path, value(extreme.clone())).unwrap_or_default();
            assert!(message.len() < 1000, "{field} = {extreme}: {message}");
        }
        let bounded = |extreme: Value| {
            let message = refusal(&path, value(extreme)).unwrap_or_default();
            assert!(message.starts_with(&field), "{field} has no upper bound: {message:?}");
        };
        let unbounded = field == "seed" || field.starts_with("data.limits.") || field.ends_with("].limit");
        match count {
            true if unbounded => {}
            true => bounded(json!(u32::MAX)),
            false => {
                bounded(json!(1e30));
                bounded(json!("NaN"));
                bounded(json!("-Infinity"));
            }
        }
    }
}

#[test]
fn every_text_and_list_has_a_bound() {
    let mut texts = Vec::new();
    leaves(contract::JOB_SPEC, &[], |kind| matches!(kind, Kind::Text), &mut texts);
    for (path, repeated) in texts {
        let field = path.join(".");
        let long = json!("x".repeat(1 << 20));
        let message = refusal(&path, if repeated { json!([long]) } else { long }).unwrap_or_default();
        assert!(message.starts_with(&field) && message.len() < 500, "{field}: {} bytes", message.len());
        if repeated {
            let message = refusal(&path, json!(vec!["x"; 100_000])).unwrap_or_default();
            assert!(message.contains("100000 entries"), "{field}: {message}");
        }
    }
}

#[test]
fn ordinary_large_jobs_are_within_the_bounds() {
    for (field, value) in [
        ("text.max_length", json!(131_072)),
        ("rounds", json!(100)),
        ("policy_step.samples", json!(64)),
        ("resources.ranks", json!(512)),
        ("data.generator.prompts", json!(100_000)),
        ("policy_step.learning_rate", json!([1e-3, 5e-7])),
        ("reward_step.batch_pairs", json!(4096)),
    ] {
        let path: Vec<String> = field.split('.').map(str::to_owned).collect();
        assert_eq!(refusal(&path, value), None, "{field}");
    }
}
