//! The settings in which two specifications differ.

use std::collections::{BTreeMap, BTreeSet};

use foil_proto::v1;
use serde_json::Value;

use super::reference::hash_and_name;

/// Maximum number of characters shown of a value.
const SHOWN_CHARACTERS: usize = 60;

/// A setting in which two specifications differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path of the field, as in the job file: `policy_step.learning_rate`.
    pub field: String,
    /// Its two values; `None` where it is unset.
    pub values: [Option<String>; 2],
}

/// The settings in which two specifications differ, by field. An uploaded input is its content: the path that
/// it was read from is no setting.
pub fn differences(left: &v1::JobSpec, right: &v1::JobSpec) -> Vec<Difference> {
    let (left, right) = (settings(left), settings(right));
    let fields: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let differing = fields.into_iter().filter(|field| {
        let compared =
            |side: &BTreeMap<String, String>| side.get(*field).map(|text| content(text).to_owned());
        compared(&left) != compared(&right)
    });
    let difference = |field: &String| Difference {
        field: field.clone(),
        values: [&left, &right].map(|side| side.get(field).map(|text| shown(text))),
    };
    differing.map(difference).collect()
}

/// The values of all fields that are set.
fn settings(spec: &v1::JobSpec) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    flatten(String::new(), &serde_json::to_value(spec).unwrap_or_default(), &mut found);
    found
}

fn flatten(at: String, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            let within = |name: &String| if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            fields.iter().for_each(|(name, value)| flatten(within(name), value, found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| flatten(format!("{at}[{index}]"), item, found));
        }
        Value::Null => {}
        Value::String(text) => drop(found.insert(at, text.clone())),
        value => drop(found.insert(at, value.to_string())),
    }
}

/// The part of a value that counts: of an uploaded input its hash alone.
fn content(text: &str) -> &str {
    hash_and_name(text).map_or(text, |(hash, _)| hash)
}

fn shown(text: &str) -> String {
    if let Some((hash, name)) = hash_and_name(text) {
        return format!("{name} ({})", &hash[..8]);
    }
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None if text.contains(char::is_control) => format!("{text:?}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(policy: &str, preferences: &[String], beta: f64) -> v1::JobSpec {
        let dpo = v1::DpoSpec { beta: Some(beta), ..Default::default() };
        v1::JobSpec {
            policy: Some(v1::PolicySpec { model: policy.to_owned(), ..Default::default() }),
            data: Some(v1::DataSpec { preferences: preferences.to_vec(), ..Default::default() }),
            policy_step: Some(v1::PolicyStepSpec {
                method: Some(v1::policy_step_spec::Method::Dpo(dpo)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn settings_that_differ_are_named_with_both_values() {
        let input = |digit: &str, name: &str| format!("input:{}:{name}", digit.repeat(64));
        let model = format!("model:{}:tiny", "b".repeat(64));
        let first = spec(&model, &[input("1", "a.jsonl"), input("2", "b.jsonl")], 0.1);
        assert_eq!(differences(&first, &first), []);
        // Read from another path, its content is the same.
        let moved = spec(&model, &[input("1", "elsewhere/a.jsonl"), input("2", "b.jsonl")], 0.1);
        assert_eq!(differences(&first, &moved), []);

        let second = spec(&model, &[input("3", "a.jsonl")], 0.25);
        let named: Vec<_> =
            differences(&first, &second).into_iter().map(|one| (one.field, one.values)).collect();
        let values = |left: &str, right: Option<&str>| [Some(left.to_owned()), right.map(str::to_owned)];
        let expected = [
            ("data.preferences[0]", values("a.jsonl (11111111)", Some("a.jsonl (33333333)"))),
            ("data.preferences[1]", values("b.jsonl (22222222)", None)),
            ("policy_step.dpo.beta", values("0.1", Some("0.25"))),
        ];
        assert_eq!(named, expected.map(|(field, values)| (field.to_owned(), values)));
    }

    #[test]
    fn long_values_are_cut() {
        let template = |text: String| v1::JobSpec {
            text: Some(v1::TextSpec { template: text, ..Default::default() }),
            ..Default::default()
        };
        let found = differences(&template("ä".repeat(80)), &template("{{ a }}\n".to_owned()));
        assert_eq!(found[0].values[0].as_deref().map(|text| text.chars().count()), Some(63));
        assert_eq!(found[0].values[1].as_deref(), Some(r#""{{ a }}\n""#));
    }
}
