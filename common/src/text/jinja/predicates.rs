//! Tests: `value is test`.

use super::Error;
use super::arithmetic::integer;
use super::ast::Comparison;
use super::eval::Machine;
use super::functions::{Call, required};
use super::strings;
use super::value::Value;
use std::rc::Rc;

pub(super) const NAMES: [&str; 38] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// Refuses a test that does not exist.
pub(super) fn check(name: &str) -> Result<(), Error> {
    match NAMES.contains(&name) {
        true => Ok(()),
        false if name == "escaped" => Err(Error::unsupported("the test escaped")),
        false => Err(Error::new(format!("no test named '{name}'"))),
    }
}

impl Machine {
    pub(super) fn test(&self, name: &str, value: &Value, call: Call) -> Result<bool, Error> {
        let comparison = match name {
            "eq" | "equalto" | "==" => Some(Comparison::Eq),
            "ne" | "!=" => Some(Comparison::Ne),
            "lt" | "lessthan" | "<" => Some(Comparison::Lt),
            "le" | "<=" => Some(Comparison::Le),
            "gt" | "greaterthan" | ">" => Some(Comparison::Gt),
            "ge" | ">=" => Some(Comparison::Ge),
            "in" => Some(Comparison::In),
            _ => None,
        };
        if let Some(comparison) = comparison {
            let [other] = required(call.bind(name, ["other"])?, name)?;
            return self.holds(comparison, value, &other);
        }
        match name {
            "divisibleby" => {
                let [number] = required(call.bind(name, ["num"])?, name)?;
                return Ok(integer(&self.binary(super::ast::Operator::Mod, value, &number)?) == Some(0));
            }
            "sameas" => {
                let [other] = required(call.bind(name, ["other"])?, name)?;
                return same(value, &other);
            }
            _ => {}
        }
        check(name)?;
        call.bind(name, [])?;
        Ok(match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.is_number(),
            "string" => matches!(value, Value::Str(_) | Value::Safe(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            // Everything with a length and an index, including dicts, strings and undefined values.
            "sequence" => matches!(
                value,
                Value::Undefined(_)
                    | Value::Str(_)
                    | Value::Safe(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Range(_)
            ),
            "iterable" => !matches!(
                value,
                Value::None
                    | Value::Bool(_)
                    | Value::Int(_)
                    | Value::Float(_)
                    | Value::Function(_)
                    | Value::Namespace(_)
            ),
            "callable" => matches!(value, Value::Function(_) | Value::Undefined(_) | Value::Loop(_)),
            "lower" => strings::has_case(&self.text(value)?, false),
            "upper" => strings::has_case(&self.text(value)?, true),
            "even" | "odd" => {
                let rest = self.binary(super::ast::Operator::Mod, value, &Value::Int(2))?;
                rest.equals(&Value::Int(if name == "odd" { 1 } else { 0 }))
            }
            "filter" => match value {
                Value::Str(name) => super::filters::exists(name),
                _ => false,
            },
            "test" => match value {
                Value::Str(name) => check(name).is_ok() || **name == *"escaped",
                _ => false,
            },
            _ => return Err(Error::new(format!("no test named '{name}'"))),
        })
    }
}

/// Like `is` in Python, if the result does not depend on which values the interpreter interns.
fn same(value: &Value, other: &Value) -> Result<bool, Error> {
    Ok(match (value, other) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        _ if std::mem::discriminant(value) != std::mem::discriminant(other) => false,
        _ => return Err(Error::unsupported(format!("sameas on objects of type {}", value.type_name()))),
    })
}
