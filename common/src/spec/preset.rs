//! Published settings that a job file can start from.

use foil_proto::v1;
use serde_json::{Value, json};

use super::SpecError;
use super::check::{self, unknown_choice};
use super::choice::choices;
use super::contract::{self, JOB_SPEC, Kind};
use super::schema;

choices! {
    /// A published setting to start from, or a control experiment.
    Preset:
    /// The paper's game with rejection sampling.
    #[default]
    PaperRjs = "paper-rjs",
    /// The paper's game with RRHF, its terms weighted as in the published code of RRHF.
    PaperRrhf = "paper-rrhf",
    /// The paper's game with DPO.
    PaperDpo = "paper-dpo",
    /// A reward model trained on human pairs once.
    StaticRm = "static-rm",
    /// One adversarial reward model from round 1, never refreshed.
    FrozenApo = "frozen-apo",
    /// A reward model retrained each round, on human pairs only.
    HumanOnlyRefresh = "human-only-refresh",
    /// A discriminator between golden answers and samples, without human pairs.
    Gail = "gail",
}

impl Preset {
    pub(crate) fn parse_optional(text: &str) -> Result<Option<Self>, SpecError> {
        match text {
            "" => Ok(None),
            name => Self::parse("", "preset", name)
                .map(Some)
                .map_err(|_| unknown_choice("", "preset", name, Self::NAMES)),
        }
    }

    /// Whether the fields it sets define it, so that a job that changes one of them is another experiment.
    /// The other presets are bases, whose fields a job file may change.
    pub fn is_control(self) -> bool {
        match self {
            Self::PaperRjs | Self::PaperRrhf | Self::PaperDpo => false,
            Self::StaticRm | Self::FrozenApo | Self::HumanOnlyRefresh | Self::Gail => true,
        }
    }

    /// The fields it sets, in the JSON mapping of `JobSpec`.
    pub(super) fn fields(self) -> Value {
        match self {
            Self::PaperRjs => paper(&json!({ "rejection": {} })),
            // github.com/GanjinZero/RRHF: 100 · ranking + token mean of −log p.
            Self::PaperRrhf => paper(&json!({ "rrhf": { "ranking_weight": 100.0, "nll": "mean" } })),
            Self::PaperDpo => paper(&json!({ "dpo": {} })),
            Self::StaticRm => json!({ "reward_step": { "apo_weight": 0.0, "refresh": "first_round" } }),
            Self::FrozenApo => json!({ "reward_step": { "apo_weight": 1.0, "refresh": "first_round" } }),
            Self::HumanOnlyRefresh => {
                json!({ "reward_step": { "apo_weight": 0.0, "refresh": "every_round" } })
            }
            Self::Gail => json!({ "reward_step": { "gail": {}, "human_weight": 0.0 } }),
        }
    }
}

/// Cheng et al. 2024, section 4 and appendix; warm-up and batch as in the reference code. `method` holds the
/// difference between its three policy methods.
fn paper(method: &Value) -> Value {
    let mut fields = json!({
        "rounds": 3,
        "text": { "max_length": 512, "truncation_side": "left" },
        "sampling": { "temperature": 1.2, "top_p": 1.0, "max_new_tokens": 256 },
        "reward_step": {
            "bradley_terry": {}, "apo_weight": 1.0, "human_weight": 1.0, "samples": 4, "start": "base",
            "refresh": "every_round", "learning_rate": 1e-6, "epochs": 1, "batch_pairs": 64,
            "schedule": { "warmup_steps": 100 }
        },
        "policy_step": {
            "samples": 4, "learning_rate": [5e-6, 2e-6, 9e-7], "epochs": 1, "batch_sequences": 64
        },
        "evaluation": {
            "sampling": { "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05 }
        }
    });
    merge(&mut fields, json!({ "policy_step": method }));
    fields
}

/// Reconciles a job file with its preset. `file` is the file, and `settings` are the command line's
/// overrides.
///
/// A field of the file must not contradict a control, nor any preset that the command line names: either
/// would give a job that does not do what its preset says. In a file, the fields override a base. A field
/// given on the command line overrides all of them. A control that the command line names keeps the settings
/// of the file's base.
///
/// # Errors
/// A field of the file that contradicts the preset.
pub(super) fn settle(file: Value, settings: &Value) -> Result<Value, SpecError> {
    let named = |value: &Value| match value.get("preset").and_then(Value::as_str) {
        Some(name) => Preset::parse_optional(name),
        None => Ok(None),
    };
    let (base, chosen) = (named(&file)?, named(settings)?);
    let replaced = is_given(settings, "preset");
    let Some(preset) = (if replaced { chosen } else { base }) else { return Ok(file) };
    if preset.is_control() || replaced {
        let mut stated = contradictions(preset, &file);
        stated.retain(|contradiction| !is_given(settings, &contradiction.path));
        refuse(preset, &stated)?;
    }
    match base {
        Some(base) if replaced && preset.is_control() => {
            let mut settled = base.fields();
            merge(&mut settled, preset.fields());
            merge(&mut settled, file);
            Ok(settled)
        }
        _ => Ok(file),
    }
}

/// Refuses a setting within a member of a `oneof`, such as `policy_step.grpo.beta`, if the file or its preset
/// chooses another member and no setting chooses this one: it would train by another method than the file
/// names.
pub(super) fn keep_choices(file: &Value, settings: &[String]) -> Result<(), SpecError> {
    let given: Vec<(&str, &str)> = settings.iter().filter_map(|setting| setting.split_once('=')).collect();
    let is_set = |path: &str| given.iter().any(|(field, _)| field.trim() == path);
    let named = given.iter().rev().find(|(field, _)| field.trim() == "preset").map(|(_, name)| name.trim());
    let fields = |name: &str| Preset::parse_optional(name).ok().flatten().map(Preset::fields);
    let mut chosen = json!({});
    let presets = [file.get("preset").and_then(Value::as_str), named];
    presets.into_iter().flatten().filter_map(fields).for_each(|fields| merge(&mut chosen, fields));
    merge(&mut chosen, file.clone());
    for (field, _) in &given {
        let names = schema::names(field.trim());
        let (mut at, mut message, mut block) = (String::new(), JOB_SPEC, &chosen);
        for name in &names[..names.len() - 1] {
            let inside = check::path(&at, name);
            if is_set(&inside) {
                break;
            }
            if let Some((oneof, others)) = contract::siblings(message, name)
                && let Some(own) =
                    others.iter().find(|other| block.get(other).is_some_and(|it| !it.is_null()))
                && !is_set(&check::path(&at, oneof))
            {
                let choice = check::path(&at, oneof);
                let expected = format!("a setting of {own}, which the job file chooses");
                let advice = format!("add --set {choice}={name} to use {name} instead");
                return Err(
                    SpecError::field(field.trim(), format!("a setting of {name}"), &expected).advice(&advice)
                );
            }
            (block, message, at) = (block.get(name).unwrap_or(&Value::Null), inner(message, name), inside);
        }
    }
    Ok(())
}

fn refuse(preset: Preset, stated: &[Contradiction]) -> Result<(), SpecError> {
    let Some((Contradiction { path, found, expected }, others)) = stated.split_first() else { return Ok(()) };
    let mut advice =
        format!("take it out of the file, or settle it with --set {path}=VALUE, which wins over both");
    if !others.is_empty() {
        let others = others
            .iter()
            .map(|Contradiction { path, found, expected }| format!("{path} ({found}, not {expected})"));
        advice +=
            &format!("; the file contradicts the preset in {} too", others.collect::<Vec<_>>().join(", "));
    }
    Err(SpecError::field(path, found, &format!("{expected}, as preset {preset} sets it")).advice(&advice))
}

/// A field whose value differs from a preset's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contradiction {
    pub(super) path: String,
    pub(super) found: String,
    pub(super) expected: String,
}

/// The fields of `given` whose values differ from those of `preset`. Fields that `given` leaves out
/// contradict nothing.
pub(super) fn contradictions(preset: Preset, given: &Value) -> Vec<Contradiction> {
    let mut found = Vec::new();
    contradict("", JOB_SPEC, &preset.fields(), given, &mut found);
    found
}

fn contradict(at: &str, message: &str, preset: &Value, given: &Value, found: &mut Vec<Contradiction>) {
    match (preset, given) {
        (_, Value::Null) => {}
        (Value::Object(fields), Value::Object(given)) => {
            let is_given = |name: &str| given.get(name).is_some_and(|value| !value.is_null());
            for (name, field) in fields {
                let siblings = contract::siblings(message, name);
                let other = siblings.and_then(|(oneof, others)| {
                    Some((oneof, others.into_iter().find(|other| is_given(other))?))
                });
                if let Some((oneof, other)) = other {
                    let (path, found_here) = (check::path(at, oneof), other.to_owned());
                    found.push(Contradiction { path, found: found_here, expected: name.clone() });
                    continue;
                }
                let path = check::path(at, name);
                contradict(
                    &path,
                    inner(message, name),
                    field,
                    given.get(name).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        (preset, given) if same(preset, given) => {}
        (preset, given) => {
            found.push(Contradiction { path: at.to_owned(), found: shown(given), expected: shown(preset) });
        }
    }
}

/// The value as a user would write it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string())
        }
        other => other.to_string(),
    }
}

/// Whether two values of one field mean the same: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

/// Whether a dotted path, or a block that contains it, is given. `null`, which asks for the default, is
/// given. A `oneof` is given by any of its members.
fn is_given(value: &Value, path: &str) -> bool {
    let (mut value, mut message) = (value, JOB_SPEC);
    for name in path.split('.') {
        match value.get(name) {
            None => return contract::members(message, name).iter().any(|member| value.get(member).is_some()),
            Some(Value::Null) => return true,
            Some(inner_value) => (value, message) = (inner_value, inner(message, name)),
        }
    }
    true
}

/// Applies the job's fields over those of its preset. Idempotent.
pub(crate) fn apply(wire: v1::JobSpec) -> Result<v1::JobSpec, SpecError> {
    let Some(preset) = Preset::parse_optional(&wire.preset)? else { return Ok(wire) };
    let syntax = |error: serde_json::Error| SpecError::Syntax(error.to_string());
    let mut merged = preset.fields();
    merge(&mut merged, serde_json::to_value(&wire).map_err(syntax)?);
    serde_json::from_value(merged).map_err(syntax)
}

/// Merges one job file over another: objects field by field, anything else as a whole. A member of a `oneof`
/// replaces the others.
pub(crate) fn merge(base: &mut Value, over: Value) {
    merge_message(JOB_SPEC, base, over);
}

fn merge_message(message: &str, base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                if let Some((_, others)) = contract::siblings(message, &name)
                    && !value.is_null()
                {
                    base.retain(|field, _| !others.contains(&field.as_str()));
                }
                merge_message(inner(message, &name), base.entry(name).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// The message that a field of `message` holds; empty if it holds none.
fn inner<'a>(message: &str, field: &str) -> &'a str {
    match contract::kind(message, field) {
        Some(Kind::Message(inner)) => inner,
        _ => "",
    }
}
