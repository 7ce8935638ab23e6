//! Methods of lists and dicts. Methods that would change a value are refused, as in transformers' sandbox.

use super::Error;
use super::eval::Machine;
use super::functions::{Call, required};
use super::value::{Dict, Value, View};
use std::rc::Rc;

impl Machine {
    pub(super) fn method(&self, value: &Value, name: &str, call: Call) -> Result<Value, Error> {
        match value {
            Value::Str(text) => self.str_method(text, name, call),
            Value::Dict(dict) => self.dict_method(dict, name, call),
            Value::List(items) | Value::Tuple(items) => match name {
                "copy" => Ok(value.clone()),
                "count" => {
                    let [wanted] = required(call.bind(name, ["value"])?, name)?;
                    self.budget.steps(items.values.len())?;
                    let count = items.values.iter().filter(|item| item.equals(&wanted)).count();
                    Ok(Value::Int(count as i128))
                }
                _ => {
                    let [wanted] = required(call.bind(name, ["value"])?, name)?;
                    self.budget.steps(items.values.len())?;
                    let found = items.values.iter().position(|item| item.equals(&wanted));
                    found
                        .map(|index| Value::Int(index as i128))
                        .ok_or_else(|| Error::new("value is not in list"))
                }
            },
            _ => Err(Error::unsupported(format!("{name}() of an object of type {}", value.type_name()))),
        }
    }

    fn dict_method(&self, dict: &Rc<Dict>, name: &str, call: Call) -> Result<Value, Error> {
        match name {
            "get" => {
                let [key, default] = call.bind(name, ["key", "default"])?;
                let [key] = required([key], name)?;
                key.check_hashable()?;
                self.budget.steps(dict.len())?;
                Ok(dict.get(&key).cloned().or(default).unwrap_or(Value::None))
            }
            "copy" => Ok(Value::Dict(Rc::clone(dict))),
            "keys" => Ok(Value::View(View::Keys, Rc::clone(dict))),
            "values" => Ok(Value::View(View::Values, Rc::clone(dict))),
            "items" => Ok(Value::View(View::Items, Rc::clone(dict))),
            _ => Err(Error::new(format!("{name}() changes a dict, which the sandbox forbids"))),
        }
    }
}
