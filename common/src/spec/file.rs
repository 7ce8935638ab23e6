//! Reads a job file: YAML in protobuf's JSON mapping, overridden by `--set`.

use std::io;
use std::path::{Path, PathBuf};

use foil_proto::v1;
use serde_json::{Map, Value};

use super::contract::JOB_SPEC;
use super::preset::{self, merge};
use super::reference::is_stored;
use super::{Job, SpecError, schema, source_lists};
use crate::input_file;

/// The size of a job file, in bytes.
const SIZE_LIMIT: u64 = 4 << 20;

/// The fields that hold paths.
const PATHS: [&[&str]; 8] = [
    &["policy", "model"],
    &["reward", "model"],
    &["data", "preferences"],
    &["data", "golden"],
    &["data", "prompts"],
    &["data", "sft"],
    &["data", "evaluation", "preferences"],
    &["data", "evaluation", "prompts"],
];

/// Reads and validates a job file.
///
/// `settings` are `a.b=value` overrides whose values are YAML; the last one for a field wins. Paths in the
/// file become absolute from the file's directory, paths in settings from the working directory. The result
/// still names the preset, and [`Job::try_from`] applies the fields over it. A field of the file that
/// contradicts a control, or a preset named in `settings`, is an error unless a setting of that field says
/// which value holds.
pub fn load(path: &Path, settings: &[String]) -> Result<v1::JobSpec, SpecError> {
    let in_file = |error: SpecError| error.in_file(path);
    let text = input_file::read_text(path, SIZE_LIMIT).map_err(|error| in_file(unreadable(&error)))?;
    let base = absolute(path.parent().unwrap_or(Path::new(""))).map_err(in_file)?;
    let here = absolute(Path::new("")).map_err(in_file)?;
    let mut over = Value::Object(Map::new());
    for setting in settings {
        merge(&mut over, parse_setting(setting, &here).map_err(|error| error.in_setting(setting))?);
    }
    let file = parse(&text, &base).map_err(in_file)?;
    preset::keep_choices(&file, settings).map_err(in_file)?;
    read(file, over).map_err(in_file)
}

/// Reads and validates the text of a job file in the directory `base`, an absolute path.
pub fn from_text(text: &str, base: &Path) -> Result<v1::JobSpec, SpecError> {
    read(parse(text, base)?, Value::Object(Map::new()))
}

fn read(file: Value, over: Value) -> Result<v1::JobSpec, SpecError> {
    let mut value = preset::settle(file, &over)?;
    merge(&mut value, over);
    drop_nulls(&mut value);
    let lifted = value.get_mut("data").map(source_lists::lift).unwrap_or_default();
    let spec: v1::JobSpec =
        serde_json::from_value(value).map_err(|error| SpecError::Syntax(error.to_string()))?;
    Job::try_from(spec.clone()).map_err(|error| error.renamed(|field| lifted.written(field)))?;
    Ok(spec)
}

fn unreadable(error: &io::Error) -> SpecError {
    SpecError::Read(match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })
}

fn absolute(path: &Path) -> Result<PathBuf, SpecError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::path::absolute(path).map_err(|error| unreadable(&error))
}

fn parse(text: &str, base: &Path) -> Result<Value, SpecError> {
    let mut value = schema::normalize("", JOB_SPEC, yaml(text)?)?;
    if value.is_null() {
        value = Value::Object(Map::new());
    }
    resolve_paths(&mut value, base);
    Ok(value)
}

fn parse_setting(setting: &str, here: &Path) -> Result<Value, SpecError> {
    let Some((field, text)) = setting.split_once('=') else {
        return Err(SpecError::Syntax("expected field=value, for example rounds=2".to_owned()));
    };
    let field = field.trim();
    let value = match yaml(text)? {
        // An empty text is valid where a text is expected; `null` asks for the default.
        Value::Null if text.trim() == "null" => Value::Null,
        _ if schema::is_text(field) && !text.trim_start().starts_with(['"', '\'']) => Value::from(text),
        value => value,
    };
    let nested = schema::names(field).into_iter().rev().fold(value, |value, name| {
        let mut object = Map::new();
        object.insert(name.to_owned(), value);
        Value::Object(object)
    });
    let mut value = schema::normalize("", JOB_SPEC, nested)?;
    resolve_paths(&mut value, here);
    Ok(value)
}

/// Maximum number of brackets open at the same time. The YAML parser takes time quadratic in their number.
const DEPTH_LIMIT: usize = 1000;

fn yaml(text: &str) -> Result<Value, SpecError> {
    if bracket_depth(text) > DEPTH_LIMIT {
        return Err(SpecError::Syntax(format!(
            "not YAML: more than {DEPTH_LIMIT} brackets are open at once"
        )));
    }
    let value: serde_norway::Value = serde_norway::from_str(text).map_err(|error| {
        let told = error.to_string();
        let key = told.split_once("duplicate entry with key \"");
        let key = key.and_then(|(_, rest)| rest.split_once('"')).map(|(key, _)| key);
        SpecError::Syntax(match key.and_then(|key| Some((key, lines_of_twice(text, key)?))) {
            Some((key, [first, second])) => {
                format!("line {second}: {key} is given twice, first in line {first}; keep one of them")
            }
            None => format!("not YAML: {told}"),
        })
    })?;
    to_json(value)
}

/// The lines, from 1, of a key that one block of a YAML text has twice.
fn lines_of_twice(text: &str, key: &str) -> Option<[usize; 2]> {
    let lines: Vec<(usize, &str)> =
        text.lines().map(|line| (line.len() - line.trim_start().len(), line.trim_start())).collect();
    let is_key = |text: &str| text.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
    let keys = lines.iter().enumerate().filter(|(_, (_, text))| is_key(text));
    keys.into_iter().find_map(|(first, (indent, _))| {
        let block = lines
            .iter()
            .enumerate()
            .skip(first + 1)
            .take_while(|(_, (other, text))| other >= indent || text.is_empty() || text.starts_with('#'));
        let second = block.into_iter().find(|(_, (other, text))| other == indent && is_key(text));
        second.map(|(second, _)| [first + 1, second + 1])
    })
}

/// The maximum number of brackets open at the same time, whether they are syntax or part of a text.
fn bracket_depth(text: &str) -> usize {
    let depths = text.bytes().scan(0usize, |depth, byte| {
        match byte {
            b'[' | b'{' => *depth += 1,
            b']' | b'}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    depths.max().unwrap_or(0)
}

/// Goes through YAML's own value type because it refuses a field given twice.
fn to_json(value: serde_norway::Value) -> Result<Value, SpecError> {
    use serde_norway::Value as Yaml;
    let wrong = |what: &str| SpecError::Syntax(format!("{what} has no place in a job file"));
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => Value::Bool(flag),
        Yaml::String(text) => Value::String(text),
        Yaml::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(whole), ..) => Value::from(whole),
            (_, Some(whole), _) => Value::from(whole),
            (.., Some(real)) if real.is_finite() => Value::from(real),
            _ => return Err(wrong(&number.to_string())),
        },
        Yaml::Sequence(items) => items.into_iter().map(to_json).collect::<Result<_, _>>()?,
        Yaml::Mapping(fields) => {
            let mut object = Map::new();
            for (name, value) in fields {
                let Yaml::String(name) = name else { return Err(wrong("a field whose name is not a text")) };
                object.insert(name, to_json(value)?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => return Err(wrong(&format!("the tag {}", tagged.tag))),
    })
}

fn resolve_paths(value: &mut Value, base: &Path) {
    for field in PATHS {
        let mut at = Some(&mut *value);
        for name in field {
            at = at.and_then(|value| value.get_mut(name));
        }
        match at {
            Some(Value::Array(items)) => items.iter_mut().for_each(|item| resolve(item, base)),
            Some(single) => resolve(single, base),
            None => {}
        }
    }
    let sources = value.get_mut("data").and_then(|data| data.get_mut("sources"));
    for source in sources.and_then(Value::as_array_mut).into_iter().flatten() {
        resolve(source, base);
    }
}

fn resolve(value: &mut Value, base: &Path) {
    match value {
        Value::String(text) if !text.is_empty() && !is_stored(text) => {
            *text = base.join(text.as_str()).to_string_lossy().into_owned();
        }
        // A data source.
        Value::Object(source) => {
            let files = source.get_mut("path").and_then(Value::as_array_mut);
            files.into_iter().flatten().for_each(|file| resolve(file, base));
        }
        _ => {}
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
