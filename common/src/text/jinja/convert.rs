//! Conversion of JSON to values.

use super::Error;
use super::eval::Machine;
use super::value::{Dict, Value};
use std::rc::Rc;

impl Machine {
    pub(super) fn value_of(&self, value: &serde_json::Value) -> Result<Value, Error> {
        self.budget.steps(1)?;
        self.budget.deeper(|| match value {
            serde_json::Value::Null => Ok(Value::None),
            serde_json::Value::Bool(value) => Ok(Value::Bool(*value)),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(value) => Ok(Value::Int(value.into())),
                None => match number.as_u64() {
                    Some(value) => Ok(Value::Int(value.into())),
                    None => Ok(Value::Float(number.as_f64().unwrap_or(f64::NAN))),
                },
            },
            serde_json::Value::String(text) => self.string(text),
            serde_json::Value::Array(items) => {
                self.list(items.iter().map(|item| self.value_of(item)).collect::<Result<_, _>>()?)
            }
            serde_json::Value::Object(entries) => {
                let mut dict = Dict::default();
                for (key, value) in entries {
                    self.insert(&mut dict, Value::str(key), self.value_of(value)?)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
        })
    }
}
