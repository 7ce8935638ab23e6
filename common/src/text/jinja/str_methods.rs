//! Methods of strings.

use super::Error;
use super::arithmetic::integer;
use super::eval::Machine;
use super::functions::{Call, not_integer, required};
use super::strings::{self, is_space};
use super::value::Value;
use std::rc::Rc;

impl Machine {
    pub(super) fn str_method(&self, text: &str, name: &str, call: Call) -> Result<Value, Error> {
        self.budget.steps(text.len() / 16)?;
        match name {
            "format" => return self.format(text, &call),
            "upper" | "lower" | "casefold" | "title" | "capitalize" | "swapcase" => {
                call.bind(name, [])?;
                return self.string(match name {
                    "upper" => text.to_uppercase(),
                    "lower" => text.to_lowercase(),
                    "casefold" if text.is_ascii() => text.to_ascii_lowercase(),
                    "casefold" => return Err(Error::unsupported("casefold() beyond ASCII")),
                    "title" => strings::title(text),
                    "capitalize" => strings::capitalize(text),
                    _ => swap_case(text),
                });
            }
            "strip" | "lstrip" | "rstrip" => {
                let [characters] = call.bind(name, ["chars"])?;
                return self.string(self.strip(text, name, characters.as_ref())?);
            }
            "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
                return self.split(text, name, call);
            }
            "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => return self.pad(text, name, call),
            _ => {}
        }
        if let Some(answer) = character_class(text, name) {
            call.bind(name, [])?;
            return Ok(Value::Bool(answer));
        }
        self.search(text, name, call)
    }

    /// Strips white space, or any of the given characters.
    pub(super) fn strip<'t>(
        &self,
        text: &'t str,
        name: &str,
        characters: Option<&Value>,
    ) -> Result<&'t str, Error> {
        let set: Option<Vec<char>> = match characters {
            None | Some(Value::None) => None,
            Some(Value::Str(set)) => Some(set.chars().collect()),
            Some(_) => return Err(Error::new(format!("{name} arg must be None or str"))),
        };
        self.budget.steps(set.as_ref().map_or(0, |set| set.len() / 64 * text.len()))?;
        let strips = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
        Ok(match name {
            "lstrip" => text.trim_start_matches(strips),
            "rstrip" => text.trim_end_matches(strips),
            _ => text.trim_matches(strips),
        })
    }

    fn split(&self, text: &str, name: &str, call: Call) -> Result<Value, Error> {
        if matches!(name, "partition" | "rpartition") {
            let [separator] = required(call.bind(name, ["sep"])?, name)?;
            let separator = self.nonempty(&separator)?;
            let found = if name == "partition" { text.find(&*separator) } else { text.rfind(&*separator) };
            let parts = match found {
                Some(at) => [&text[..at], &*separator, &text[at + separator.len()..]],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            self.budget.bytes(text.len())?;
            return self.tuple(parts.map(Value::str).to_vec());
        }
        let parts: Vec<&str> = if name == "splitlines" {
            let [keep] = call.bind(name, ["keepends"])?;
            strings::lines(text, keep.is_some_and(|keep| keep.truth()))
        } else {
            let [separator, most] = call.bind(name, ["sep", "maxsplit"])?;
            let most = match &most {
                None => None,
                Some(most) => usize::try_from(integer(most).ok_or_else(|| not_integer(most))?).ok(),
            };
            match separator {
                None | Some(Value::None) => words(text, most, name == "rsplit"),
                Some(separator) => {
                    let separator = self.nonempty(&separator)?;
                    let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
                    if name == "split" {
                        text.splitn(most, &*separator).collect()
                    } else {
                        let mut parts: Vec<&str> = text.rsplitn(most, &*separator).collect();
                        parts.reverse();
                        parts
                    }
                }
            }
        };
        self.budget.bytes(text.len())?;
        self.list(parts.into_iter().map(Value::str).collect())
    }

    fn nonempty(&self, separator: &Value) -> Result<Rc<str>, Error> {
        match separator {
            Value::Str(text) if text.is_empty() => Err(Error::new("empty separator")),
            Value::Str(text) => Ok(Rc::clone(text)),
            _ => Err(Error::new(format!("must be str or None, not {}", separator.type_name()))),
        }
    }

    fn pad(&self, text: &str, name: &str, call: Call) -> Result<Value, Error> {
        if name == "expandtabs" {
            let [size] = call.bind(name, ["tabsize"])?;
            return self.expand_tabs(text, size.as_ref());
        }
        let [width, fill] = match name {
            "zfill" => {
                let [width] = call.bind(name, ["width"])?;
                [width, Some(Value::str("0"))]
            }
            _ => call.bind(name, ["width", "fillchar"])?,
        };
        let [width] = required([width], name)?;
        let width = integer(&width).ok_or_else(|| not_integer(&width))?;
        let fill = match &fill {
            None => ' ',
            Some(Value::Str(fill)) if fill.chars().count() == 1 => fill.chars().next().unwrap_or(' '),
            _ => return Err(Error::new("The fill character must be exactly one character long")),
        };
        let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
        let missing = width.saturating_sub(text.chars().count());
        self.budget.bytes(missing.saturating_mul(4).saturating_add(text.len()))?;
        let side = |count: usize| fill.to_string().repeat(count);
        self.string(match name {
            "ljust" => format!("{text}{}", side(missing)),
            "rjust" => format!("{}{text}", side(missing)),
            "zfill" => match text.strip_prefix(['+', '-']) {
                Some(digits) => format!("{}{}{digits}", &text[..1], side(missing)),
                None => format!("{}{text}", side(missing)),
            },
            _ => {
                let left = missing / 2 + (missing & width & 1);
                format!("{}{text}{}", side(left), side(missing - left))
            }
        })
    }

    fn expand_tabs(&self, text: &str, size: Option<&Value>) -> Result<Value, Error> {
        let size = match size {
            None => 8,
            Some(size) => integer(size).ok_or_else(|| not_integer(size))?,
        };
        let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
        self.budget.bytes(text.matches('\t').count().saturating_mul(size).saturating_add(text.len()))?;
        let (mut out, mut column) = (String::new(), 0);
        for character in text.chars() {
            match character {
                '\t' if size > 0 => {
                    let spaces = size - column % size;
                    out.extend(std::iter::repeat_n(' ', spaces));
                    column += spaces;
                }
                '\t' => {}
                _ => {
                    column = if matches!(character, '\n' | '\r') { 0 } else { column + 1 };
                    out.push(character);
                }
            }
        }
        self.string(out)
    }

    fn search(&self, text: &str, name: &str, call: Call) -> Result<Value, Error> {
        match name {
            "join" => {
                let [items] = required(call.bind(name, ["iterable"])?, name)?;
                let items = self.items(&items)?;
                let strings: Option<Vec<&str>> = items
                    .iter()
                    .map(|item| if let Value::Str(item) = item { Some(&**item) } else { None })
                    .collect();
                let strings = strings.ok_or_else(|| Error::new("sequence item: expected str instance"))?;
                self.joined(text, &strings)
            }
            "replace" => {
                let [old, new, count] = call.bind(name, ["old", "new", "count"])?;
                let [old, new] = required([old, new], name)?;
                self.replace(text, &old, &new, count.as_ref())
            }
            "startswith" | "endswith" => {
                if call.positional.len() > 1 {
                    return Err(Error::unsupported(format!("{name}() with bounds")));
                }
                let [affix] = required(call.bind(name, ["prefix"])?, name)?;
                let matches = |affix: &str| match name {
                    "startswith" => text.starts_with(affix),
                    _ => text.ends_with(affix),
                };
                let texts = match &affix {
                    Value::Tuple(items) => items.values.as_slice(),
                    one => std::slice::from_ref(one),
                };
                let mut found = false;
                for affix in texts {
                    let Value::Str(affix) = affix else {
                        return Err(Error::new(format!(
                            "{name} first arg must be str or a tuple of str, not {}",
                            affix.type_name()
                        )));
                    };
                    found = found || matches(affix);
                }
                Ok(Value::Bool(found))
            }
            "removeprefix" | "removesuffix" => match call.bind(name, ["affix"])? {
                [Some(Value::Str(affix))] => {
                    let rest = match name {
                        "removeprefix" => text.strip_prefix(&*affix),
                        _ => text.strip_suffix(&*affix),
                    };
                    self.string(rest.unwrap_or(text))
                }
                _ => Err(Error::new(format!("{name}() argument must be str"))),
            },
            "count" | "find" | "rfind" | "index" | "rindex" => {
                if call.positional.len() > 1 {
                    return Err(Error::unsupported(format!("{name}() with bounds")));
                }
                let [Some(Value::Str(wanted))] = call.bind(name, ["sub"])? else {
                    return Err(Error::new(format!("{name}() argument must be str")));
                };
                let found = match name {
                    "count" if wanted.is_empty() => return Ok(Value::Int(text.chars().count() as i128 + 1)),
                    "count" => return Ok(Value::Int(text.matches(&*wanted).count() as i128)),
                    "find" | "index" => text.find(&*wanted),
                    _ => text.rfind(&*wanted),
                };
                match found {
                    Some(at) => Ok(Value::Int(text[..at].chars().count() as i128)),
                    None if name.ends_with("index") => Err(Error::new("substring not found")),
                    None => Ok(Value::Int(-1)),
                }
            }
            _ => Err(Error::unsupported(format!("{name}() of a string"))),
        }
    }

    pub(super) fn joined(&self, separator: &str, parts: &[&str]) -> Result<Value, Error> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let between = separator.len().saturating_mul(parts.len().saturating_sub(1));
        self.budget.bytes(length.saturating_add(between))?;
        self.string(parts.join(separator))
    }

    pub(super) fn replace(
        &self,
        text: &str,
        old: &Value,
        new: &Value,
        count: Option<&Value>,
    ) -> Result<Value, Error> {
        let (Value::Str(old), Value::Str(new)) = (old, new) else {
            return Err(Error::new(format!(
                "replace() arguments must be str, not {} and {}",
                old.type_name(),
                new.type_name()
            )));
        };
        let most = match count {
            None | Some(Value::None) => usize::MAX,
            Some(count) => {
                let count = integer(count).ok_or_else(|| not_integer(count))?;
                usize::try_from(count).unwrap_or(usize::MAX)
            }
        };
        let occurrences =
            if old.is_empty() { text.chars().count() + 1 } else { text.matches(&**old).count() };
        let grown = occurrences.min(most).saturating_mul(new.len()).saturating_add(text.len());
        self.budget.bytes(grown)?;
        self.string(text.replacen(&**old, new, most))
    }
}

/// Like `split()` without a separator: splits at runs of white space, with none at the ends.
fn words(text: &str, most: Option<usize>, from_end: bool) -> Vec<&str> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest = strings::trim(text);
    if from_end {
        rest = strings::trim_end(text);
        while !rest.is_empty() && !strings::trim(rest).is_empty() {
            match rest.rfind(is_space).filter(|_| parts.len() < most) {
                Some(at) => {
                    let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                    parts.push(&rest[at + width..]);
                    rest = strings::trim_end(&rest[..at]);
                }
                None => {
                    parts.push(rest);
                    break;
                }
            }
        }
        parts.reverse();
        return parts;
    }
    if most < usize::MAX {
        rest = text.trim_start_matches(is_space);
    }
    while !rest.is_empty() {
        match rest.find(is_space).filter(|_| parts.len() < most) {
            Some(at) => {
                parts.push(&rest[..at]);
                rest = rest[at..].trim_start_matches(is_space);
            }
            None => {
                parts.push(rest);
                break;
            }
        }
    }
    parts
}

fn swap_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_uppercase() {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
    }
    out
}

/// The `is…` methods.
fn character_class(text: &str, name: &str) -> Option<bool> {
    let all = |class: fn(char) -> bool| !text.is_empty() && text.chars().all(class);
    let ascii_only = |class: fn(char) -> bool| text.is_ascii() && all(class);
    Some(match name {
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isascii" => text.is_ascii(),
        "isspace" => all(is_space),
        "isupper" => strings::has_case(text, true),
        "islower" => strings::has_case(text, false),
        "isnumeric" => all(char::is_numeric),
        "isdigit" | "isdecimal" => ascii_only(|c| c.is_ascii_digit()),
        "isprintable" => text.chars().all(super::repr::is_printable),
        _ => return None,
    })
}
