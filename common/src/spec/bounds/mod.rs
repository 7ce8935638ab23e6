//! Upper bounds of all fields of a job file, by message and field of the wire contract.
//!
//! Numbers in the file determine how much memory or time something takes, so an absurd count, usually a typo,
//! must be refused when it is read. A field that is not listed has the bound of its type.

use foil_proto::v1;
use serde_json::Value;

use super::SpecError;
use super::check::path;
use super::contract::{self, Kind, short};
use super::scheduling::Labels;

const COUNT: u64 = 1_000_000_000;
const REAL: f64 = 1e6;
/// Maximum bytes of a text: the length of paths on Linux.
const TEXT: usize = 4096;
const LIST: usize = 4096;

const ANY: u64 = u32::MAX as u64;
const ROWS: u64 = 1_000_000;
const TOKENS: u64 = 1 << 20;
/// Maximum length of a part of a row, in tokens or characters.
const LENGTH: u64 = 1 << 30;
const EPOCHS: u64 = 1000;
const BATCH: u64 = 1 << 20;
const SAMPLES: u64 = 1024;
const WEEK: u64 = 7 * 24 * 3600;

const COUNTS: [(&str, &str, u64); 64] = [
    ("JobSpec", "seed", ANY),
    ("JobSpec", "rounds", 10_000),
    ("JobSpec", "retries", 100),
    ("TextSpec", "max_length", TOKENS),
    ("GeneratorSpec", "sft", ROWS),
    ("GeneratorSpec", "golden", ROWS),
    ("GeneratorSpec", "prompts", ROWS),
    ("GeneratorSpec", "evaluation", ROWS),
    ("GoldPreferencesSpec", "pairs", ROWS),
    ("GoldPreferencesSpec", "evaluation_pairs", ROWS),
    // A limit above the number of rows has no effect.
    ("LimitSpec", "preferences", ANY),
    ("LimitSpec", "golden", ANY),
    ("LimitSpec", "prompts", ANY),
    ("LimitSpec", "sft", ANY),
    ("LimitSpec", "evaluation_preferences", ANY),
    ("LimitSpec", "evaluation_prompts", ANY),
    ("DataSourceSpec", "limit", ANY),
    ("FilterSpec", "min_prompt_tokens", LENGTH),
    ("FilterSpec", "max_prompt_tokens", LENGTH),
    ("FilterSpec", "min_answer_tokens", LENGTH),
    ("FilterSpec", "max_answer_tokens", LENGTH),
    ("FilterSpec", "min_prompt_characters", LENGTH),
    ("FilterSpec", "max_prompt_characters", LENGTH),
    ("FilterSpec", "min_answer_characters", LENGTH),
    ("FilterSpec", "max_answer_characters", LENGTH),
    ("DeduplicationSpec", "ngram", 64),
    ("DataSourceSpec", "columns", 64),
    ("SamplingSpec", "top_k", 1 << 22),
    ("SamplingSpec", "max_new_tokens", TOKENS),
    ("SamplingSpec", "min_new_tokens", TOKENS),
    ("GenerationSpec", "chunk_prompts", 1 << 16),
    ("GenerationSpec", "max_num_seqs", 1 << 14),
    ("OptimizerSpec", "micro_batch_tokens", 1 << 24),
    ("ScheduleSpec", "warmup_steps", 100_000_000),
    ("SftStepSpec", "epochs", EPOCHS),
    ("SftStepSpec", "batch_sequences", BATCH),
    ("RewardStepSpec", "samples", SAMPLES),
    ("RewardStepSpec", "epochs", EPOCHS),
    ("RewardStepSpec", "batch_pairs", BATCH),
    ("LoraSpec", "rank", 1 << 12),
    ("PolicyStepSpec", "samples", SAMPLES),
    ("PolicyStepSpec", "epochs", EPOCHS),
    ("PolicyStepSpec", "batch_sequences", BATCH),
    ("EvaluationSpec", "kl_prompts", ROWS),
    ("ResourceSpec", "ranks", 4096),
    ("ResourceSpec", "threads_per_rank", 1024),
    ("ResourceSpec", "hang_timeout_seconds", WEEK),
    ("ResourceSpec", "checkpoint_steps", COUNT),
    ("ResourceSpec", "checkpoint_seconds", WEEK),
    ("ResourceSpec", "checkpoint_keep_steps", COUNT),
    // Maximum bytes of texts and lengths of lists.
    ("TextSpec", "template", 256 << 10),
    ("TextSpec", "eos_token", 256),
    ("TextSpec", "pad_token", 256),
    ("SamplingSpec", "stop", 64),
    ("OptimizerSpec", "betas", 2),
    ("LoraSpec", "target_modules", 16),
    ("PolicyStepSpec", "learning_rate", 10_000),
    ("JobSpec", "name", 63),
    ("JobSpec", "labels", Labels::MAX as u64),
    ("TrackerSpec", "report_to", 8),
    ("TrackerSpec", "experiment", 128),
    ("TrackerSpec", "run_name", 250),
    ("TrackerSpec", "logging_steps", 1_000_000),
    ("TrackerSpec", "num_completions", 64),
];

/// Maxima. Minima are checked when a field is parsed.
const REALS: [(&str, &str, f64); 8] = [
    ("SamplingSpec", "temperature", 100.0),
    ("SamplingSpec", "repetition_penalty", 100.0),
    ("SftStepSpec", "learning_rate", 100.0),
    ("RewardStepSpec", "learning_rate", 100.0),
    ("PolicyStepSpec", "learning_rate", 100.0),
    ("OptimizerSpec", "eps", 1.0),
    ("OptimizerSpec", "weight_decay", 1000.0),
    ("LoraSpec", "alpha", 1e5),
];

/// Refuses a specification with a number, a text or a list above its bound, or with NaN.
pub(super) fn check(wire: &v1::JobSpec) -> Result<(), SpecError> {
    let value = serde_json::to_value(wire).map_err(|error| SpecError::Syntax(error.to_string()))?;
    check_message("", contract::JOB_SPEC, &value)
}

fn check_message(at: &str, message: &str, value: &Value) -> Result<(), SpecError> {
    let Some(object) = value.as_object() else { return Ok(()) };
    for (name, value) in object {
        let Some(kind) = contract::kind(message, name) else { continue };
        let at = &path(at, name);
        let field = (short(message), name.as_str());
        match (kind, value) {
            (Kind::Message(inner), Value::Array(items)) => {
                at_most(at, items.len() as u64, count(field).unwrap_or(LIST as u64), "entries")?;
                for (index, item) in items.iter().enumerate() {
                    check_message(&format!("{at}[{index}]"), inner, item)?;
                }
            }
            (Kind::Message(inner), value) => check_message(at, inner, value)?,
            // Its texts are checked when it is parsed.
            (Kind::Map, Value::Object(entries)) => {
                at_most(at, entries.len() as u64, count(field).unwrap_or(LIST as u64), "entries")?;
            }
            (_, Value::Array(items)) => {
                at_most(at, items.len() as u64, count(field).unwrap_or(LIST as u64), "entries")?;
                for (index, item) in items.iter().enumerate() {
                    check_scalar(&format!("{at}[{index}]"), field, kind, item, TEXT as u64)?;
                }
            }
            (_, value) => check_scalar(at, field, kind, value, count(field).unwrap_or(TEXT as u64))?,
        }
    }
    Ok(())
}

fn check_scalar(
    at: &str,
    field: (&str, &str),
    kind: &Kind,
    value: &Value,
    max_length: u64,
) -> Result<(), SpecError> {
    match (kind, value) {
        (Kind::Count, value) => {
            let bound = count(field).unwrap_or(COUNT);
            match value.as_u64() {
                Some(found) if found <= bound => Ok(()),
                _ => Err(SpecError::field(at, value, &format!("at most {bound}"))),
            }
        }
        (Kind::Real, value) => check_real(at, field, value),
        (Kind::Text, Value::String(text)) => at_most(at, text.len() as u64, max_length, "bytes"),
        _ => Ok(()),
    }
}

/// Checks a real number; JSON represents NaN and infinity as text.
fn check_real(at: &str, field: (&str, &str), value: &Value) -> Result<(), SpecError> {
    let bound = real(field);
    match value.as_f64() {
        Some(found) if found.abs() <= bound => Ok(()),
        Some(found) => Err(SpecError::field(at, found, &format!("a number of at most {bound}"))),
        None => Err(SpecError::field(at, value.as_str().unwrap_or("nothing"), "a finite number")),
    }
}

fn at_most(at: &str, found: u64, bound: u64, unit: &str) -> Result<(), SpecError> {
    match found <= bound {
        true => Ok(()),
        false => Err(SpecError::field(at, format!("{found} {unit}"), &format!("at most {bound} {unit}"))),
    }
}

fn count(field: (&str, &str)) -> Option<u64> {
    COUNTS.iter().find(|(message, name, _)| (*message, *name) == field).map(|(.., bound)| *bound)
}

fn real(field: (&str, &str)) -> f64 {
    REALS.iter().find(|(message, name, _)| (*message, *name) == field).map_or(REAL, |(.., bound)| *bound)
}

/// The maximum of a number.
pub(super) fn max_count(message: &str, field: &str) -> u64 {
    count((short(message), field)).unwrap_or(COUNT)
}

/// The maximum magnitude of a real number.
pub(super) fn max_real(message: &str, field: &str) -> f64 {
    real((short(message), field))
}

/// The maximum number of entries of a list.
pub(super) fn max_items(message: &str, field: &str) -> u64 {
    count((short(message), field)).unwrap_or(LIST as u64)
}

#[cfg(test)]
mod tests;
