//! Statements: `{% … %}` tags.

use super::super::Error;
use super::super::ast::{Expr, Filter, For, Macro, Node, Statement, Target};
use super::super::lexer::Token;
use super::Parser;
use std::sync::Arc;

impl Parser {
    /// Parses statements up to a tag with one of these names, which is not consumed; without names, to the
    /// end.
    pub(super) fn statements(&mut self, ends: &[&str]) -> Result<Vec<Statement>, Error> {
        self.nested(|parser| {
            let mut body = Vec::new();
            loop {
                match parser.next() {
                    Token::Text(text) => body.push(Statement::Text(text)),
                    Token::VariableBegin => {
                        let value = parser.tuple(true)?;
                        parser.expect(&Token::VariableEnd)?;
                        body.push(Statement::Emit(value));
                    }
                    Token::BlockBegin => {
                        if ends.iter().any(|end| parser.is_name(end)) {
                            return Ok(body);
                        }
                        body.push(statement(parser)?);
                    }
                    Token::End if ends.is_empty() => return Ok(body),
                    Token::End => {
                        return Err(Error::new(format!("{{% {} %}} is missing", ends.join(" %} or {% "))));
                    }
                    _ => return Err(Error::new("a tag begins nowhere")),
                }
            }
        })
    }
}

/// Parses statements up to and including this tag.
fn body(parser: &mut Parser, end: &str) -> Result<Vec<Statement>, Error> {
    parser.expect(&Token::BlockEnd)?;
    let body = parser.statements(&[end])?;
    parser.next();
    parser.expect(&Token::BlockEnd)?;
    Ok(body)
}

fn statement(parser: &mut Parser) -> Result<Statement, Error> {
    let line = parser.line();
    let name = parser.name()?;
    match name.as_str() {
        "if" => parser.lenient(conditional),
        "for" => iteration(parser),
        "set" => assignment(parser),
        "macro" => parser.strict(|parser| {
            let name = parser.name()?;
            let parameters = parameters(parser)?;
            Ok(Statement::Macro(Arc::new(definition(parser, name, parameters, "endmacro")?)))
        }),
        "call" => call(parser),
        "filter" => parser.strict(|parser| {
            let filters = chain(parser)?;
            Ok(Statement::FilterBlock(filters, body(parser, "endfilter")?))
        }),
        "with" => with(parser),
        "generation" => Ok(Statement::Scoped(parser.strict(|parser| unlooped(parser, "endgeneration"))?)),
        "break" | "continue" => {
            if parser.loops == 0 {
                return Err(Error::new(format!("{{% {name} %}} stands outside of a loop")).at(line));
            }
            parser.expect(&Token::BlockEnd)?;
            Ok(if name == "break" { Statement::Break } else { Statement::Continue })
        }
        "block" | "extends" | "include" | "import" | "from" | "autoescape" => {
            Err(Error::unsupported(format!("{{% {name} %}}")).at(line))
        }
        _ => Err(Error::new(format!("unknown tag {{% {name} %}}")).at(line)),
    }
}

/// A body that a `break` of a loop around it cannot leave.
fn unlooped(parser: &mut Parser, end: &str) -> Result<Vec<Statement>, Error> {
    let loops = std::mem::take(&mut parser.loops);
    let body = body(parser, end);
    parser.loops = loops;
    body
}

fn conditional(parser: &mut Parser) -> Result<Statement, Error> {
    let mut branches = Vec::new();
    loop {
        let condition = parser.tuple(false)?;
        parser.expect(&Token::BlockEnd)?;
        branches.push((condition, parser.statements(&["elif", "else", "endif"])?));
        match parser.name()?.as_str() {
            "elif" => {}
            "else" => {
                let otherwise = body(parser, "endif")?;
                return Ok(Statement::If(branches, otherwise));
            }
            _ => {
                parser.expect(&Token::BlockEnd)?;
                return Ok(Statement::If(branches, Vec::new()));
            }
        }
    }
}

fn iteration(parser: &mut Parser) -> Result<Statement, Error> {
    let target = target(parser)?;
    if !parser.skip_name("in") {
        return Err(parser.unexpected("\"in\""));
    }
    let over = parser.tuple(false)?;
    let condition = match parser.skip_name("if") {
        true => Some(parser.strict(Parser::whole)?),
        false => None,
    };
    let recursive = parser.skip_name("recursive");
    parser.expect(&Token::BlockEnd)?;
    parser.loops += 1;
    let inner = parser.strict(|parser| parser.statements(&["else", "endfor"]));
    parser.loops -= 1;
    let inner = inner?;
    let otherwise = match parser.name()?.as_str() {
        "else" => parser.strict(|parser| body(parser, "endfor"))?,
        _ => {
            parser.expect(&Token::BlockEnd)?;
            Vec::new()
        }
    };
    Ok(Statement::For(Arc::new(For { target, over, condition, recursive, body: inner, otherwise })))
}

/// One name, or several separated by commas, possibly in parentheses.
fn target(parser: &mut Parser) -> Result<Target, Error> {
    let first = one_target(parser)?;
    if !parser.is_op(",") {
        return Ok(first);
    }
    let mut all = vec![first];
    while parser.skip_op(",") {
        if parser.is_name("in") || parser.is_op("=") || parser.is_op(")") {
            break;
        }
        all.push(one_target(parser)?);
    }
    Ok(Target::Tuple(all))
}

fn one_target(parser: &mut Parser) -> Result<Target, Error> {
    if parser.is_op("(") {
        return parser.nested(|parser| {
            parser.next();
            let inner = target(parser)?;
            parser.expect_op(")")?;
            Ok(inner)
        });
    }
    let name = parser.name()?;
    if matches!(name.as_str(), "true" | "True" | "false" | "False" | "none" | "None" | "loop") {
        return Err(Error::new(format!("{name} cannot be assigned to")));
    }
    match parser.skip_op(".") {
        true => Ok(Target::Attribute(name, parser.name()?)),
        false => Ok(Target::Name(name)),
    }
}

fn assignment(parser: &mut Parser) -> Result<Statement, Error> {
    let target = target(parser)?;
    if parser.skip_op("=") {
        let value = parser.tuple(true)?;
        parser.expect(&Token::BlockEnd)?;
        return Ok(Statement::Set(target, value));
    }
    parser.strict(|parser| {
        let filters = if parser.skip_op("|") { chain(parser)? } else { Vec::new() };
        Ok(Statement::SetBlock(target, filters, body(parser, "endset")?))
    })
}

/// Filters separated by bars.
fn chain(parser: &mut Parser) -> Result<Vec<Filter>, Error> {
    let mut filters = vec![parser.filter()?];
    while parser.skip_op("|") {
        filters.push(parser.filter()?);
    }
    Ok(filters)
}

/// Names in parentheses, some with defaults.
fn parameters(parser: &mut Parser) -> Result<Vec<(String, Option<Expr>)>, Error> {
    let mut parameters: Vec<(String, Option<Expr>)> = Vec::new();
    parser.expect_op("(")?;
    while !parser.skip_op(")") {
        let name = parser.name()?;
        let default = match parser.skip_op("=") {
            true => Some(parser.whole()?),
            false if parameters.iter().any(|(_, default)| default.is_some()) => {
                return Err(Error::new(format!(
                    "the parameter {name} has no default, but one before it has"
                )));
            }
            false => None,
        };
        parameters.push((name, default));
        if !parser.is_op(")") {
            parser.expect_op(",")?;
        }
    }
    Ok(parameters)
}

fn definition(
    parser: &mut Parser,
    name: String,
    parameters: Vec<(String, Option<Expr>)>,
    end: &str,
) -> Result<Macro, Error> {
    let from = parser.position();
    let body = unlooped(parser, end)?;
    Ok(Macro {
        name,
        parameters,
        body,
        takes_varargs: parser.mentions(from, "varargs"),
        takes_kwargs: parser.mentions(from, "kwargs"),
        takes_caller: parser.mentions(from, "caller"),
    })
}

fn call(parser: &mut Parser) -> Result<Statement, Error> {
    let line = parser.line();
    let parameters = if parser.is_op("(") { parser.strict(parameters)? } else { Vec::new() };
    let call = parser.whole()?;
    if !matches!(call.node, Node::Call(..)) {
        return Err(Error::new("{% call %} needs a call").at(line));
    }
    let caller = parser.strict(|parser| definition(parser, "caller".to_owned(), parameters, "endcall"))?;
    Ok(Statement::Call(Box::new(call), Arc::new(caller)))
}

fn with(parser: &mut Parser) -> Result<Statement, Error> {
    let mut bindings = Vec::new();
    while *parser.peek() != Token::BlockEnd {
        let target = one_target(parser)?;
        parser.expect_op("=")?;
        bindings.push((target, parser.whole()?));
        if *parser.peek() != Token::BlockEnd {
            parser.expect_op(",")?;
        }
    }
    Ok(Statement::With(bindings, parser.strict(|parser| body(parser, "endwith"))?))
}
