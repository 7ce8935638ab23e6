//! Evaluation of expressions.

use super::Error;
use super::arithmetic;
use super::ast::{Arguments, Comparison, Expr, Node};
use super::eval::Machine;
use super::functions::{Call, GLOBALS};
use super::value::{Dict, Function, Scope, Value};
use std::rc::Rc;

impl Machine {
    pub(super) fn eval(&self, expression: &Expr, scope: &Rc<Scope>) -> Result<Value, Error> {
        self.budget.steps(1)?;
        self.budget.deeper(|| self.node(&expression.node, scope)).map_err(|error| error.at(expression.line))
    }

    fn node(&self, node: &Node, scope: &Rc<Scope>) -> Result<Value, Error> {
        match node {
            Node::None => Ok(Value::None),
            Node::Bool(value) => Ok(Value::Bool(*value)),
            Node::Int(value) => Ok(Value::Int(*value)),
            Node::Float(value) => Ok(Value::Float(*value)),
            Node::Str(text) => self.string(text),
            Node::Name(name) => Ok(self.variable(name, scope)),
            Node::List(items) => self.list(self.all(items, scope)?),
            Node::Tuple(items) => self.tuple(self.all(items, scope)?),
            Node::Dict(entries) => {
                let mut dict = Dict::default();
                for (key, value) in entries {
                    let key = self.eval(key, scope)?;
                    self.insert(&mut dict, key, self.eval(value, scope)?)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            Node::Attribute(value, name) => self.attribute(&self.eval(value, scope)?, name),
            Node::Item(value, key) => {
                let value = self.eval(value, scope)?;
                self.item(&value, &self.eval(key, scope)?)
            }
            Node::Slice(value, parts) => {
                let value = self.eval(value, scope)?;
                let mut bounds = [Value::None, Value::None, Value::None];
                for (bound, part) in bounds.iter_mut().zip(parts) {
                    if let Some(part) = part {
                        *bound = self.eval(part, scope)?;
                    }
                }
                self.slice(&value, &bounds)
            }
            Node::Call(callee, arguments) => {
                let callee = self.eval(callee, scope)?;
                self.call(&callee, self.arguments(arguments, scope)?)
            }
            Node::Filter(value, filter) => {
                let value = self.eval(value, scope)?;
                let arguments = self.arguments(&filter.arguments, scope)?;
                self.filter(&filter.name, value, arguments)
            }
            Node::Test(value, test) => {
                let value = self.eval(value, scope)?;
                let arguments = self.arguments(&test.arguments, scope)?;
                Ok(Value::Bool(self.test(&test.name, &value, arguments)?))
            }
            _ => self.operation(node, scope),
        }
    }

    fn operation(&self, node: &Node, scope: &Rc<Scope>) -> Result<Value, Error> {
        match node {
            Node::Not(value) => Ok(Value::Bool(!self.eval(value, scope)?.truth())),
            Node::Negative(value) => {
                let value = self.eval(value, scope)?;
                arithmetic::negative(&value).unwrap_or_else(|| Err(bad_operand("-", &value)))
            }
            Node::Positive(value) => match self.eval(value, scope)? {
                Value::Bool(value) => Ok(Value::Int(value.into())),
                value if value.is_number() => Ok(value),
                value => Err(bad_operand("+", &value)),
            },
            Node::Binary(operator, left, right) => {
                let left = self.eval(left, scope)?;
                let right = self.eval(right, scope)?;
                self.binary(*operator, &left, &right)
            }
            Node::And(left, right) => match self.eval(left, scope)? {
                left if left.truth() => self.eval(right, scope),
                left => Ok(left),
            },
            Node::Or(left, right) => match self.eval(left, scope)? {
                left if left.truth() => Ok(left),
                _ => self.eval(right, scope),
            },
            Node::Compare(first, rest) => self.compare(first, rest, scope),
            Node::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let part = self.text(&self.eval(part, scope)?)?;
                    self.budget.bytes(part.len())?;
                    text.push_str(&part);
                }
                self.string(text)
            }
            Node::Conditional(value, condition, otherwise) => {
                match (self.eval(condition, scope)?.truth(), otherwise) {
                    (true, _) => self.eval(value, scope),
                    (false, Some(otherwise)) => self.eval(otherwise, scope),
                    (false, None) => Ok(Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined",
                    )),
                }
            }
            _ => Err(Error::unsupported("this expression")),
        }
    }

    fn variable(&self, name: &str, scope: &Rc<Scope>) -> Value {
        if let Some(value) = scope.get(name) {
            return value;
        }
        match GLOBALS.iter().find(|known| **known == name) {
            Some(builtin) => Value::Function(Rc::new(Function::Builtin(builtin))),
            None => Value::undefined(format!("'{name}' is undefined")),
        }
    }

    fn all(&self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>, Error> {
        items.iter().map(|item| self.eval(item, scope)).collect()
    }

    pub(super) fn arguments(&self, arguments: &Arguments, scope: &Rc<Scope>) -> Result<Call, Error> {
        let mut call = Call { positional: self.all(&arguments.positional, scope)?, named: Vec::new() };
        if let Some(splat) = &arguments.splat {
            call.positional.extend(self.items(&self.eval(splat, scope)?)?);
        }
        for (name, value) in &arguments.named {
            call.named.push((Rc::from(name.as_str()), self.eval(value, scope)?));
        }
        if let Some(splat) = &arguments.double_splat {
            let Value::Dict(dict) = self.eval(splat, scope)? else {
                return Err(Error::new("argument after ** must be a mapping"));
            };
            for (key, value) in dict.entries() {
                let Value::Str(name) = key else {
                    return Err(Error::new("keywords must be strings"));
                };
                call.named.push((Rc::clone(name), value.clone()));
            }
        }
        for (index, (name, _)) in call.named.iter().enumerate() {
            if call.named[..index].iter().any(|(other, _)| other == name) {
                return Err(Error::new(format!("the argument {name} is given twice")));
            }
        }
        Ok(call)
    }

    fn compare(&self, first: &Expr, rest: &[(Comparison, Expr)], scope: &Rc<Scope>) -> Result<Value, Error> {
        let mut left = self.eval(first, scope)?;
        for (comparison, right) in rest {
            let right = self.eval(right, scope)?;
            if !self.holds(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub(super) fn holds(&self, comparison: Comparison, left: &Value, right: &Value) -> Result<bool, Error> {
        self.budget.steps(left.parts().min(right.parts()))?;
        let order = |operator| left.order(right, operator);
        Ok(match comparison {
            Comparison::Eq => left.equals(right),
            Comparison::Ne => !left.equals(right),
            Comparison::Lt => order("<")?.is_some_and(std::cmp::Ordering::is_lt),
            Comparison::Le => order("<=")?.is_some_and(std::cmp::Ordering::is_le),
            Comparison::Gt => order(">")?.is_some_and(std::cmp::Ordering::is_gt),
            Comparison::Ge => order(">=")?.is_some_and(std::cmp::Ordering::is_ge),
            Comparison::In => self.contains(right, left)?,
            Comparison::NotIn => !self.contains(right, left)?,
        })
    }
}

pub(super) fn bad_operand(operator: &str, value: &Value) -> Error {
    match value {
        Value::Undefined(why) => Error::new(&**why),
        _ => Error::new(format!("bad operand type for unary {operator}: '{}'", value.type_name())),
    }
}
