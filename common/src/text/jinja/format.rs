//! `'…' % values` and `'…'.format(values)`.

use super::Error;
use super::arithmetic::{self, integer};
use super::eval::Machine;
use super::functions::Call;
use super::number;
use super::repr;
use super::value::Value;

/// The layout of one field.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    fill: Option<char>,
    align: Option<char>,
    plus: Option<char>,
    zero: bool,
    width: usize,
    grouping: bool,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Machine {
    /// Like `format % arguments`.
    pub(super) fn percent(&self, format: &str, arguments: &Value) -> Result<Value, Error> {
        let mut given: Vec<Value> = match arguments {
            Value::Tuple(items) => items.values.clone(),
            other => vec![other.clone()],
        };
        given.reverse();
        let mut used_mapping = false;
        let mut out = String::new();
        let mut characters = format.chars().peekable();
        while let Some(character) = characters.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let mut key = None;
            if characters.next_if_eq(&'(').is_some() {
                let name: String = characters.by_ref().take_while(|c| *c != ')').collect();
                key = Some(name);
            }
            let mut layout = Layout::default();
            while let Some(flag) = characters.next_if(|c| matches!(c, '-' | '+' | ' ' | '0' | '#')) {
                match flag {
                    '-' => layout.align = Some('<'),
                    '0' => layout.zero = true,
                    '+' => layout.plus = Some('+'),
                    ' ' => layout.plus = layout.plus.or(Some(' ')),
                    _ => return Err(Error::unsupported("%# in a format")),
                }
            }
            let digits = |characters: &mut std::iter::Peekable<std::str::Chars<'_>>| {
                let mut text = String::new();
                while let Some(digit) = characters.next_if(char::is_ascii_digit) {
                    text.push(digit);
                }
                text.parse::<usize>().unwrap_or(if text.is_empty() { 0 } else { usize::MAX })
            };
            layout.width = digits(&mut characters);
            if characters.next_if_eq(&'.').is_some() {
                layout.precision = Some(digits(&mut characters));
            }
            let Some(kind) = characters.next() else { return Err(Error::new("incomplete format")) };
            if kind == '%' {
                out.push('%');
                continue;
            }
            let value = match (&key, arguments) {
                (Some(key), Value::Dict(dict)) => {
                    used_mapping = true;
                    dict.text(key).cloned().ok_or_else(|| Error::new(format!("KeyError: '{key}'")))?
                }
                (Some(_), _) => return Err(Error::new("format requires a mapping")),
                (None, _) => {
                    given.pop().ok_or_else(|| Error::new("not enough arguments for format string"))?
                }
            };
            let text = self.percent_field(kind, &value, layout)?;
            self.budget.bytes(text.len())?;
            out.push_str(&text);
        }
        // Python treats anything that can be indexed as a mapping, which may have unused entries.
        let mapping =
            matches!(arguments, Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_));
        if !given.is_empty() && !used_mapping && !mapping {
            return Err(Error::new("not all arguments converted during string formatting"));
        }
        self.string(out)
    }

    fn percent_field(&self, kind: char, value: &Value, mut layout: Layout) -> Result<String, Error> {
        if layout.align.is_some() {
            layout.zero = false;
        }
        layout.align = layout.align.or(Some('>'));
        match kind {
            's' | 'r' => {
                let text = if kind == 's' { self.text(value)? } else { repr::repr(value, &self.budget)? };
                layout.zero = false;
                self.laid_out(&cut(&text, layout.precision), "", &layout)
            }
            'd' | 'i' | 'u' => {
                let number = match value {
                    Value::Float(value) => match number::truncate(*value) {
                        Some(value) => value?,
                        None => return Err(Error::new("cannot convert float infinity or NaN to integer")),
                    },
                    _ => {
                        integer(value).ok_or_else(|| wants("%d format: a real number is required", value))?
                    }
                };
                self.number(&Value::Int(number), Layout { kind: Some('d'), ..layout })
            }
            'x' | 'X' | 'o' => {
                integer(value).ok_or_else(|| wants("%x format: an integer is required", value))?;
                self.number(value, Layout { kind: Some(kind), ..layout })
            }
            'f' | 'F' | 'e' | 'g' => {
                arithmetic::float(value).ok_or_else(|| wants("must be real number", value))?;
                self.number(value, Layout { kind: Some(kind), ..layout })
            }
            _ => Err(Error::unsupported(format!("%{kind} in a format"))),
        }
    }

    /// Like `format.format(…)`.
    pub(super) fn format(&self, format: &str, call: &Call) -> Result<Value, Error> {
        let mut out = String::new();
        let mut next = 0;
        let mut characters = format.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '{' if characters.next_if_eq(&'{').is_some() => out.push('{'),
                '}' if characters.next_if_eq(&'}').is_some() => out.push('}'),
                '}' => return Err(Error::new("Single '}' encountered in format string")),
                '{' => {
                    let mut field = String::new();
                    loop {
                        match characters.next() {
                            Some('}') => break,
                            Some('{') => {
                                return Err(Error::unsupported("a field within a field of str.format"));
                            }
                            Some(character) => field.push(character),
                            None => return Err(Error::new("expected '}' before end of string")),
                        }
                    }
                    let text = self.format_field(&field, call, &mut next)?;
                    self.budget.bytes(text.len())?;
                    out.push_str(&text);
                }
                _ => out.push(character),
            }
        }
        self.string(out)
    }

    fn format_field(&self, field: &str, call: &Call, next: &mut usize) -> Result<String, Error> {
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (path, conversion) = match head.split_once('!') {
            Some((path, conversion)) => (path, Some(conversion)),
            None => (head, None),
        };
        if path.contains(['.', '[']) {
            return Err(Error::unsupported("attributes and items in str.format"));
        }
        let value = if path.is_empty() {
            *next += 1;
            call.positional.get(*next - 1).ok_or_else(|| Error::new("Replacement index out of range"))?
        } else if let Ok(index) = path.parse::<usize>() {
            call.positional.get(index).ok_or_else(|| Error::new("Replacement index out of range"))?
        } else {
            let named = call.named.iter().find(|(name, _)| **name == *path);
            &named.ok_or_else(|| Error::new(format!("KeyError: '{path}'")))?.1
        };
        let value = match conversion {
            None => value.clone(),
            Some("s") => self.string(self.text(value)?)?,
            Some("r") => self.string(repr::repr(value, &self.budget)?)?,
            Some(other) => return Err(Error::unsupported(format!("!{other} in str.format"))),
        };
        let layout = spec_layout(spec)?;
        match &value {
            Value::Bool(_) if spec.is_empty() => self.text(&value),
            Value::Str(text) => match layout.kind {
                None | Some('s') if layout.plus.is_none() && !layout.grouping => {
                    let align = layout.align.or(Some('<'));
                    let fill = layout.fill.or(layout.zero.then_some('0'));
                    let layout = Layout { align, fill, zero: false, ..layout };
                    self.laid_out(&cut(text, layout.precision), "", &layout)
                }
                _ => Err(Error::new("Unknown format code for object of type 'str'")),
            },
            value if value.is_number() => {
                let align = layout.align.or(Some('>'));
                self.number(value, Layout { align, ..layout })
            }
            _ if spec.is_empty() => self.text(&value),
            _ => Err(Error::new(format!(
                "unsupported format string passed to {}.__format__",
                value.type_name()
            ))),
        }
    }

    fn number(&self, value: &Value, layout: Layout) -> Result<String, Error> {
        if layout.precision.is_some_and(|precision| precision > 1000) {
            return Err(Error::unsupported("a precision beyond 1000"));
        }
        let (negative, mut digits) = match (layout.kind, integer(value)) {
            (None | Some('d'), Some(value)) => (value < 0, value.unsigned_abs().to_string()),
            (Some('x'), Some(value)) => (value < 0, format!("{:x}", value.unsigned_abs())),
            (Some('X'), Some(value)) => (value < 0, format!("{:X}", value.unsigned_abs())),
            (Some('o'), Some(value)) => (value < 0, format!("{:o}", value.unsigned_abs())),
            (Some('b'), Some(value)) => (value < 0, format!("{:b}", value.unsigned_abs())),
            (kind, _) => {
                let value = arithmetic::float(value).unwrap_or(f64::NAN);
                if !value.is_finite() {
                    return Err(Error::unsupported("formatting infinity or NaN"));
                }
                (value.is_sign_negative(), float_digits(value.abs(), kind, layout.precision)?)
            }
        };
        if layout.grouping {
            digits = grouped(&digits);
        }
        let sign = if negative { "-".to_owned() } else { layout.plus.map(String::from).unwrap_or_default() };
        self.laid_out(&digits, &sign, &layout)
    }

    /// Pads to the width; zeros go between the sign and the digits.
    fn laid_out(&self, text: &str, sign: &str, layout: &Layout) -> Result<String, Error> {
        let missing = layout.width.saturating_sub(text.chars().count() + sign.len());
        self.budget.bytes(missing.saturating_mul(4))?;
        let zero = layout.zero && layout.fill.is_none();
        if zero && layout.grouping && missing > 0 {
            return Err(Error::unsupported("zeros with grouping in a format"));
        }
        let fill = layout.fill.unwrap_or(if zero { '0' } else { ' ' }).to_string();
        let align = if zero { Some('=') } else { layout.align };
        let (left, right) = match align {
            Some('<') => (0, missing),
            Some('^') => (missing / 2, missing - missing / 2),
            _ => (missing, 0),
        };
        Ok(match align {
            Some('=') => format!("{sign}{}{text}", fill.repeat(missing)),
            _ => format!("{}{sign}{text}{}", fill.repeat(left), fill.repeat(right)),
        })
    }
}

fn wants(what: &str, value: &Value) -> Error {
    match value {
        Value::Undefined(why) => Error::new(&**why),
        _ => Error::new(format!("{what}, not {}", value.type_name())),
    }
}

fn cut(text: &str, characters: Option<usize>) -> String {
    characters.map_or_else(|| text.to_owned(), |count| text.chars().take(count).collect())
}

/// `[[fill]align][sign][0][width][,][.precision][type]`
fn spec_layout(spec: &str) -> Result<Layout, Error> {
    let unsupported = || Error::unsupported(format!("the format {spec:?}"));
    let mut layout = Layout::default();
    let characters: Vec<char> = spec.chars().collect();
    let mut at = 0;
    let is_align = |index: usize| characters.get(index).is_some_and(|c| matches!(c, '<' | '>' | '^' | '='));
    if is_align(1) {
        (layout.fill, layout.align, at) = (Some(characters[0]), Some(characters[1]), 2);
    } else if is_align(0) {
        (layout.align, at) = (Some(characters[0]), 1);
    }
    if let Some(sign @ ('+' | '-' | ' ')) = characters.get(at) {
        layout.plus = Some(*sign).filter(|sign| *sign != '-');
        at += 1;
    }
    if characters.get(at) == Some(&'0') {
        layout.zero = layout.align.is_none();
        if layout.align.is_some() && layout.fill.is_none() {
            layout.fill = Some('0');
        }
        at += 1;
    }
    let number = |at: &mut usize| {
        let start = *at;
        while characters.get(*at).is_some_and(char::is_ascii_digit) {
            *at += 1;
        }
        let text: String = characters[start..*at].iter().collect();
        (!text.is_empty()).then(|| text.parse::<usize>().unwrap_or(usize::MAX))
    };
    layout.width = number(&mut at).unwrap_or(0);
    if characters.get(at) == Some(&',') {
        layout.grouping = true;
        at += 1;
    }
    if characters.get(at) == Some(&'.') {
        at += 1;
        layout.precision = Some(number(&mut at).ok_or_else(unsupported)?);
    }
    layout.kind = characters.get(at).copied();
    let known = layout.kind.is_none_or(|kind| "sdxXobfFeg%".contains(kind));
    if at + usize::from(layout.kind.is_some()) != characters.len() || !known {
        return Err(unsupported());
    }
    Ok(layout)
}

fn grouped(digits: &str) -> String {
    let (whole, fraction) = digits.split_at(digits.find(['.', 'e', 'E', '%']).unwrap_or(digits.len()));
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

/// The digits of a number that is not negative.
fn float_digits(value: f64, kind: Option<char>, precision: Option<usize>) -> Result<String, Error> {
    let exponential = |precision: usize| {
        let text = format!("{value:.precision$e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        (digits.to_owned(), exponent)
    };
    let written = |digits: &str, exponent: i32| {
        format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    };
    match kind {
        None if precision.is_none() => Ok(repr::float(value)),
        Some('f' | 'F') => Ok(format!("{value:.*}", precision.unwrap_or(6))),
        Some('%') => Ok(format!("{:.*}%", precision.unwrap_or(6), value * 100.0)),
        Some('e') => {
            let (digits, exponent) = exponential(precision.unwrap_or(6));
            Ok(written(&digits, exponent))
        }
        Some('g') => {
            let precision = precision.unwrap_or(6).max(1);
            let (digits, exponent) = exponential(precision - 1);
            let trimmed = |text: &str| match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text.to_owned(),
            };
            if (-4..precision as i32).contains(&exponent) {
                let decimals = usize::try_from(precision as i32 - 1 - exponent).unwrap_or(0);
                Ok(trimmed(&format!("{value:.decimals$}")))
            } else {
                Ok(written(&trimmed(&digits), exponent))
            }
        }
        _ => Err(Error::unsupported("this format of a float")),
    }
}
