//! Filters of text.

use super::Error;
use super::arithmetic::integer;
use super::eval::Machine;
use super::functions::{Call, not_integer, required};
use super::strings;
use super::value::{Dict, Value};
use std::rc::Rc;

impl Machine {
    pub(super) fn text_filter(&self, name: &str, text: &str, call: Call) -> Result<Value, Error> {
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
                    let mut dict = Dict::default();
                    for (name, value) in call.named {
                        self.insert(&mut dict, Value::Str(name), value)?;
                    }
                    Value::Dict(Rc::new(dict))
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
        // As in Jinja2, a newline is appended, so that an empty text has one line.
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
}

/// The filter `title`: words begin after white space, hyphens and opening brackets.
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
