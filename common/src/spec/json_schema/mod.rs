//! The JSON Schema of the job file, which editors use to complete and check it.
//!
//! It is as strict as [`super::schema`] and the upper bounds together. What depends on other fields, and all
//! minima, only `foil submit --dry-run` checks. No field is required: `--set` may supply it.

use serde_json::{Map, Value, json};

use super::contract::{self, Field, JOB_SPEC, Kind, Message, Oneof, short};
use super::{
    BestMetric, Bos, DataSource, Decay, DeviceKind, GeneratorName, Gold, GrpoLossType, ImportanceSampling,
    Init, Labels, LoraTarget, Normalization, OnNonfinite, PairingName, Precision, Preset, Priority,
    Reduction, ReferencePolicy, Refresh, ReportTo, RewardStart, SaveDtype, ScaleRewards, ScheduleKind,
    Sharding, Side, SourceSet, bounds, source_lists,
};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Texts that are read as numbers: to some YAML readers, 1e-6 is a text.
const NUMBER: &str = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$";

/// The fields that hold a choice, by message and field of the wire contract.
const CHOICES: [(&str, &str, &[&str]); 34] = [
    ("JobSpec", "preset", Preset::NAMES),
    ("PolicySpec", "init", Init::NAMES),
    ("TextSpec", "truncation_side", Side::NAMES),
    ("TextSpec", "bos", Bos::NAMES),
    ("GeneratorSpec", "name", GeneratorName::NAMES),
    ("DataSourceSpec", "set", SourceSet::NAMES),
    ("OptimizerSpec", "decay", Decay::NAMES),
    ("OptimizerSpec", "on_nonfinite", OnNonfinite::NAMES),
    ("ScheduleSpec", "kind", ScheduleKind::NAMES),
    ("RewardStepSpec", "start", RewardStart::NAMES),
    ("RewardStepSpec", "refresh", Refresh::NAMES),
    ("RewardStepSpec", "normalization", Normalization::NAMES),
    ("RewardStepSpec", "save_dtype", SaveDtype::NAMES),
    ("LoraSpec", "target_modules", LoraTarget::NAMES),
    ("PolicyStepSpec", "save_dtype", SaveDtype::NAMES),
    ("RrhfSpec", "nll", Reduction::NAMES),
    ("DpoSpec", "pairing", PairingName::NAMES),
    ("DpoSpec", "log_ratio", Reduction::NAMES),
    ("DpoSpec", "reference", ReferencePolicy::NAMES),
    ("IpoSpec", "pairing", PairingName::NAMES),
    ("IpoSpec", "log_ratio", Reduction::NAMES),
    ("IpoSpec", "reference", ReferencePolicy::NAMES),
    ("GrpoSpec", "reference", ReferencePolicy::NAMES),
    ("GrpoSpec", "loss_type", GrpoLossType::NAMES),
    ("GrpoSpec", "importance_sampling_level", ImportanceSampling::NAMES),
    ("GrpoSpec", "scale_rewards", ScaleRewards::NAMES),
    ("RlooSpec", "reference", ReferencePolicy::NAMES),
    ("SimpoSpec", "pairing", PairingName::NAMES),
    ("EvaluationSpec", "gold", Gold::NAMES),
    ("EvaluationSpec", "metric_for_best_model", BestMetric::NAMES),
    ("ResourceSpec", "device", DeviceKind::NAMES),
    ("ResourceSpec", "precision", Precision::NAMES),
    ("ResourceSpec", "sharding", Sharding::NAMES),
    ("TrackerSpec", "report_to", ReportTo::NAMES),
];

/// The JSON Schema of the job file (draft 2020-12).
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let mut root = Map::from_iter([
        ("$schema".to_owned(), json!(DIALECT)),
        ("title".to_owned(), json!("Foil job file")),
    ]);
    root.extend(block(JOB_SPEC, &mut definitions));
    root.insert("type".to_owned(), json!("object"));
    root.insert("$defs".to_owned(), Value::Object(definitions));
    Value::Object(root)
}

/// The schema of a message; `definitions` receives those of the messages in it.
fn block(name: &str, definitions: &mut Map<String, Value>) -> Map<String, Value> {
    let mut schema = Map::new();
    let Some(message) = contract::message(name) else { return schema };
    describe(&mut schema, &message.comment);
    let mut properties = Map::new();
    let mut exclusions = Vec::new();
    for oneof in &message.oneofs {
        let members = contract::members(name, &oneof.name);
        exclusions.extend(members.iter().map(|member| exclusion(oneof, member, &members)));
        properties.insert(oneof.name.clone(), shorthand(oneof, &members));
    }
    properties.extend(message.fields.iter().map(|field| (field.name.clone(), property(name, field))));
    // An empty block in YAML is null, and means its defaults.
    schema.insert("type".to_owned(), json!(["object", "null"]));
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema.insert("additionalProperties".to_owned(), json!(false));
    if !exclusions.is_empty() {
        schema.insert("allOf".to_owned(), Value::Array(exclusions));
    }
    define(message, definitions);
    schema
}

/// Defines the messages in `message` that are not defined yet.
fn define(message: &Message, definitions: &mut Map<String, Value>) {
    for field in &message.fields {
        let Kind::Message(inner) = &field.kind else { continue };
        if definitions.contains_key(short(inner)) {
            continue;
        }
        definitions.insert(short(inner).to_owned(), Value::Null);
        let mut definition = Map::from_iter([("title".to_owned(), json!(title(short(inner))))]);
        definition.extend(block(inner, definitions));
        definitions.insert(short(inner).to_owned(), Value::Object(definition));
    }
}

/// The name of a message as its block is named: `policy_step` of `PolicyStepSpec`.
fn title(message: &str) -> String {
    let mut title = String::new();
    for letter in message.trim_end_matches("Spec").chars() {
        if letter.is_uppercase() && !title.is_empty() {
            title.push('_');
        }
        title.extend(letter.to_lowercase());
    }
    title
}

fn describe(schema: &mut Map<String, Value>, comment: &str) {
    if !comment.is_empty() {
        schema.insert("description".to_owned(), json!(comment));
    }
}

/// The shorthand of a `oneof`: the name of a member, which then has its defaults (`method: dpo`).
fn shorthand(oneof: &Oneof, members: &[&str]) -> Value {
    let mut schema = Map::new();
    describe(&mut schema, &oneof.comment);
    schema.insert("enum".to_owned(), or_null(members));
    Value::Object(schema)
}

/// A block for `member` excludes blocks for the other members, and a shorthand that names one.
fn exclusion(oneof: &Oneof, member: &str, members: &[&str]) -> Value {
    let mut others: Map<String, Value> = Map::new();
    others.insert(oneof.name.clone(), json!({ "enum": [member, null] }));
    let excluded = members.iter().filter(|other| **other != member);
    others.extend(excluded.map(|other| ((*other).to_owned(), json!({ "type": "null" }))));
    let given = Map::from_iter([(member.to_owned(), json!({ "type": "object" }))]);
    json!({ "if": { "required": [member], "properties": given }, "then": { "properties": others } })
}

fn property(message: &str, field: &Field) -> Value {
    let mut schema = Map::new();
    describe(&mut schema, field.about());
    let (mut single, mut items) = (value(message, field, true), value(message, field, false));
    if source_lists::is_list(message, &field.name) {
        let source = json!({ "$ref": "#/$defs/DataSourceSpec" });
        single = Map::from_iter([("anyOf".to_owned(), json!([single, source]))]);
        items = Map::from_iter([("anyOf".to_owned(), json!([items, source]))]);
    }
    if field.repeated {
        let max = bounds::max_items(message, &field.name);
        let list = json!({ "type": "array", "items": items, "maxItems": max });
        schema.insert("anyOf".to_owned(), json!([single, list]));
    } else {
        schema.extend(single);
    }
    Value::Object(schema)
}

/// The schema of one value of a field; null asks for the default.
fn value(message: &str, field: &Field, nullable: bool) -> Map<String, Value> {
    let types = |names: &[&str]| match nullable {
        true => json!([names, &["null"]].concat()),
        false => json!(names),
    };
    let choices = CHOICES.iter().find(|(of, name, _)| *of == short(message) && *name == field.name);
    let schema = match (&field.kind, choices) {
        (_, Some((.., names))) => json!({ "enum": if nullable { or_null(names) } else { json!(names) } }),
        (Kind::Message(inner), _) => json!({ "$ref": format!("#/$defs/{}", short(inner)) }),
        (Kind::Text, _) => json!({ "type": types(&["string"]) }),
        (Kind::Flag, _) => json!({ "type": types(&["boolean"]) }),
        (Kind::Count, _) => {
            let max = bounds::max_count(message, &field.name);
            json!({ "type": types(&["integer"]), "minimum": 0, "maximum": max })
        }
        (Kind::Integer, _) => {
            let names = or_null(Priority::NAMES);
            let range = json!({ "type": "integer", "minimum": Priority::MIN, "maximum": Priority::MAX });
            json!({ "anyOf": [{ "enum": names }, range] })
        }
        (Kind::Map, _) => {
            let max = bounds::max_items(message, &field.name);
            let length = match short(message) {
                "DataSourceSpec" => DataSource::COLUMN_BYTES,
                _ => Labels::VALUE_BYTES,
            };
            let text = json!({ "type": types(&["string"]), "maxLength": length });
            json!({ "type": types(&["object"]), "maxProperties": max, "additionalProperties": text })
        }
        (Kind::Real, _) => {
            let max = bounds::max_real(message, &field.name);
            json!({ "type": types(&["number", "string"]), "maximum": max, "pattern": NUMBER })
        }
    };
    match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

fn or_null(names: &[&str]) -> Value {
    names.iter().map(|name| json!(name)).chain([Value::Null]).collect()
}

#[cfg(test)]
mod tests;
