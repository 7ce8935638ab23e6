//! Calls of macros, of methods and of built-in functions.

use super::Error;
use super::arithmetic::integer;
use super::ast::Macro;
use super::clock;
use super::eval::Machine;
use super::value::{Dict, Function, Loop, Range, Scope, Value};
use std::rc::Rc;
use std::sync::Arc;

/// Evaluated arguments.
#[derive(Default)]
pub(super) struct Call {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

pub(super) const GLOBALS: [&str; 8] = [
    "range",
    "dict",
    "namespace",
    "raise_exception",
    "strftime_now",
    // Known to Jinja2; refused when called.
    "cycler",
    "joiner",
    "lipsum",
];

/// Maximum length of a range, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

impl Call {
    /// The arguments of these parameters; `None` for missing ones.
    pub(super) fn bind<const N: usize>(
        self,
        function: &str,
        parameters: [&str; N],
    ) -> Result<[Option<Value>; N], Error> {
        let mut bound = [const { None }; N];
        let given = self.positional.len();
        if given > N {
            return Err(Error::new(format!("{function} takes at most {N} arguments, not {given}")));
        }
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(index) = parameters.iter().position(|parameter| **parameter == *name) else {
                return Err(Error::new(format!("{function} takes no argument {name}")));
            };
            if bound[index].is_some() {
                return Err(Error::new(format!("{function} gets the argument {name} twice")));
            }
            bound[index] = Some(value);
        }
        Ok(bound)
    }
}

impl Machine {
    pub(super) fn call(&self, callee: &Value, call: Call) -> Result<Value, Error> {
        let Value::Function(function) = callee else {
            return Err(match callee {
                Value::Undefined(why) => Error::new(&**why),
                Value::Loop(state) => return self.recurse(state, call),
                _ => Error::new(format!("'{}' object is not callable", callee.type_name())),
            });
        };
        self.budget.deeper(|| match &**function {
            Function::Builtin(name) => self.builtin(name, call),
            Function::Method(value, name) => self.method(value, name, call),
            Function::Macro(definition, scope) => self.call_macro(definition, scope, call),
            Function::Loop(state, name) => self.loop_method(state, name, call),
        })
    }

    fn builtin(&self, name: &str, call: Call) -> Result<Value, Error> {
        match name {
            "range" => {
                let bounds: Option<Vec<i128>> = call.positional.iter().map(integer).collect();
                let range = match (bounds.as_deref(), call.named.is_empty()) {
                    (Some([stop]), true) => Range { start: 0, stop: *stop, step: 1 },
                    (Some([start, stop]), true) => Range { start: *start, stop: *stop, step: 1 },
                    (Some([_, _, 0]), true) => return Err(Error::new("range() arg 3 must not be zero")),
                    (Some([start, stop, step]), true) => Range { start: *start, stop: *stop, step: *step },
                    _ => return Err(Error::new("range takes one to three integers")),
                };
                let widest = [range.start, range.stop, range.step].iter().all(|bound| bound.abs() < 1 << 62);
                if !widest || range.len() > MAX_RANGE {
                    return Err(Error::new(format!("a range has more than {MAX_RANGE} numbers")));
                }
                Ok(Value::Range(range))
            }
            "dict" => Ok(Value::Dict(Rc::new(self.dict_of(call)?))),
            "namespace" => {
                let entries = self.dict_of(call)?;
                let mut named: Vec<(Rc<str>, Value)> = Vec::new();
                for (key, value) in entries.entries() {
                    let Value::Str(key) = key else {
                        return Err(Error::unsupported("a namespace with keys that are not strings"));
                    };
                    named.push((Rc::clone(key), value.clone()));
                }
                self.namespace(named)
            }
            "raise_exception" => {
                let [message] = call.bind(name, ["message"])?;
                Err(Error::new(self.text(&message.unwrap_or(Value::None))?))
            }
            "strftime_now" => match call.bind(name, ["format"])? {
                [Some(Value::Str(format))] => {
                    // A directive writes at most about thirty characters.
                    self.budget.bytes(format.len().saturating_mul(16))?;
                    self.string(clock::format(&format)?)
                }
                _ => Err(Error::new("strftime_now takes a format")),
            },
            _ => Err(Error::unsupported(format!("{name}()"))),
        }
    }

    /// Like `dict(other, name=value)`.
    fn dict_of(&self, call: Call) -> Result<Dict, Error> {
        let mut dict = Dict::default();
        match &call.positional[..] {
            [] => {}
            [Value::Dict(other)] => {
                for (key, value) in other.entries() {
                    self.insert(&mut dict, key.clone(), value.clone())?;
                }
            }
            [pairs] => {
                for pair in self.items(pairs)? {
                    let [key, value] = &self.items(&pair)?[..] else {
                        return Err(Error::new("dictionary update sequence element has length other than 2"));
                    };
                    self.insert(&mut dict, key.clone(), value.clone())?;
                }
            }
            _ => return Err(Error::new("dict expected at most 1 argument")),
        }
        for (name, value) in call.named {
            self.insert(&mut dict, Value::Str(name), value)?;
        }
        Ok(dict)
    }

    fn call_macro(&self, definition: &Arc<Macro>, scope: &Rc<Scope>, call: Call) -> Result<Value, Error> {
        let name = &definition.name;
        let inner = Scope::inner(scope);
        let count = definition.parameters.len();
        let mut positional = call.positional;
        let rest = positional.split_off(count.min(positional.len()));
        if !rest.is_empty() && !definition.takes_varargs {
            return Err(Error::new(format!("macro '{name}' takes not more than {count} argument(s)")));
        }
        let mut named = call.named;
        let caller = named.iter().position(|(known, _)| &**known == "caller").map(|at| named.remove(at).1);
        let mut given = positional.into_iter();
        for (parameter, default) in &definition.parameters {
            let by_name = named.iter().position(|(known, _)| **known == **parameter);
            let value = match (given.next(), by_name) {
                (Some(_), Some(_)) => {
                    return Err(Error::new(format!("macro '{name}' gets the argument {parameter} twice")));
                }
                (Some(value), None) => value,
                (None, Some(at)) => named.remove(at).1,
                (None, None) => match default {
                    Some(default) => self.eval(default, &inner)?,
                    None => Value::undefined(format!("parameter '{parameter}' was not provided")),
                },
            };
            inner.set(parameter, value);
        }
        if let Some((unknown, _)) = named.first().filter(|_| !definition.takes_kwargs) {
            return Err(Error::new(format!("macro '{name}' takes no keyword argument '{unknown}'")));
        }
        if definition.takes_kwargs {
            inner.set("kwargs", Value::Dict(Rc::new(self.dict_of(Call { positional: Vec::new(), named })?)));
        }
        if definition.takes_varargs {
            inner.set("varargs", self.tuple(rest)?);
        }
        match caller {
            Some(caller) if definition.takes_caller => inner.set("caller", caller),
            Some(_) => {
                return Err(Error::new(format!(
                    "macro '{name}' was invoked with a call block but uses no caller"
                )));
            }
            None if definition.takes_caller => {
                inner.set("caller", Value::undefined("No caller defined"));
            }
            None => {}
        }
        let mut out = String::new();
        self.block(&definition.body, &inner, &mut out)?;
        self.string(out)
    }

    /// `loop(…)` of a recursive loop.
    fn recurse(&self, state: &Rc<Loop>, call: Call) -> Result<Value, Error> {
        let Some(iteration) = &state.recursive else {
            return Err(Error::new("The loop must have the 'recursive' marker to be called recursively."));
        };
        let [over] = call.bind("loop", ["iterable"])?;
        let over = over.ok_or_else(|| Error::new("loop takes one argument"))?;
        let mut out = String::new();
        self.budget.deeper(|| self.iterate(iteration, &over, &state.scope, state.depth + 1, &mut out))?;
        self.string(out)
    }

    fn loop_method(&self, state: &Rc<Loop>, name: &str, call: Call) -> Result<Value, Error> {
        if name == "cycle" {
            return match call.positional.len() {
                0 => Err(Error::new("no items for cycling given")),
                count => Ok(call.positional[state.index.get() % count].clone()),
            };
        }
        let Value::Tuple(now) = self.tuple(call.positional)? else {
            return Ok(Value::None);
        };
        let before = state.changed.replace(Some(Rc::clone(&now)));
        let same = before.is_some_and(|before| Value::Tuple(before).equals(&Value::Tuple(now)));
        Ok(Value::Bool(!same))
    }
}

/// The arguments, all of which must be given.
pub(super) fn required<const N: usize>(
    values: [Option<Value>; N],
    function: &str,
) -> Result<[Value; N], Error> {
    let given: Option<Vec<Value>> = values.into_iter().collect();
    given
        .and_then(|given| given.try_into().ok())
        .ok_or_else(|| Error::new(format!("{function} misses an argument")))
}

pub(super) fn not_integer(value: &Value) -> Error {
    Error::new(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
}
