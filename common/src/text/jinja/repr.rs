//! Python's representation of values as text.

use super::Error;
use super::budget::Budget;
use super::value::{Value, View};
use std::fmt::Write;

/// Like `str(value)`.
pub(super) fn text(value: &Value, budget: &Budget) -> Result<String, Error> {
    match value {
        Value::Undefined(_) => Ok(String::new()),
        Value::Str(text) | Value::Safe(text) => Ok(text.to_string()),
        _ => repr(value, budget),
    }
}

/// Like `repr(value)`.
pub(super) fn repr(value: &Value, budget: &Budget) -> Result<String, Error> {
    let mut out = String::new();
    write(value, budget, &mut out)?;
    Ok(out)
}

fn write(value: &Value, budget: &Budget, out: &mut String) -> Result<(), Error> {
    budget.steps(1)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Str(text) => {
            budget.bytes(text.len())?;
            quote(text, out);
        }
        Value::List(items) => list(&items.values, ["[", "]"], budget, out)?,
        Value::Tuple(items) => {
            let end = if items.values.len() == 1 { ",)" } else { ")" };
            list(&items.values, ["(", end], budget, out)?;
        }
        Value::Dict(dict) => {
            out.push('{');
            for (index, (key, value)) in dict.entries().iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write(key, budget, out)?;
                out.push_str(": ");
                write(value, budget, out)?;
            }
            out.push('}');
        }
        Value::Range(range) if range.step == 1 => {
            out.push_str(&format!("range({}, {})", range.start, range.stop));
        }
        Value::Range(range) => {
            out.push_str(&format!("range({}, {}, {})", range.start, range.stop, range.step));
        }
        Value::View(view, dict) => {
            let open = match view {
                View::Keys => "dict_keys([",
                View::Values => "dict_values([",
                View::Items => "dict_items([",
            };
            list(&dict.view(*view)?, [open, "])"], budget, out)?;
        }
        _ => return Err(Error::unsupported(format!("printing an object of type {}", value.type_name()))),
    }
    Ok(())
}

fn list(values: &[Value], [open, close]: [&str; 2], budget: &Budget, out: &mut String) -> Result<(), Error> {
    out.push_str(open);
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(value, budget, out)?;
    }
    out.push_str(close);
    Ok(())
}

fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => {
                out.push('\\');
                out.push(quote);
            }
            _ if is_printable(character) => out.push(character),
            _ => {
                let code = character as u32;
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Like `str.isprintable` of one character.
pub(super) fn is_printable(character: char) -> bool {
    // The standard library exposes this only through escaping; after a letter it does not escape combining
    // characters.
    match character {
        '\\' | '\'' | '"' => true,
        _ => ["a", character.encode_utf8(&mut [0; 4])].concat().escape_debug().count() == 2,
    }
}

/// Like `repr` of a float: the shortest digits that read back.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        if plain.contains('.') { plain } else { format!("{plain}.0") }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}
