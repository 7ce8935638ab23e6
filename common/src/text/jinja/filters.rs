//! Filters: what stands behind `|`.

use super::Error;
use super::eval::Machine;
use super::functions::Call;
use super::json;
use super::methods::{not_integer, required};
use super::number::{self, integer};
use super::strings;
use super::value::{Value, View};
use std::cmp::Ordering;

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

/// Those that Jinja2 has and this engine has not.
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

/// Refuses a filter that there is not.
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
                    if !matches!(value, Value::Dict(_)) || super::methods::has(&value, &name) =>
                {
                    self.attribute(&value, &name)
                }
                // An attribute only, never an item.
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
                number::absolute(value).unwrap_or_else(|| Err(super::expression::bad_operand("abs()", value)))
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
                    _ => number::float(value),
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

    fn text_filter(&self, name: &str, text: &str, call: Call) -> Result<Value, Error> {
        match name {
            "lower" | "upper" | "capitalize" | "title" => {
                call.bind(name, [])?;
                self.string(match name {
                    "lower" => text.to_lowercase(),
                    "upper" => text.to_uppercase(),
                    "capitalize" => strings::capitalize(text),
                    _ => title(text),
                })
            }
            "trim" => {
                let [characters] = call.bind(name, ["chars"])?;
                self.string(self.strip(text, name, characters.as_ref())?)
            }
            "center" => {
                let [width] = call.bind(name, ["width"])?;
                let width = width.unwrap_or(Value::Int(80));
                let call = Call { positional: vec![width], named: Vec::new() };
                self.method(&Value::str(text), "center", call)
            }
            "indent" => self.indent(text, call),
            "replace" => {
                let [old, new, count] = call.bind(name, ["old", "new", "count"])?;
                let [old, new] = required([old, new], name)?;
                let old = self.string(self.text(&old)?)?;
                let new = self.string(self.text(&new)?)?;
                self.replace(text, &old, &new, count.as_ref())
            }
            "format" => {
                if !call.positional.is_empty() && !call.named.is_empty() {
                    return Err(Error::new("can't handle positional and keyword arguments at the same time"));
                }
                let arguments = if call.named.is_empty() {
                    self.tuple(call.positional)?
                } else {
                    let mut dict = super::value::Dict::default();
                    for (name, value) in call.named {
                        self.insert(&mut dict, Value::Str(name), value)?;
                    }
                    Value::Dict(std::rc::Rc::new(dict))
                };
                self.percent(text, &arguments)
            }
            "truncate" => self.truncate(text, call),
            _ => {
                call.bind(name, [])?;
                let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
                Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
            }
        }
    }

    fn indent(&self, text: &str, call: Call) -> Result<Value, Error> {
        let [width, first, blank] = call.bind("indent", ["width", "first", "blank"])?;
        let indention = match width {
            None => "    ".to_owned(),
            Some(Value::Str(indention)) => indention.to_string(),
            Some(width) => {
                let width = integer(&width).ok_or_else(|| not_integer(&width))?;
                let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
                self.budget.bytes(width)?;
                " ".repeat(width)
            }
        };
        let [first, blank] = [first, blank].map(|flag| flag.is_some_and(|flag| flag.truth()));
        // Python appends a newline, so that an empty text has a line.
        let text = format!("{text}\n");
        let lines = strings::lines(&text, false);
        self.budget.bytes(indention.len().saturating_mul(lines.len() + 1).saturating_add(text.len()))?;
        let mut out = String::new();
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                out.push('\n');
            }
            let indented = if index == 0 { first } else { blank || !line.is_empty() };
            if indented {
                out.push_str(&indention);
            }
            out.push_str(line);
        }
        self.string(out)
    }

    fn truncate(&self, text: &str, call: Call) -> Result<Value, Error> {
        let [length, kill, end, leeway] = call.bind("truncate", ["length", "killwords", "end", "leeway"])?;
        let number = |value: Option<Value>, default: i128| match value {
            None | Some(Value::None) => Ok(default),
            Some(value) => integer(&value).ok_or_else(|| not_integer(&value)),
        };
        let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
        let end = end.map_or(Ok("...".to_owned()), |end| self.text(&end))?;
        let end_length = end.chars().count() as i128;
        if length < end_length || leeway < 0 {
            return Err(Error::new(format!(
                "truncate expects a length of at least {end_length} and no negative leeway"
            )));
        }
        if text.chars().count() as i128 <= length + leeway {
            return self.string(text);
        }
        let cut = strings::slice(text, 0, (length - end_length) as usize);
        if kill.is_some_and(|kill| kill.truth()) {
            return self.string(format!("{cut}{end}"));
        }
        self.string(format!("{}{end}", cut.rsplit_once(' ').map_or(cut, |(words, _)| words)))
    }

    /// Views and generators as `items` gives them.
    pub(super) fn items_filter(&self, value: &Value) -> Result<Value, Error> {
        match value {
            Value::Undefined(_) => self.stream(Vec::new()),
            Value::Dict(dict) => self.stream(dict.view(View::Items)?),
            _ => Err(Error::new("Can only get item pairs from a mapping.")),
        }
    }
}

fn round(value: &Value, precision: usize, method: &str) -> Result<Value, Error> {
    let Some(float) = number::float(value) else {
        return Err(match value {
            Value::Undefined(why) => Error::new(&**why),
            _ => Error::new(format!("type {} doesn't define __round__ method", value.type_name())),
        });
    };
    match (method, integer(value)) {
        ("common", Some(value)) => Ok(Value::Int(value)),
        // Formatting rounds the exact value, half to even, as Python's round does.
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

/// The filter `title`: words begin behind white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut first = true;
    for character in text.chars() {
        if strings::is_space(character) || matches!(character, '-' | '(' | '{' | '[' | '<') {
            out.push(character);
            first = true;
        } else if first {
            out.extend(character.to_uppercase());
            first = false;
        } else {
            out.extend(character.to_lowercase());
        }
    }
    out
}

/// A stable sort whose comparison may fail.
pub(super) fn sort<T: Clone>(
    items: &mut Vec<T>,
    order: impl Fn(&T, &T) -> Result<Option<Ordering>, Error>,
) -> Result<(), Error> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for run in items.chunks(2 * width) {
            let (mut left, mut right) = run.split_at(width.min(run.len()));
            while let (Some(a), Some(b)) = (left.first(), right.first()) {
                if order(b, a)? == Some(Ordering::Less) {
                    merged.push(b.clone());
                    right = &right[1..];
                } else {
                    merged.push(a.clone());
                    left = &left[1..];
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        *items = merged;
        width *= 2;
    }
    Ok(())
}
