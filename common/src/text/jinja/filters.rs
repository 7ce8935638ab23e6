//! Filters: `value | filter`.

use super::arithmetic::{self, integer};
use super::eval::Machine;
use super::functions::{Call, not_integer, required};
use super::value::{Value, View};
use super::{Error, attributes, json, number};

const NAMES: [&str; 43] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
];

/// Filters of Jinja2 that this engine does not have.
const UNSUPPORTED: [&str; 11] = [
    "e",
    "escape",
    "filesizeformat",
    "forceescape",
    "pprint",
    "random",
    "striptags",
    "urlencode",
    "urlize",
    "wordwrap",
    "xmlattr",
];

/// Refuses a filter that does not exist.
pub(super) fn check(name: &str) -> Result<(), Error> {
    if UNSUPPORTED.contains(&name) {
        return Err(Error::unsupported(format!("the filter {name}")));
    }
    match NAMES.contains(&name) {
        true => Ok(()),
        false => Err(Error::new(format!("no filter named '{name}'"))),
    }
}

/// Whether Jinja2 has this filter.
pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name) || UNSUPPORTED.contains(&name)
}

impl Machine {
    pub(super) fn filter(&self, name: &str, value: Value, call: Call) -> Result<Value, Error> {
        let kept = matches!(name, "safe" | "length" | "count" | "string" | "default" | "d");
        if matches!(value, Value::Safe(_)) && !kept {
            return Err(Error::unsupported(format!("the filter {name} on a string marked safe")));
        }
        match name {
            "default" | "d" => {
                let [default, boolean] = call.bind(name, ["default_value", "boolean"])?;
                let falsy = boolean.is_some_and(|boolean| boolean.truth()) && !value.truth();
                match value.is_undefined() || falsy {
                    true => Ok(default.unwrap_or_else(|| Value::str(""))),
                    false => Ok(value),
                }
            }
            "tojson" => self.to_json(&value, call),
            "string" => {
                call.bind(name, [])?;
                match value {
                    Value::Str(_) | Value::Safe(_) => Ok(value),
                    _ => self.string(self.text(&value)?),
                }
            }
            "safe" => {
                call.bind(name, [])?;
                Ok(Value::Safe(self.text(&value)?.into()))
            }
            "length" | "count" => {
                call.bind(name, [])?;
                let length = self.length(&value).ok_or_else(|| {
                    Error::new(format!("object of type '{}' has no len()", value.type_name()))
                })?;
                Ok(Value::Int(length as i128))
            }
            "abs" | "int" | "float" | "round" => self.numeric_filter(name, &value, call),
            "attr" => match required(call.bind(name, ["name"])?, name)? {
                [Value::Str(name)]
                    if !matches!(value, Value::Dict(_)) || attributes::has_method(&value, &name) =>
                {
                    self.attribute(&value, &name)
                }
                // Only an attribute, never an item.
                _ => Ok(Value::undefined("the object has no such attribute")),
            },
            "capitalize" | "lower" | "upper" | "title" | "trim" | "center" | "indent" | "replace"
            | "format" | "truncate" | "wordcount" => {
                if matches!(name, "indent" | "truncate") && !matches!(value, Value::Str(_)) {
                    return Err(Error::new(format!("{name} takes a string, not {}", value.type_name())));
                }
                let text = self.text(&value)?;
                self.budget.bytes(text.len())?;
                self.text_filter(name, &text, call)
            }
            _ => self.sequence_filter(name, &value, call),
        }
    }

    fn to_json(&self, value: &Value, call: Call) -> Result<Value, Error> {
        let [ascii, indent, separators, sorted] =
            call.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.to_string()),
            Some(width) => {
                let width = integer(&width).ok_or_else(|| not_integer(&width))?;
                let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
                self.budget.bytes(width)?;
                Some(" ".repeat(width))
            }
        };
        let separators = match separators {
            None | Some(Value::None) if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None | Some(Value::None) => (", ".to_owned(), ": ".to_owned()),
            Some(pair) => match &self.items(&pair)?[..] {
                [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
                _ => return Err(Error::new("tojson takes two separators")),
            },
        };
        let options = json::Options {
            ensure_ascii: ascii.is_some_and(|ascii| ascii.truth()),
            indent,
            separators,
            sort_keys: sorted.is_some_and(|sorted| sorted.truth()),
        };
        self.budget.steps(value.parts())?;
        self.string(json::dumps(value, &options, &self.budget)?)
    }

    fn numeric_filter(&self, name: &str, value: &Value, call: Call) -> Result<Value, Error> {
        match name {
            "abs" => {
                call.bind(name, [])?;
                arithmetic::absolute(value)
                    .unwrap_or_else(|| Err(super::expression::bad_operand("abs()", value)))
            }
            "int" => {
                let [default, base] = call.bind(name, ["default", "base"])?;
                let base = base.as_ref().map_or(Some(10), integer).and_then(|base| u32::try_from(base).ok());
                let base = base.filter(|base| (2..=36).contains(base));
                let base = base.ok_or_else(|| Error::unsupported("the filter int with this base"))?;
                let parsed = match value {
                    Value::Str(text) => match number::parse_integer(text, base) {
                        Some(value) => Some(value),
                        None => number::parse_float(text).and_then(number::truncate).transpose()?,
                    },
                    Value::Float(value) => number::truncate(*value).transpose()?,
                    Value::Undefined(why) => return Err(Error::new(&**why)),
                    _ => integer(value),
                };
                Ok(parsed.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
            }
            "float" => {
                let [default] = call.bind(name, ["default"])?;
                let parsed = match value {
                    Value::Str(text) => number::parse_float(text),
                    Value::Undefined(why) => return Err(Error::new(&**why)),
                    _ => arithmetic::float(value),
                };
                Ok(parsed.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
            }
            _ => {
                let [precision, method] = call.bind(name, ["precision", "method"])?;
                let precision = precision.as_ref().map_or(Some(0), integer);
                let precision = precision.and_then(|precision| usize::try_from(precision).ok());
                let precision = precision.filter(|precision| *precision <= 300);
                let precision = precision.ok_or_else(|| Error::unsupported("round with this precision"))?;
                let method = method.map_or(Ok("common".to_owned()), |method| self.text(&method))?;
                round(value, precision, &method)
            }
        }
    }

    /// The filter `items`.
    pub(super) fn items_filter(&self, value: &Value) -> Result<Value, Error> {
        match value {
            Value::Undefined(_) => self.stream(Vec::new()),
            Value::Dict(dict) => self.stream(dict.view(View::Items)?),
            _ => Err(Error::new("Can only get item pairs from a mapping.")),
        }
    }
}

fn round(value: &Value, precision: usize, method: &str) -> Result<Value, Error> {
    let Some(float) = arithmetic::float(value) else {
        return Err(match value {
            Value::Undefined(why) => Error::new(&**why),
            _ => Error::new(format!("type {} doesn't define __round__ method", value.type_name())),
        });
    };
    match (method, integer(value)) {
        ("common", Some(value)) => Ok(Value::Int(value)),
        // Formatting rounds the exact value half to even, like Python's round.
        ("common", None) if float.is_finite() => {
            Ok(Value::Float(format!("{float:.precision$}").parse().unwrap_or(float)))
        }
        ("common", None) => Ok(Value::Float(float)),
        ("ceil" | "floor", _) => {
            let scale = 10f64.powi(precision as i32);
            let scaled = float * scale;
            Ok(Value::Float(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / scale))
        }
        _ => Err(Error::new("method must be common, ceil or floor")),
    }
}
