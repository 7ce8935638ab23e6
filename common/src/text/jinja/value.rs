//! Python's values, to the extent that templates see them, and the scopes of variables that hold them. All
//! except namespaces are immutable, as in transformers' sandbox.

use super::Error;
use super::ast::{For, Macro};
use super::number::{self, Number};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

#[derive(Clone)]
pub(super) enum Value {
    /// The error message for using it.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    /// Marked by `safe`: prints like a string, but adding to it would escape for HTML.
    Safe(Rc<str>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    Range(Range),
    /// `keys()`, `values()` or `items()` of a dict.
    View(View, Rc<Dict>),
    /// A generator or iterator, which yields its items once.
    Stream(Rc<Stream>),
    Namespace(Rc<Namespace>),
    Loop(Rc<Loop>),
    Function(Rc<Function>),
}

#[derive(Clone, Default)]
pub(super) struct Items {
    pub(super) values: Vec<Value>,
    extent: Extent,
}

/// An ordered dict. Dicts are small, so lookups are linear.
#[derive(Clone, Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    extent: Extent,
}

/// Depth of nesting and number of parts of a value.
#[derive(Clone, Copy, Default)]
struct Extent {
    depth: u32,
    parts: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i128,
    pub(super) stop: i128,
    pub(super) step: i128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

pub(super) struct Stream {
    pub(super) items: Items,
    pub(super) read: Cell<usize>,
}

#[derive(Default)]
pub(super) struct Namespace {
    pub(super) entries: RefCell<Vec<(Rc<str>, Value)>>,
}

/// The state of a `for` loop: the variable `loop`.
pub(super) struct Loop {
    pub(super) items: Rc<Items>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Rc<Items>>>,
    /// The loop that `loop(…)` renders, in a recursive one.
    pub(super) recursive: Option<Arc<For>>,
    /// The scope around the loop.
    pub(super) scope: Rc<Scope>,
}

pub(super) enum Function {
    Builtin(&'static str),
    /// A value and its method.
    Method(Value, Rc<str>),
    Macro(Arc<Macro>, Rc<Scope>),
    /// A method of `loop`.
    Loop(Rc<Loop>, &'static str),
}

/// Variables of the template, of an iteration of a loop or of a call of a macro. Inner scopes see outer ones
/// and never change them.
pub(super) struct Scope {
    variables: RefCell<Vec<(Rc<str>, Value)>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    pub(super) fn root() -> Rc<Self> {
        Rc::new(Scope { variables: RefCell::default(), outer: None })
    }

    pub(super) fn inner(outer: &Rc<Scope>) -> Rc<Self> {
        Rc::new(Scope { variables: RefCell::default(), outer: Some(Rc::clone(outer)) })
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some((_, value)) = scope.variables.borrow().iter().find(|(known, _)| **known == *name) {
                return Some(value.clone());
            }
            scope = scope.outer.as_deref()?;
        }
    }

    pub(super) fn set(&self, name: &str, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, old)) => *old = value,
            None => variables.push((Rc::from(name), value)),
        }
    }

    /// Drops all values: a macro and its scope hold each other.
    pub(super) fn clear(&self) {
        self.variables.take();
    }
}

/// Maximum nesting of values, so that walking over one cannot exhaust the stack.
const MAX_DEPTH: u32 = 60;

/// Maximum number of parts of a value, counted with repetition, so that every walk over one ends.
const MAX_PARTS: usize = 1_000_000;

impl Items {
    pub(super) fn new(values: Vec<Value>) -> Result<Self, Error> {
        let extent = values.iter().try_fold(Extent { depth: 1, parts: 1 }, Extent::with)?;
        Ok(Items { values, extent })
    }
}

impl Extent {
    fn with(self, part: &Value) -> Result<Self, Error> {
        let part = part.extent();
        let depth = self.depth.max(1 + part.depth);
        let parts = self.parts.saturating_add(1).saturating_add(part.parts);
        if depth > MAX_DEPTH {
            return Err(Error::new(format!("a value nests deeper than {MAX_DEPTH} levels")));
        }
        if parts > MAX_PARTS {
            return Err(Error::new(format!("a value has more than {MAX_PARTS} parts")));
        }
        Ok(Extent { depth, parts })
    }
}

impl Dict {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known.equals(key)).map(|(_, value)| value)
    }

    pub(super) fn text(&self, key: &str) -> Option<&Value> {
        let named = |known: &Value| matches!(known, Value::Str(text) if **text == *key);
        self.entries.iter().find(|(known, _)| named(known)).map(|(_, value)| value)
    }

    /// Like `dict[key] = value`: an existing key keeps its position.
    pub(super) fn insert(&mut self, key: Value, value: Value) -> Result<(), Error> {
        key.check_hashable()?;
        self.extent = self.extent.with(&key)?.with(&value)?;
        match self.entries.iter_mut().find(|(known, _)| known.equals(&key)) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key, value)),
        }
        Ok(())
    }

    pub(super) fn view(&self, view: View) -> Result<Vec<Value>, Error> {
        self.entries
            .iter()
            .map(|(key, value)| {
                Ok(match view {
                    View::Keys => key.clone(),
                    View::Values => value.clone(),
                    View::Items => Value::tuple(vec![key.clone(), value.clone()])?,
                })
            })
            .collect()
    }
}

impl Range {
    pub(super) fn len(self) -> usize {
        let span = if self.step > 0 { self.stop - self.start } else { self.start - self.stop };
        let step = self.step.abs();
        usize::try_from(((span + step - 1) / step).max(0)).unwrap_or(usize::MAX)
    }

    pub(super) fn get(self, index: usize) -> i128 {
        self.start + self.step * index as i128
    }
}

impl Value {
    pub(super) fn str(text: impl AsRef<str>) -> Value {
        Value::Str(Rc::from(text.as_ref()))
    }

    pub(super) fn list(values: Vec<Value>) -> Result<Value, Error> {
        Ok(Value::List(Rc::new(Items::new(values)?)))
    }

    pub(super) fn tuple(values: Vec<Value>) -> Result<Value, Error> {
        Ok(Value::Tuple(Rc::new(Items::new(values)?)))
    }

    pub(super) fn stream(values: Vec<Value>) -> Result<Value, Error> {
        Ok(Value::Stream(Rc::new(Stream { items: Items::new(values)?, read: Cell::new(0) })))
    }

    pub(super) fn undefined(why: impl AsRef<str>) -> Value {
        Value::Undefined(Rc::from(why.as_ref()))
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    fn extent(&self) -> Extent {
        match self {
            Value::List(items) | Value::Tuple(items) => items.extent,
            Value::Dict(dict) | Value::View(_, dict) => dict.extent,
            Value::Stream(stream) => stream.items.extent,
            Value::Function(function) => match &**function {
                Function::Method(value, _) => {
                    let inner = value.extent();
                    Extent { depth: 1 + inner.depth, ..inner }
                }
                Function::Loop(state, _) => state.items.extent,
                _ => Extent::default(),
            },
            Value::Loop(state) => {
                let inner = state.items.extent;
                Extent { depth: 1 + inner.depth, ..inner }
            }
            _ => Extent::default(),
        }
    }

    /// Number of parts that a walk over the value visits.
    pub(super) fn parts(&self) -> usize {
        1 + self.extent().parts
    }

    /// The name of the type in Python.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Safe(_) => "Markup",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Range(_) => "range",
            Value::View(View::Keys, _) => "dict_keys",
            Value::View(View::Values, _) => "dict_values",
            Value::View(View::Items, _) => "dict_items",
            Value::Stream(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Loop(_) => "LoopContext",
            Value::Function(_) => "function",
        }
    }

    /// Refuses a value that cannot be a key.
    pub(super) fn check_hashable(&self) -> Result<(), Error> {
        match self.is_hashable() {
            true => Ok(()),
            false => Err(Error::new(format!("unhashable type: '{}'", self.type_name()))),
        }
    }

    fn is_hashable(&self) -> bool {
        match self {
            Value::List(_) | Value::Dict(_) | Value::View(..) => false,
            Value::Tuple(items) => items.values.iter().all(Value::is_hashable),
            _ => true,
        }
    }

    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) | Value::Safe(text) => !text.is_empty(),
            Value::List(items) | Value::Tuple(items) => !items.values.is_empty(),
            Value::Dict(dict) | Value::View(_, dict) => dict.len() > 0,
            Value::Range(range) => range.len() > 0,
            // A generator is true even when it yields nothing.
            Value::Stream(_) | Value::Namespace(_) | Value::Loop(_) | Value::Function(_) => true,
        }
    }

    /// Like `==`.
    pub(super) fn equals(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
            (Value::Str(a) | Value::Safe(a), Value::Str(b) | Value::Safe(b)) => a == b,
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
                a.values.len() == b.values.len() && a.values.iter().zip(&b.values).all(|(a, b)| a.equals(b))
            }
            (Value::Dict(a), Value::Dict(b)) => {
                a.len() == b.len()
                    && a.entries
                        .iter()
                        .all(|(key, value)| b.get(key).is_some_and(|other| value.equals(other)))
            }
            (Value::Range(a), Value::Range(b)) => {
                a.len() == b.len() && (0..a.len().min(2)).all(|index| a.get(index) == b.get(index))
            }
            (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
            (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
            (Value::Stream(a), Value::Stream(b)) => Rc::ptr_eq(a, b),
            (Value::Function(a), Value::Function(b)) => Rc::ptr_eq(a, b),
            _ => self.compare_numbers(other) == Some(std::cmp::Ordering::Equal),
        }
    }

    /// Like `<` and its kin; `None` for NaN.
    pub(super) fn order(&self, other: &Value, operator: &str) -> Result<Option<std::cmp::Ordering>, Error> {
        match (self, other) {
            (Value::Str(a) | Value::Safe(a), Value::Str(b) | Value::Safe(b)) => Ok(Some(a.cmp(b))),
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
                let differ = a.values.iter().zip(&b.values).find(|(a, b)| !a.equals(b));
                match differ {
                    Some((a, b)) => a.order(b, operator),
                    None => Ok(Some(a.values.len().cmp(&b.values.len()))),
                }
            }
            _ if self.is_number() && other.is_number() => Ok(self.compare_numbers(other)),
            (Value::Undefined(why), _) | (_, Value::Undefined(why)) => Err(Error::new(&**why)),
            _ => Err(Error::new(format!(
                "'{operator}' not supported between instances of '{}' and '{}'",
                self.type_name(),
                other.type_name()
            ))),
        }
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Value::Bool(_) | Value::Int(_) | Value::Float(_))
    }

    /// The number, if it is one; `True` is 1.
    pub(super) fn number(&self) -> Option<Number> {
        match self {
            Value::Int(value) => Some(Number::Int(*value)),
            Value::Bool(value) => Some(Number::Int(i128::from(*value))),
            Value::Float(value) => Some(Number::Float(*value)),
            _ => None,
        }
    }

    /// `None` if one is NaN or not a number.
    fn compare_numbers(&self, other: &Value) -> Option<std::cmp::Ordering> {
        number::compare(self.number()?, other.number()?)
    }
}
