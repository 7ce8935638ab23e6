//! Expressions, by Jinja2's grammar and precedence.

use super::Error;
use super::ast::{Arguments, Comparison, Expr, Filter, Node, Operator, Statement};
use super::lexer::Token;
use super::{filters, predicates, statements};

/// How deep brackets, blocks and operators may nest, and how many nodes an expression may have. Both bound the stack.
const MAX_NESTING: u32 = 60;
const MAX_NODES: u32 = 2000;

pub(super) fn parse(tokens: Vec<(Token, u32)>) -> Result<Vec<Statement>, Error> {
    let mut parser = Parser { tokens, at: 0, nesting: 0, nodes: 0, loops: 0, unknown: Vec::new() };
    let body = parser.strict(|parser| statements::until(parser, &[]));
    body.map_err(|error| error.at(parser.line()))
}

pub(super) struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    nesting: u32,
    nodes: u32,
    /// Loops around the statement that is read.
    pub(super) loops: u32,
    /// Filters and tests that do not exist, so far in the part that is read.
    unknown: Vec<Error>,
}

impl Parser {
    pub(super) fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(super) fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if found == name)
    }

    pub(super) fn skip_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect(&mut self, token: &Token) -> Result<(), Error> {
        if self.peek() != token {
            return Err(self.unexpected(&describe(token)));
        }
        self.next();
        Ok(())
    }

    pub(super) fn expect_op(&mut self, operator: &'static str) -> Result<(), Error> {
        self.expect(&Token::Op(operator))
    }

    pub(super) fn name(&mut self) -> Result<String, Error> {
        match self.peek() {
            Token::Name(_) => match self.next() {
                Token::Name(name) => Ok(name),
                _ => Err(Error::new("expected a name")),
            },
            _ => Err(self.unexpected("a name")),
        }
    }

    pub(super) fn unexpected(&self, expected: &str) -> Error {
        Error::new(format!("expected {expected}, found {}", describe(self.peek()))).at(self.line())
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Whether a name occurs between a position and here.
    pub(super) fn mentions(&self, from: usize, name: &str) -> bool {
        self.tokens[from..self.at]
            .iter()
            .any(|(token, _)| matches!(token, Token::Name(found) if found == name))
    }

    /// Reads something that may hold itself.
    pub(super) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.nesting == MAX_NESTING {
            return Err(Error::new(format!("nests deeper than {MAX_NESTING} levels")).at(self.line()));
        }
        self.nesting += 1;
        let result = read(self);
        self.nesting -= 1;
        result
    }

    /// Reads a part that Jinja2 compiles as a whole: a filter or a test in it that does not exist makes the template unreadable.
    pub(super) fn strict<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let before = self.unknown.len();
        let result = read(self)?;
        match self.unknown.drain(before..).next() {
            Some(unknown) => Err(unknown),
            None => Ok(result),
        }
    }

    /// Reads a condition with its branches: what does not exist fails where it is reached, as in Jinja2, whose templates
    /// guard by a condition what other engines have.
    pub(super) fn lenient<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let before = self.unknown.len();
        let result = read(self);
        self.unknown.truncate(before);
        result
    }

    fn note(&mut self, checked: Result<(), Error>, line: u32) {
        self.unknown.extend(checked.err().map(|error| error.at(line)));
    }

    fn node(&mut self, node: Node, line: u32) -> Result<Expr, Error> {
        self.nodes += 1;
        match self.nodes > MAX_NODES {
            true => Err(Error::new(format!("an expression has more than {MAX_NODES} parts")).at(line)),
            false => Ok(Expr { node, line }),
        }
    }

    /// A whole expression; the count of its parts starts anew.
    pub(super) fn whole(&mut self) -> Result<Expr, Error> {
        self.nodes = 0;
        self.expression()
    }

    /// One expression, or several with commas between: a tuple.
    pub(super) fn tuple(&mut self, conditional: bool) -> Result<Expr, Error> {
        self.nodes = 0;
        let line = self.line();
        let first = self.nested(|parser| parser.part(conditional))?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_op(",") {
            if self.ends_tuple() {
                break;
            }
            items.push(self.nested(|parser| parser.part(conditional))?);
        }
        self.node(Node::Tuple(items), line)
    }

    fn part(&mut self, conditional: bool) -> Result<Expr, Error> {
        if conditional { self.conditional() } else { self.or() }
    }

    fn ends_tuple(&self) -> bool {
        matches!(self.peek(), Token::VariableEnd | Token::BlockEnd | Token::Op(")" | "]" | "}" | "="))
            || self.is_name("in")
    }

    pub(super) fn expression(&mut self) -> Result<Expr, Error> {
        self.nested(Self::conditional)
    }

    fn conditional(&mut self) -> Result<Expr, Error> {
        let before = self.unknown.len();
        let mut value = self.or()?;
        while self.is_name("if") {
            let line = self.line();
            self.next();
            let condition = Box::new(self.or()?);
            let otherwise = match self.skip_name("else") {
                true => Some(Box::new(self.expression()?)),
                false => None,
            };
            value = self.node(Node::Conditional(Box::new(value), condition, otherwise), line)?;
            // As in `lenient`.
            self.unknown.truncate(before);
        }
        Ok(value)
    }

    pub(super) fn or(&mut self) -> Result<Expr, Error> {
        let mut left = self.and()?;
        while self.is_name("or") {
            let line = self.line();
            self.next();
            let right = self.and()?;
            left = self.node(Node::Or(Box::new(left), Box::new(right)), line)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, Error> {
        let mut left = self.not()?;
        while self.is_name("and") {
            let line = self.line();
            self.next();
            let right = self.not()?;
            left = self.node(Node::And(Box::new(left), Box::new(right)), line)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        if self.skip_name("not") {
            let inner = self.nested(Self::not)?;
            return self.node(Node::Not(Box::new(inner)), line);
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison() {
            rest.push((comparison, self.sum()?));
        }
        match rest.is_empty() {
            true => Ok(first),
            false => self.node(Node::Compare(Box::new(first), rest), line),
        }
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let found = match self.peek() {
            Token::Op("==") => Comparison::Eq,
            Token::Op("!=") => Comparison::Ne,
            Token::Op("<") => Comparison::Lt,
            Token::Op("<=") => Comparison::Le,
            Token::Op(">") => Comparison::Gt,
            Token::Op(">=") => Comparison::Ge,
            Token::Name(name) if name == "in" => Comparison::In,
            Token::Name(name) if name == "not" => {
                let behind = self.tokens.get(self.at + 1).map(|(token, _)| token);
                if !matches!(behind, Some(Token::Name(name)) if name == "in") {
                    return None;
                }
                self.next();
                Comparison::NotIn
            }
            _ => return None,
        };
        self.next();
        Some(found)
    }

    fn sum(&mut self) -> Result<Expr, Error> {
        self.operators(&[("+", Operator::Add), ("-", Operator::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        self.node(Node::Concat(parts), line)
    }

    fn product(&mut self) -> Result<Expr, Error> {
        let operators =
            [("*", Operator::Mul), ("/", Operator::Div), ("//", Operator::FloorDiv), ("%", Operator::Mod)];
        self.operators(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Expr, Error> {
        self.operators(&[("**", Operator::Pow)], |parser| parser.unary(true))
    }

    /// A chain of operators of one precedence, read from the left.
    fn operators(
        &mut self,
        operators: &[(&str, Operator)],
        operand: fn(&mut Self) -> Result<Expr, Error>,
    ) -> Result<Expr, Error> {
        let mut left = operand(self)?;
        while let Some((_, operator)) = operators.iter().find(|(text, _)| self.is_op(text)) {
            let line = self.line();
            self.next();
            let right = operand(self)?;
            left = self.node(Node::Binary(*operator, Box::new(left), Box::new(right)), line)?;
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr, Error> {
        let line = self.line();
        let inner = if self.skip_op("-") {
            let inner = self.nested(|parser| parser.unary(false))?;
            self.node(Node::Negative(Box::new(inner)), line)?
        } else if self.skip_op("+") {
            let inner = self.nested(|parser| parser.unary(false))?;
            self.node(Node::Positive(Box::new(inner)), line)?
        } else {
            self.primary()?
        };
        let inner = self.postfix(inner)?;
        if with_filters { self.filters_and_tests(inner) } else { Ok(inner) }
    }

    fn primary(&mut self) -> Result<Expr, Error> {
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

    /// Strings side by side are one.
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
            // Jinja2 computes constants when it reads a template, so that such a key fails in a branch that is not taken, too.
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

    fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr, Error> {
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

    /// Names with dots between.
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

fn describe(token: &Token) -> String {
    match token {
        Token::Text(_) => "text".to_owned(),
        Token::BlockBegin => "{%".to_owned(),
        Token::BlockEnd => "%}".to_owned(),
        Token::VariableBegin => "{{".to_owned(),
        Token::VariableEnd => "}}".to_owned(),
        Token::Name(name) => format!("{name:?}"),
        Token::Str(text) => format!("the string {text:?}"),
        Token::Int(value) => value.to_string(),
        Token::Float(value) => value.to_string(),
        Token::Op(operator) => format!("{operator:?}"),
        Token::End => "the template's end".to_owned(),
    }
}
