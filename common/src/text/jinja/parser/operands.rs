//! Operands: literals, names and brackets, with the subscripts, calls, filters and tests after them.

use super::super::ast::{Arguments, Expr, Filter, Node};
use super::super::lexer::Token;
use super::super::{Error, filters, predicates};
use super::Parser;

impl Parser {
    pub(super) fn primary(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        let node = match self.peek() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Node::Bool(true),
                "false" | "False" => Node::Bool(false),
                "none" | "None" => Node::None,
                _ => Node::Name(name.clone()),
            },
            Token::Int(value) => Node::Int(*value),
            Token::Float(value) => Node::Float(*value),
            Token::Str(_) => return self.strings(),
            Token::Op("(") => return self.parenthesis(),
            Token::Op("[") => {
                self.next();
                let items = self.list("]")?;
                return self.node(Node::List(items), line);
            }
            Token::Op("{") => return self.dict(),
            _ => return Err(self.unexpected("an expression")),
        };
        self.next();
        self.node(node, line)
    }

    /// Adjacent strings, which are concatenated.
    fn strings(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        let mut text = String::new();
        while let Token::Str(part) = self.peek() {
            text.push_str(part);
            self.next();
        }
        self.node(Node::Str(text), line)
    }

    fn parenthesis(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        self.next();
        if self.skip_op(")") {
            return self.node(Node::Tuple(Vec::new()), line);
        }
        let first = self.expression()?;
        if self.skip_op(")") {
            return Ok(first);
        }
        self.expect_op(",")?;
        let mut items = vec![first];
        items.extend(self.list(")")?);
        self.node(Node::Tuple(items), line)
    }

    fn list(&mut self, end: &'static str) -> Result<Vec<Expr>, Error> {
        let mut items = Vec::new();
        while !self.skip_op(end) {
            items.push(self.expression()?);
            if !self.is_op(end) {
                self.expect_op(",")?;
            }
        }
        Ok(items)
    }

    fn dict(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        self.next();
        let mut items = Vec::new();
        while !self.skip_op("}") {
            let key = self.expression()?;
            // Jinja2 folds constants at compile time, so such a key fails even in a branch that is not taken.
            if matches!(key.node, Node::List(_) | Node::Dict(_)) {
                return Err(Error::new("a list or a dict cannot be a key").at(key.line));
            }
            self.expect_op(":")?;
            items.push((key, self.expression()?));
            if !self.is_op("}") {
                self.expect_op(",")?;
            }
        }
        self.node(Node::Dict(items), line)
    }

    pub(super) fn postfix(&mut self, mut value: Expr) -> Result<Expr, Error> {
        loop {
            let line = self.line();
            let inner = Box::new(value);
            let node = match self.peek() {
                Token::Op(".") => {
                    self.next();
                    match self.next() {
                        Token::Name(name) => Node::Attribute(inner, name),
                        Token::Int(index) => Node::Item(inner, Box::new(self.node(Node::Int(index), line)?)),
                        _ => return Err(Error::new("expected a name or a number behind the dot").at(line)),
                    }
                }
                Token::Op("[") => {
                    self.next();
                    self.subscript(inner)?
                }
                Token::Op("(") => Node::Call(inner, self.arguments()?),
                _ => return Ok(*inner),
            };
            value = self.node(node, line)?;
        }
    }

    fn subscript(&mut self, value: Box<Expr>) -> Result<Node, Error> {
        let mut parts: [Option<Box<Expr>>; 3] = [None, None, None];
        let mut colons = 0;
        loop {
            if self.skip_op(":") {
                colons += 1;
                if colons > 2 {
                    return Err(self.unexpected("at most two colons"));
                }
            } else if self.skip_op("]") {
                break;
            } else if self.is_op(",") {
                return Err(Error::unsupported("an index of several parts"));
            } else if parts[colons].is_none() {
                parts[colons] = Some(Box::new(self.expression()?));
            } else {
                return Err(self.unexpected("a closing bracket"));
            }
        }
        match (colons, parts) {
            (0, [Some(index), ..]) => Ok(Node::Item(value, index)),
            (0, _) => Err(self.unexpected("an index")),
            (_, parts) => Ok(Node::Slice(value, parts)),
        }
    }

    pub(super) fn arguments(&mut self) -> Result<Arguments, Error> {
        self.expect_op("(")?;
        let mut arguments = Arguments::default();
        while !self.skip_op(")") {
            if self.skip_op("**") {
                arguments.double_splat = Some(Box::new(self.expression()?));
            } else if self.skip_op("*") {
                arguments.splat = Some(Box::new(self.expression()?));
            } else {
                let behind = self.tokens.get(self.at + 1).map(|(token, _)| token);
                match self.peek() {
                    Token::Name(name) if behind == Some(&Token::Op("=")) => {
                        let name = name.clone();
                        self.next();
                        self.next();
                        arguments.named.push((name, self.expression()?));
                    }
                    _ if arguments.named.is_empty() && arguments.splat.is_none() => {
                        arguments.positional.push(self.expression()?);
                    }
                    _ => return Err(self.unexpected("a named argument")),
                }
            }
            if !self.is_op(")") {
                self.expect_op(",")?;
            }
        }
        Ok(arguments)
    }

    pub(super) fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr, Error> {
        loop {
            let line = self.line();
            let node = if self.skip_op("|") {
                Node::Filter(Box::new(value), self.filter()?)
            } else if self.skip_name("is") {
                self.test(value)?
            } else if self.is_op("(") {
                Node::Call(Box::new(value), self.arguments()?)
            } else {
                return Ok(value);
            };
            value = self.node(node, line)?;
        }
    }

    /// Names separated by dots.
    fn dotted(&mut self) -> Result<String, Error> {
        let mut name = self.name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    pub(super) fn filter(&mut self) -> Result<Filter, Error> {
        let line = self.line();
        let name = self.dotted()?;
        self.note(filters::check(&name), line);
        let arguments = if self.is_op("(") { self.arguments()? } else { Arguments::default() };
        Ok(Filter { name, arguments, line })
    }

    fn test(&mut self, value: Expr) -> Result<Node, Error> {
        let line = self.line();
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        self.note(predicates::check(&name), line);
        let mut arguments = Arguments::default();
        if self.is_op("(") {
            arguments = self.arguments()?;
        } else if self.starts_argument() {
            if self.is_name("is") {
                return Err(Error::new("tests cannot be chained with is").at(line));
            }
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument)?);
        }
        let test = Node::Test(Box::new(value), Filter { name, arguments, line });
        match negated {
            false => Ok(test),
            true => Ok(Node::Not(Box::new(self.node(test, line)?))),
        }
    }

    /// Whether a test's only argument follows, without parentheses.
    fn starts_argument(&self) -> bool {
        match self.peek() {
            Token::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Op("(" | "[" | "{") => true,
            _ => false,
        }
    }
}
