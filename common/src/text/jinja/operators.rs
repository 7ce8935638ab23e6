//! Operators, subscripts and iteration.

use super::Error;
use super::arithmetic::{self, integer};
use super::ast::Operator;
use super::eval::Machine;
use super::value::{Function, Loop, Value};
use super::{attributes, strings};
use std::rc::Rc;

impl Machine {
    pub(super) fn binary(&self, operator: Operator, left: &Value, right: &Value) -> Result<Value, Error> {
        if let Some(result) = arithmetic::binary(operator, left, right) {
            return result;
        }
        match (operator, left, right) {
            (_, Value::Undefined(why), _) | (Operator::Add, _, Value::Undefined(why)) => {
                return Err(Error::new(&**why));
            }
            (Operator::Mod, Value::Str(format), arguments) => return self.percent(format, arguments),
            (_, _, Value::Undefined(why)) => return Err(Error::new(&**why)),
            (Operator::Add, Value::Str(left), Value::Str(right)) => {
                self.budget.bytes(left.len() + right.len())?;
                return self.string([&**left, &**right].concat());
            }
            (Operator::Add, Value::List(left), Value::List(right)) => {
                self.room_for(left.values.len() + right.values.len())?;
                return self.list([&left.values[..], &right.values[..]].concat());
            }
            (Operator::Add, Value::Tuple(left), Value::Tuple(right)) => {
                self.room_for(left.values.len() + right.values.len())?;
                return self.tuple([&left.values[..], &right.values[..]].concat());
            }
            (Operator::Mul, value, count) | (Operator::Mul, count, value)
                if integer(count).is_some() && !value.is_number() =>
            {
                if let Some(result) = self.repeated(value, integer(count).unwrap_or(0)) {
                    return result;
                }
            }
            _ => {}
        }
        if operator == Operator::Add
            && let Some(sum) = self.marked_safe(left, right)
        {
            return sum;
        }
        if matches!(left, Value::Safe(_)) || matches!(right, Value::Safe(_)) {
            return Err(Error::unsupported("an operator on a string marked safe"));
        }
        let sign = match operator {
            Operator::Add => "+",
            Operator::Sub => "-",
            Operator::Mul => "*",
            Operator::Div => "/",
            Operator::FloorDiv => "//",
            Operator::Mod => "%",
            Operator::Pow => "**",
        };
        Err(Error::new(format!(
            "unsupported operand type(s) for {sign}: '{}' and '{}'",
            left.type_name(),
            right.type_name()
        )))
    }

    /// Concatenation with a string marked safe: MarkupSafe escapes the other one for HTML, even if templates
    /// escape nothing.
    fn marked_safe(&self, left: &Value, right: &Value) -> Option<Result<Value, Error>> {
        let joined = match (left, right) {
            (Value::Safe(left), Value::Safe(right)) => [&**left, &**right].concat(),
            (Value::Safe(left), Value::Str(right)) => [&**left, &escaped(right)].concat(),
            (Value::Str(left), Value::Safe(right)) => [&escaped(left), &**right].concat(),
            _ => return None,
        };
        Some(self.budget.bytes(2 * joined.len()).map(|()| Value::Safe(joined.into())))
    }

    /// Repetition of a string or a list.
    fn repeated(&self, value: &Value, count: i128) -> Option<Result<Value, Error>> {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        Some(match value {
            Value::Str(text) => self
                .budget
                .bytes(text.len().saturating_mul(count))
                .and_then(|()| self.string(text.repeat(count))),
            Value::List(items) | Value::Tuple(items) => {
                let length = items.values.len();
                self.room_for(length.saturating_mul(count)).and_then(|()| {
                    let all: Vec<Value> =
                        std::iter::repeat_n(&items.values, if length == 0 { 0 } else { count })
                            .flatten()
                            .cloned()
                            .collect();
                    if matches!(value, Value::List(_)) { self.list(all) } else { self.tuple(all) }
                })
            }
            _ => return None,
        })
    }

    /// Like `needle in value`.
    pub(super) fn contains(&self, value: &Value, needle: &Value) -> Result<bool, Error> {
        match value {
            Value::Str(text) | Value::Safe(text) => match needle {
                Value::Str(needle) | Value::Safe(needle) => {
                    self.budget.steps(text.len() / 64)?;
                    Ok(text.contains(&**needle))
                }
                Value::Undefined(why) => Err(Error::new(&**why)),
                _ => Err(Error::new(format!(
                    "'in <string>' requires string as left operand, not {}",
                    needle.type_name()
                ))),
            },
            Value::Dict(dict) => {
                needle.check_hashable()?;
                self.budget.steps(dict.len())?;
                Ok(dict.get(needle).is_some())
            }
            Value::Stream(stream) => {
                // Consumes the stream up to the match, like Python.
                while let Some(item) = stream.items.values.get(stream.read.get()) {
                    stream.read.set(stream.read.get() + 1);
                    self.budget.steps(1)?;
                    if item.equals(needle) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => {
                let items = self.items(value)?;
                Ok(items.iter().any(|item| item.equals(needle)))
            }
        }
    }

    /// The items of an iteration. A stream is empty afterwards.
    pub(super) fn items(&self, value: &Value) -> Result<Vec<Value>, Error> {
        match value {
            Value::Undefined(_) => Ok(Vec::new()),
            Value::Str(text) | Value::Safe(text) => {
                self.room_for(text.chars().count())?;
                Ok(text.chars().map(|character| Value::str(character.encode_utf8(&mut [0; 4]))).collect())
            }
            Value::List(items) | Value::Tuple(items) => {
                self.room_for(items.values.len())?;
                Ok(items.values.clone())
            }
            Value::Dict(dict) => {
                self.room_for(dict.len())?;
                dict.view(super::value::View::Keys)
            }
            Value::View(view, dict) => {
                self.room_for(3 * dict.len())?;
                dict.view(*view)
            }
            Value::Range(range) => {
                self.room_for(range.len())?;
                Ok((0..range.len()).map(|index| Value::Int(range.get(index))).collect())
            }
            Value::Stream(stream) => {
                let read = stream.read.replace(stream.items.values.len());
                let rest = &stream.items.values[read..];
                self.room_for(rest.len())?;
                Ok(rest.to_vec())
            }
            Value::Loop(_) => Err(Error::unsupported("iterating over loop")),
            _ => Err(Error::new(format!("'{}' object is not iterable", value.type_name()))),
        }
    }

    /// Like `len(value)`; `None` if it has none.
    pub(super) fn length(&self, value: &Value) -> Option<usize> {
        Some(match value {
            Value::Undefined(_) => 0,
            Value::Str(text) | Value::Safe(text) => text.chars().count(),
            Value::List(items) | Value::Tuple(items) => items.values.len(),
            Value::Dict(dict) | Value::View(_, dict) => dict.len(),
            Value::Range(range) => range.len(),
            Value::Loop(state) => state.items.values.len(),
            _ => return None,
        })
    }

    /// Like `value.name`: a method or attribute, else an item.
    pub(super) fn attribute(&self, value: &Value, name: &str) -> Result<Value, Error> {
        let method = || Value::Function(Rc::new(Function::Method(value.clone(), Rc::from(name))));
        match value {
            Value::Undefined(why) => Err(Error::new(&**why)),
            _ if attributes::has_method(value, name) => {
                self.budget.bytes(64)?;
                Ok(method())
            }
            Value::Dict(dict) => {
                self.budget.steps(dict.len())?;
                Ok(dict.text(name).cloned().unwrap_or_else(|| missing(value, name)))
            }
            Value::Namespace(namespace) => {
                let entries = namespace.entries.borrow();
                let found = entries.iter().find(|(known, _)| **known == *name);
                Ok(found.map_or_else(|| missing(value, name), |(_, value)| value.clone()))
            }
            Value::Loop(state) => Ok(loop_attribute(state, name).unwrap_or_else(|| missing(value, name))),
            Value::Function(function) => match (&**function, name) {
                (Function::Macro(definition, _), "name") => self.string(&definition.name),
                // Python reads `dict.x` as the generic type `dict["x"]`, which creates dicts too.
                (Function::Builtin("dict"), _) if !attributes::dict_type_has(name) => Ok(value.clone()),
                // Python's built-in functions and methods have only hidden attributes.
                (Function::Method(..), _) if !name.starts_with('_') => Ok(missing(value, name)),
                _ => Err(Error::unsupported(format!("the attribute {name} of a function"))),
            },
            Value::Safe(_) => Err(Error::unsupported(format!("{name} of a string marked safe"))),
            _ if attributes::is_unsupported(value, name) => Err(Error::unsupported(format!(
                "the attribute {name} of an object of type {}",
                value.type_name()
            ))),
            _ => Ok(missing(value, name)),
        }
    }

    /// Like `value[key]`: an item, else an attribute.
    pub(super) fn item(&self, value: &Value, key: &Value) -> Result<Value, Error> {
        let found = match (value, key) {
            (Value::Undefined(why), _) => return Err(Error::new(&**why)),
            (Value::Dict(dict), _) => {
                self.budget.steps(dict.len())?;
                dict.get(key).cloned()
            }
            (Value::Str(text), _) if integer(key).is_some() => {
                self.budget.steps(text.len() / 64)?;
                let index = position(text.chars().count(), integer(key).unwrap_or(0));
                index.map(|index| Value::str(strings::slice(text, index, index + 1)))
            }
            (Value::List(items) | Value::Tuple(items), _) => integer(key)
                .and_then(|index| position(items.values.len(), index))
                .map(|index| items.values[index].clone()),
            (Value::Range(range), _) => integer(key)
                .and_then(|index| position(range.len(), index))
                .map(|index| Value::Int(range.get(index))),
            (Value::Safe(_), _) => return Err(Error::unsupported("an index into a string marked safe")),
            _ => None,
        };
        match (found, key) {
            (Some(found), _) => Ok(found),
            (None, Value::Str(name))
                if !matches!(value, Value::Dict(_)) || attributes::has_method(value, name) =>
            {
                self.attribute(value, name)
            }
            (None, _) => Ok(missing(value, &super::repr::repr(key, &self.budget)?)),
        }
    }

    /// Like `value[start:stop:step]`.
    pub(super) fn slice(&self, value: &Value, bounds: &[Value; 3]) -> Result<Value, Error> {
        let mut parts = [None; 3];
        for (part, bound) in parts.iter_mut().zip(bounds) {
            *part = match bound {
                Value::None => None,
                Value::Undefined(why) => return Err(Error::new(&**why)),
                _ => Some(integer(bound).ok_or_else(|| {
                    Error::new("slice indices must be integers or None or have an __index__ method")
                })?),
            };
        }
        let [start, stop, step] = parts;
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(Error::new("slice step cannot be zero"));
        }
        let pick = |length: usize| indices(length as i128, start, stop, step);
        match value {
            Value::Str(text) => {
                let characters: Vec<char> = text.chars().collect();
                self.budget.bytes(5 * characters.len())?;
                let picked: String = pick(characters.len()).map(|index| characters[index]).collect();
                self.string(picked)
            }
            Value::List(items) => {
                self.list(pick(items.values.len()).map(|index| items.values[index].clone()).collect())
            }
            Value::Tuple(items) => {
                self.tuple(pick(items.values.len()).map(|index| items.values[index].clone()).collect())
            }
            Value::Undefined(why) => Err(Error::new(&**why)),
            Value::Range(_) | Value::Safe(_) => {
                Err(Error::unsupported(format!("a slice of an object of type {}", value.type_name())))
            }
            _ => Err(Error::new(format!("'{}' object is not subscriptable", value.type_name()))),
        }
    }
}

/// Like `markupsafe.escape`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

fn missing(value: &Value, name: &str) -> Value {
    Value::undefined(match value {
        Value::None => format!("'None' has no attribute '{name}'"),
        _ => format!("'{}' object has no attribute '{name}'", value.type_name()),
    })
}

/// The position of an index, which may count from the end.
pub(super) fn position(length: usize, index: i128) -> Option<usize> {
    let length = length as i128;
    let index = if index < 0 { index.checked_add(length)? } else { index };
    (0..length).contains(&index).then_some(index as usize)
}

/// The indices of a slice, as `slice.indices`.
fn indices(length: i128, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp =
        |bound: i128| if bound < 0 { (bound.saturating_add(length)).max(low) } else { bound.min(high) };
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    std::iter::successors(Some(start), move |at| at.checked_add(step))
        .take_while(move |at| if step > 0 { *at < stop } else { *at > stop })
        .map(|at| at as usize)
}

fn loop_attribute(state: &Rc<Loop>, name: &str) -> Option<Value> {
    let (index, length) = (state.index.get(), state.items.values.len());
    let number = |value: usize| Value::Int(value as i128);
    let method = |name| Value::Function(Rc::new(Function::Loop(Rc::clone(state), name)));
    let neighbor = |value: Option<&Value>, why: &str| value.cloned().unwrap_or_else(|| Value::undefined(why));
    Some(match name {
        "index" => number(index + 1),
        "index0" => number(index),
        "revindex" => number(length - index),
        "revindex0" => number(length - index - 1),
        "first" => Value::Bool(index == 0),
        "last" => Value::Bool(index + 1 == length),
        "length" => number(length),
        "depth" => number(state.depth + 1),
        "depth0" => number(state.depth),
        "previtem" => neighbor(
            index.checked_sub(1).and_then(|before| state.items.values.get(before)),
            "there is no previous item",
        ),
        "nextitem" => neighbor(state.items.values.get(index + 1), "there is no next item"),
        "cycle" => method("cycle"),
        "changed" => method("changed"),
        _ => return None,
    })
}
