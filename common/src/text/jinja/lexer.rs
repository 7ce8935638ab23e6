//! Tokenization of templates, with Jinja2's white space rules (`trim_blocks`, `lstrip_blocks`, `-` and `+`
//! signs).

use super::Error;
use super::strings::{is_space, trim_end};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Text(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// Operators, the longest first.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";", "!",
];

pub(super) fn tokenize(source: &str) -> Result<Vec<(Token, u32)>, Error> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    lexer.run().map_err(|error| error.at(lexer.line))?;
    let line = lexer.line;
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
    /// Whether the last text ended a line.
    line_starting: bool,
    tokens: Vec<(Token, u32)>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn advance(&mut self, bytes: usize) {
        let read = &self.source[self.at..self.at + bytes];
        self.line += read.matches('\n').count() as u32;
        if let Some(last) = read.chars().next_back() {
            self.line_starting = last == '\n';
        }
        self.at += bytes;
    }

    fn run(&mut self) -> Result<(), Error> {
        loop {
            let rest = self.rest();
            let Some((length, kind)) = begin(rest) else {
                if !rest.is_empty() {
                    self.push(Token::Text(rest.to_owned()));
                    self.advance(rest.len());
                }
                return Ok(());
            };
            let sign = rest[length + 2..].chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let text = &rest[..length];
            let kept = match sign {
                Some('-') => trim_end(text),
                None if kind != '{' => self.without_indent(text),
                _ => text,
            };
            if !kept.is_empty() {
                self.push(Token::Text(kept.to_owned()));
            }
            self.advance(length + 2 + usize::from(sign.is_some()));
            match kind {
                '#' => self.comment()?,
                '{' => self.tag(Token::VariableBegin)?,
                _ if self.raw()? => {}
                _ => self.tag(Token::BlockBegin)?,
            }
        }
    }

    /// `lstrip_blocks`: white space between the start of a line and a block is not text.
    fn without_indent<'t>(&self, text: &'t str) -> &'t str {
        let start = text.rfind('\n').map_or(0, |newline| newline + 1);
        let indented = (start > 0 || self.line_starting) && text[start..].chars().all(is_space);
        if indented { &text[..start] } else { text }
    }

    /// Reads a sign and an end mark; `-` strips the following white space, `trim_blocks` the newline.
    fn end(&mut self, mark: &str) -> bool {
        let rest = self.rest();
        let length = if let Some(behind) = rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(mark)) {
            rest.len() - behind.trim_start_matches(is_space).len()
        } else if let Some(behind) = rest.strip_prefix(mark) {
            mark.len() + usize::from(mark != "}}" && behind.starts_with('\n'))
        } else if mark != "}}" && rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(mark)) {
            1 + mark.len()
        } else {
            return false;
        };
        self.advance(length);
        true
    }

    fn comment(&mut self) -> Result<(), Error> {
        let Some(end) = self.rest().find("#}") else {
            return Err(Error::new("a comment {# has no end #}"));
        };
        let signed = self.rest()[..end].ends_with(['-', '+']);
        self.advance(end - usize::from(signed));
        self.end("#}");
        Ok(())
    }

    /// Reads `{% raw %}` to its end, if one starts here.
    fn raw(&mut self) -> Result<bool, Error> {
        let rest = self.rest();
        let Some(behind) = rest.trim_start_matches(is_space).strip_prefix("raw") else {
            return Ok(false);
        };
        let behind = behind.trim_start_matches(is_space);
        let body = if let Some(body) = behind.strip_prefix("-%}") {
            body.trim_start_matches(is_space)
        } else if let Some(body) = behind.strip_prefix("%}") {
            body
        } else {
            return Ok(false);
        };
        self.advance(rest.len() - body.len());
        let mut searched = 0;
        while let Some(found) = body[searched..].find("{%").map(|found| found + searched) {
            let inner = &body[found + 2..];
            let sign = inner.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let tail = inner[usize::from(sign.is_some())..].trim_start_matches(is_space);
            let Some(tail) = tail.strip_prefix("endraw").map(|tail| tail.trim_start_matches(is_space)) else {
                searched = found + 2;
                continue;
            };
            let text = &body[..found];
            let kept = match sign {
                Some('-') => trim_end(text),
                None => self.without_indent(text),
                _ => text,
            };
            if !kept.is_empty() {
                self.push(Token::Text(kept.to_owned()));
            }
            self.advance(body.len() - tail.len());
            return match self.end("%}") {
                true => Ok(true),
                false => Err(Error::new("{% endraw %} takes nothing")),
            };
        }
        Err(Error::new("{% raw %} has no {% endraw %}"))
    }

    /// The tokens of a tag, up to its end. Within brackets, end marks are ignored.
    fn tag(&mut self, begin: Token) -> Result<(), Error> {
        let (mark, end) = match begin {
            Token::VariableBegin => ("}}", Token::VariableEnd),
            _ => ("%}", Token::BlockEnd),
        };
        self.push(begin);
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return Err(Error::new(format!("a tag has no end {mark}")));
            };
            let line = self.line;
            if open.is_empty() && self.end(mark) {
                self.tokens.push((end, line));
                return Ok(());
            }
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first == '\'' || first == '"' {
                self.string(first)?;
            } else if first == '_' || first.is_alphanumeric() {
                let name: String = rest.chars().take_while(|c| *c == '_' || c.is_alphanumeric()).collect();
                self.push(Token::Name(name.clone()));
                self.advance(name.len());
            } else if let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) {
                balance(&mut open, operator)?;
                self.push(Token::Op(operator));
                self.advance(operator.len());
            } else {
                return Err(Error::new(format!("{first:?} begins no expression")));
            }
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let lower = rest.get(..2).unwrap_or_default().to_ascii_lowercase();
        let radix = match lower.as_str() {
            "0x" => 16,
            "0o" => 8,
            "0b" => 2,
            _ => 10,
        };
        let token = if radix == 10 {
            // After a dot comes an index: `list.0.1` has two.
            let indexes = matches!(self.tokens.last(), Some((Token::Op("."), _)));
            let length = match indexes {
                true => rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()),
                false => decimal(rest),
            };
            let digits = rest[..length].replace('_', "");
            self.advance(length);
            if digits.contains(['.', 'e', 'E']) {
                digits.parse().ok().map(Token::Float)
            } else {
                digits.parse().ok().map(Token::Int)
            }
        } else {
            let length = rest[2..].find(|c: char| c != '_' && !c.is_digit(radix)).unwrap_or(rest.len() - 2);
            let digits = rest[2..2 + length].replace('_', "");
            self.advance(2 + length);
            i128::from_str_radix(&digits, radix).ok().map(Token::Int)
        };
        self.push(token.ok_or_else(|| Error::unsupported("an integer of more than 127 bits"))?);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), Error> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find_map(|(index, character)| {
            let ends = character == quote && !escaped;
            escaped = character == '\\' && !escaped;
            ends.then_some(index)
        });
        let Some(end) = end else {
            return Err(Error::new(format!("a string has no closing {quote}")));
        };
        let text = super::strings::unescape(&rest[1..end])?;
        self.push(Token::Str(text));
        self.advance(end + 1);
        Ok(())
    }
}

/// The position of the next tag, and its second character.
fn begin(text: &str) -> Option<(usize, char)> {
    text.match_indices('{').find_map(|(index, _)| {
        let kind = text[index + 1..].chars().next()?;
        matches!(kind, '%' | '{' | '#').then_some((index, kind))
    })
}

/// Length of a decimal number in bytes: `1`, `1_000`, `1.5`, `1e-3`. A dot without digits after it is not
/// part of it.
fn decimal(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        let mut at = from;
        while at < bytes.len()
            && (bytes[at].is_ascii_digit()
                || (bytes[at] == b'_' && at > from && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)))
        {
            at += 1;
        }
        at
    };
    let mut at = digits(0);
    if bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
        at = digits(at + 1);
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let signed = at + 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        if bytes.get(signed).is_some_and(u8::is_ascii_digit) {
            at = digits(signed);
        }
    }
    at
}

fn balance(open: &mut Vec<&'static str>, operator: &'static str) -> Result<(), Error> {
    let closing = match operator {
        "(" | "[" | "{" => {
            open.push(operator);
            return Ok(());
        }
        ")" => "(",
        "]" => "[",
        "}" => "{",
        _ => return Ok(()),
    };
    match open.pop() {
        Some(opening) if opening == closing => Ok(()),
        _ => Err(Error::new(format!("{operator:?} closes nothing"))),
    }
}
