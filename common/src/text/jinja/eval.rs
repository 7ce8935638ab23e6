//! Execution of statements.

use super::Error;
use super::ast::{Filter, For, Macro, Node, Statement, Target};
use super::budget::Budget;
use super::repr;
use super::value::{Dict, Function, Items, Loop, Namespace, Scope, Value};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// The interpreter of one rendering.
pub(super) struct Machine {
    pub(super) budget: Budget,
    /// Values that may hold themselves; they are dropped at the end.
    namespaces: RefCell<Vec<Rc<Namespace>>>,
    closures: RefCell<Vec<Rc<Scope>>>,
}

/// The end of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// Cost of a value in addition to its text.
const OVERHEAD: usize = 32;

impl Machine {
    pub(super) fn new(budget: Budget) -> Self {
        Machine { budget, namespaces: RefCell::default(), closures: RefCell::default() }
    }

    /// Breaks reference cycles of the values created.
    pub(super) fn release(&self) {
        for namespace in self.namespaces.take() {
            namespace.entries.take();
        }
        for scope in self.closures.take() {
            scope.clear();
        }
    }

    pub(super) fn string(&self, text: impl AsRef<str>) -> Result<Value, Error> {
        let text = text.as_ref();
        self.budget.bytes(text.len() + OVERHEAD)?;
        Ok(Value::str(text))
    }

    pub(super) fn list(&self, values: Vec<Value>) -> Result<Value, Error> {
        self.room_for(values.len())?;
        Value::list(values)
    }

    pub(super) fn tuple(&self, values: Vec<Value>) -> Result<Value, Error> {
        self.room_for(values.len())?;
        Value::tuple(values)
    }

    pub(super) fn stream(&self, values: Vec<Value>) -> Result<Value, Error> {
        self.room_for(values.len())?;
        Value::stream(values)
    }

    /// Charges this many values to the budget.
    pub(super) fn room_for(&self, values: usize) -> Result<(), Error> {
        self.budget.steps(values)?;
        self.budget.bytes(values.saturating_add(1).saturating_mul(OVERHEAD))
    }

    pub(super) fn insert(&self, dict: &mut Dict, key: Value, value: Value) -> Result<(), Error> {
        self.budget.steps(dict.len() + 1)?;
        self.budget.bytes(3 * OVERHEAD)?;
        dict.insert(key, value)
    }

    pub(super) fn namespace(&self, entries: Vec<(Rc<str>, Value)>) -> Result<Value, Error> {
        self.room_for(2 * entries.len() + 4)?;
        let namespace = Rc::new(Namespace { entries: RefCell::new(entries) });
        self.namespaces.borrow_mut().push(Rc::clone(&namespace));
        Ok(Value::Namespace(namespace))
    }

    pub(super) fn text(&self, value: &Value) -> Result<String, Error> {
        repr::text(value, &self.budget)
    }

    fn write(&self, out: &mut String, text: &str) -> Result<(), Error> {
        self.budget.bytes(text.len())?;
        out.push_str(text);
        Ok(())
    }

    pub(super) fn block(
        &self,
        body: &[Statement],
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<Flow, Error> {
        for statement in body {
            self.budget.steps(1)?;
            let flow = self.budget.deeper(|| self.statement(statement, scope, out))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Renders a block in a new scope.
    fn captured(&self, body: &[Statement], scope: &Rc<Scope>) -> Result<String, Error> {
        let mut out = String::new();
        self.block(body, &Scope::inner(scope), &mut out)?;
        Ok(out)
    }

    fn statement(&self, statement: &Statement, scope: &Rc<Scope>, out: &mut String) -> Result<Flow, Error> {
        match statement {
            Statement::Text(text) => self.write(out, text)?,
            Statement::Emit(value) => {
                let text = self.text(&self.eval(value, scope)?).map_err(|error| error.at(value.line))?;
                self.write(out, &text)?;
            }
            Statement::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.truth() {
                        return self.block(body, scope, out);
                    }
                }
                return self.block(otherwise, scope, out);
            }
            Statement::For(iteration) => {
                let over = self.eval(&iteration.over, scope)?;
                return self
                    .iterate(iteration, &over, scope, 0, out)
                    .map_err(|error| error.at(iteration.over.line));
            }
            Statement::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Statement::SetBlock(target, filters, body) => {
                let value = self.string(self.captured(body, scope)?)?;
                let value = self.filtered(filters, value, scope)?;
                self.assign(target, value, scope)?;
            }
            Statement::Macro(definition) => {
                self.closures.borrow_mut().push(Rc::clone(scope));
                scope.set(&definition.name, self.closure(definition, scope)?);
            }
            Statement::Call(call, body) => self.call_block(call, body, scope, out)?,
            Statement::FilterBlock(filters, body) => {
                let value = self.string(self.captured(body, scope)?)?;
                // Jinja2 joins the output of blocks without printing it.
                match self.filtered(filters, value, scope)? {
                    Value::Str(text) | Value::Safe(text) => self.write(out, &text)?,
                    other => {
                        let kind = other.type_name();
                        return Err(Error::new(format!("{{% filter %}} gives a {kind}, not a string")));
                    }
                }
            }
            Statement::With(bindings, body) => {
                let inner = Scope::inner(scope);
                for (target, value) in bindings {
                    // Values see the scope around the block, not each other.
                    let value = self.eval(value, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.block(body, &inner, out);
            }
            Statement::Scoped(body) => return self.block(body, &Scope::inner(scope), out),
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn closure(&self, definition: &Arc<Macro>, scope: &Rc<Scope>) -> Result<Value, Error> {
        self.budget.bytes(4 * OVERHEAD)?;
        let function = Function::Macro(Arc::clone(definition), Rc::clone(scope));
        Ok(Value::Function(Rc::new(function)))
    }

    fn call_block(
        &self,
        call: &super::ast::Expr,
        body: &Arc<Macro>,
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<(), Error> {
        let Node::Call(callee, arguments) = &call.node else {
            return Err(Error::new("{% call %} needs a call"));
        };
        let callee = self.eval(callee, scope)?;
        let mut arguments = self.arguments(arguments, scope)?;
        self.closures.borrow_mut().push(Rc::clone(scope));
        arguments.named.push((Rc::from("caller"), self.closure(body, scope)?));
        let value = self.call(&callee, arguments).map_err(|error| error.at(call.line))?;
        let text = self.text(&value)?;
        self.write(out, &text)
    }

    fn filtered(&self, filters: &[Filter], value: Value, scope: &Rc<Scope>) -> Result<Value, Error> {
        filters.iter().try_fold(value, |value, filter| {
            let arguments = self.arguments(&filter.arguments, scope)?;
            self.filter(&filter.name, value, arguments).map_err(|error| error.at(filter.line))
        })
    }

    pub(super) fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<(), Error> {
        match target {
            Target::Name(name) => {
                self.budget.bytes(OVERHEAD)?;
                scope.set(name, value);
            }
            Target::Attribute(name, attribute) => match scope.get(name) {
                Some(Value::Namespace(namespace)) => {
                    self.budget.bytes(OVERHEAD)?;
                    let mut entries = namespace.entries.borrow_mut();
                    match entries.iter_mut().find(|(known, _)| **known == **attribute) {
                        Some((_, old)) => *old = value,
                        None => entries.push((Rc::from(attribute.as_str()), value)),
                    }
                }
                _ => {
                    return Err(Error::new(format!(
                        "cannot assign {name}.{attribute}: only a namespace has attributes to assign"
                    )));
                }
            },
            Target::Tuple(targets) => {
                let values = self.items(&value)?;
                if values.len() != targets.len() {
                    return Err(Error::new(format!(
                        "cannot unpack {} values into {} names",
                        values.len(),
                        targets.len()
                    )));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a loop over a value, at a depth of recursion. Its `else` may break out of an outer loop.
    pub(super) fn iterate(
        &self,
        iteration: &Arc<For>,
        over: &Value,
        scope: &Rc<Scope>,
        depth: usize,
        out: &mut String,
    ) -> Result<Flow, Error> {
        let mut values = self.items(over)?;
        if let Some(condition) = &iteration.condition {
            let mut kept = Vec::new();
            for value in values {
                let inner = Scope::inner(scope);
                self.assign(&iteration.target, value.clone(), &inner)?;
                if self.eval(condition, &inner)?.truth() {
                    kept.push(value);
                }
            }
            values = kept;
        }
        if values.is_empty() {
            return self.block(&iteration.otherwise, &Scope::inner(scope), out);
        }
        self.room_for(values.len())?;
        let state = Rc::new(Loop {
            items: Rc::new(Items::new(values)?),
            index: Cell::new(0),
            depth,
            changed: RefCell::default(),
            recursive: iteration.recursive.then(|| Arc::clone(iteration)),
            scope: Rc::clone(scope),
        });
        let mut completed = false;
        for (index, value) in state.items.values.iter().enumerate() {
            state.index.set(index);
            let inner = Scope::inner(scope);
            self.budget.bytes(2 * OVERHEAD)?;
            self.assign(&iteration.target, value.clone(), &inner)?;
            inner.set("loop", Value::Loop(Rc::clone(&state)));
            match self.block(&iteration.body, &inner, out)? {
                Flow::Next => completed = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        // Unlike in Python, `else` runs if the body never ran to its end.
        match completed {
            true => Ok(Flow::Next),
            false => self.block(&iteration.otherwise, &Scope::inner(scope), out),
        }
    }
}
