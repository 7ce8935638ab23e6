//! Jinja templates with Python's semantics, as chat templates need them.
//!
//! A chat template is written for transformers, which renders it with Jinja2: every value is a Python object,
//! `None` prints as `None`, `'a' < 1` is an error, a generator is empty on its second pass. A prompt that is
//! rendered differently has other tokens than the model was trained on, and nothing fails. This engine
//! therefore renders exactly what Jinja2 does (in transformers' immutable sandbox, with its extensions), and
//! refuses unsupported constructs by name.
//!
//! Templates are untrusted: parsing is bounded in size and nesting, rendering in steps, bytes and depth (see
//! [`Budget`]).

mod arithmetic;
mod ast;
mod attributes;
mod budget;
mod clock;
mod convert;
mod error;
mod eval;
mod expression;
mod filters;
mod format;
mod functions;
mod json;
mod lexer;
mod methods;
mod number;
mod operators;
mod parser;
mod predicates;
mod repr;
mod sequences;
mod sort;
mod str_methods;
mod strings;
mod text_filters;
mod value;

#[cfg(test)]
mod tests;

pub(super) use error::Error;

use budget::Budget;
use eval::Machine;
use value::Scope;

/// Maximum size of a template. The longest known one has 20 KiB.
const MAX_SOURCE: usize = 1 << 20;

/// A parsed template. `Send + Sync`; each rendering has its own budget.
#[derive(Debug)]
pub(super) struct Template {
    body: Vec<ast::Statement>,
}

impl Template {
    pub(super) fn parse(source: &str) -> Result<Self, Error> {
        if source.len() > MAX_SOURCE {
            return Err(Error::new(format!(
                "the template has {} bytes; at most {MAX_SOURCE} are read",
                source.len()
            )));
        }
        Ok(Template { body: parser::parse(lexer::tokenize(source)?)? })
    }

    /// Renders the template with these variables.
    pub(super) fn render(&self, variables: &[(&str, &serde_json::Value)]) -> Result<String, Error> {
        let machine = Machine::new(Budget::default());
        let scope = Scope::root();
        for (name, value) in variables {
            let value = machine.value_of(value)?;
            scope.set(name, value);
        }
        let mut out = String::new();
        let result = machine.block(&self.body, &scope, &mut out);
        machine.release();
        scope.clear();
        result.map(|_| out)
    }
}
