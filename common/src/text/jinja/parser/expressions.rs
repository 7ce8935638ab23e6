//! Expressions by precedence, down to unary operators.

use super::super::Error;
use super::super::ast::{Comparison, Expr, Node, Operator};
use super::super::lexer::Token;
use super::Parser;

impl Parser {
    /// A complete expression; its parts are counted from zero.
    pub(super) fn whole(&mut self) -> Result<Expr, Error> {
        self.nodes = 0;
        self.expression()
    }

    /// One expression, or several separated by commas: a tuple.
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

    /// A left-associative chain of operators of one precedence.
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
}
