//! Parsing of templates by Jinja2's grammar: statements, expressions by precedence, and operands.

mod expressions;
mod operands;
mod statements;

use super::Error;
use super::ast::{Expr, Node, Statement};
use super::lexer::Token;

/// Maximum nesting of brackets, blocks and operators, and maximum number of nodes of an expression. Both
/// bound the stack.
const MAX_NESTING: u32 = 60;
const MAX_NODES: u32 = 2000;

pub(super) fn parse(tokens: Vec<(Token, u32)>) -> Result<Vec<Statement>, Error> {
    let mut parser = Parser { tokens, at: 0, nesting: 0, nodes: 0, loops: 0, unknown: Vec::new() };
    let body = parser.strict(|parser| parser.statements(&[]));
    body.map_err(|error| error.at(parser.line()))
}

/// A recursive-descent parser.
struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    nesting: u32,
    nodes: u32,
    /// Number of loops around the current statement.
    loops: u32,
    /// Errors about nonexistent filters and tests in the current part.
    unknown: Vec<Error>,
}

impl Parser {
    fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if found == name)
    }

    fn skip_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        if found {
            self.next();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, token: &Token) -> Result<(), Error> {
        if self.peek() != token {
            return Err(self.unexpected(&describe(token)));
        }
        self.next();
        Ok(())
    }

    fn expect_op(&mut self, operator: &'static str) -> Result<(), Error> {
        self.expect(&Token::Op(operator))
    }

    fn name(&mut self) -> Result<String, Error> {
        match self.peek() {
            Token::Name(_) => match self.next() {
                Token::Name(name) => Ok(name),
                _ => Err(Error::new("expected a name")),
            },
            _ => Err(self.unexpected("a name")),
        }
    }

    fn unexpected(&self, expected: &str) -> Error {
        Error::new(format!("expected {expected}, found {}", describe(self.peek()))).at(self.line())
    }

    fn position(&self) -> usize {
        self.at
    }

    /// Whether a name occurs between `from` and the current position.
    fn mentions(&self, from: usize, name: &str) -> bool {
        self.tokens[from..self.at]
            .iter()
            .any(|(token, _)| matches!(token, Token::Name(found) if found == name))
    }

    /// Parses a construct that may be nested.
    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.nesting == MAX_NESTING {
            return Err(Error::new(format!("nests deeper than {MAX_NESTING} levels")).at(self.line()));
        }
        self.nesting += 1;
        let result = read(self);
        self.nesting -= 1;
        result
    }

    /// Parses a part that Jinja2 compiles as a unit: a nonexistent filter or test in it is an error of the
    /// template.
    fn strict<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let before = self.unknown.len();
        let result = read(self)?;
        match self.unknown.drain(before..).next() {
            Some(unknown) => Err(unknown),
            None => Ok(result),
        }
    }

    /// Parses a condition with its branches: nonexistent filters and tests fail only when they are reached,
    /// as in Jinja2, whose templates use conditions to guard features of other engines.
    fn lenient<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
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
