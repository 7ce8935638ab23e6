//! Variables and what they are visible in.

use super::value::Value;
use std::cell::RefCell;
use std::rc::Rc;

/// One frame: of the template, of a loop's pass, of a macro's call. Inner frames see outer ones and never change them.
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

    /// Lets go of all values: a macro holds the scope that holds it.
    pub(super) fn clear(&self) {
        self.variables.take();
    }
}
