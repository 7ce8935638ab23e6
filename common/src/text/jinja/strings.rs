//! Python's functions on text.

use super::Error;

/// Like `str.isspace`: Unicode's white space and the four ASCII separators.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1c'..='\x1f')
}

pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

pub(super) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Like `str.splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut characters = text.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        let ends = matches!(
            character,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if !ends {
            continue;
        }
        let mut end = index + character.len_utf8();
        if character == '\r' && characters.next_if(|(_, next)| *next == '\n').is_some() {
            end += 1;
        }
        lines.push(&text[start..if keep_ends { end } else { index }]);
        start = end;
    }
    if start < text.len() {
        lines.push(&text[start..]);
    }
    lines
}

/// The escapes of a string literal, as in Python; unknown ones are kept.
pub(super) fn unescape(text: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        let Some(kind) = characters.next() else { break };
        match kind {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(kind),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                let more = characters.as_str().chars().take(2).take_while(|c| c.is_digit(8)).count();
                let digits: String = std::iter::once(kind).chain(characters.by_ref().take(more)).collect();
                out.push(code(&digits, 8)?);
            }
            'x' | 'u' | 'U' => {
                let length = match kind {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits: String = characters.by_ref().take(length).collect();
                if digits.len() != length {
                    return Err(Error::new(format!("a string has a cut escape \\{kind}{digits}")));
                }
                out.push(code(&digits, 16)?);
            }
            'N' => return Err(Error::unsupported("\\N{…} in a string")),
            _ => out.extend(['\\', kind]),
        }
    }
    Ok(out)
}

fn code(digits: &str, radix: u32) -> Result<char, Error> {
    u32::from_str_radix(digits, radix)
        .ok()
        .and_then(char::from_u32)
        .ok_or_else(|| Error::unsupported(format!("the character {digits} in a string")))
}

/// Like `str.title`.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for character in text.chars() {
        if within {
            out.extend(character.to_lowercase());
        } else {
            out.extend(upper_first(character));
        }
        within = character.is_lowercase() || character.is_uppercase() || is_title(character);
    }
    out
}

/// The title case of a character: its upper case, except for a few ligatures.
fn upper_first(character: char) -> impl Iterator<Item = char> {
    let text = match character {
        'ß' => "Ss".to_owned(),
        'Ǆ'..='ǆ' => "ǅ".to_owned(),
        'Ǉ'..='ǉ' => "ǈ".to_owned(),
        'Ǌ'..='ǌ' => "ǋ".to_owned(),
        'Ǳ'..='ǳ' => "ǲ".to_owned(),
        'ﬀ' => "Ff".to_owned(),
        'ﬁ' => "Fi".to_owned(),
        'ﬂ' => "Fl".to_owned(),
        _ => character.to_uppercase().collect(),
    };
    text.chars().collect::<Vec<_>>().into_iter()
}

fn is_title(character: char) -> bool {
    matches!(character, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}

/// Like `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => upper_first(first).chain(characters.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

/// A slice of a text by characters.
pub(super) fn slice(text: &str, start: usize, end: usize) -> &str {
    if start >= end {
        return "";
    }
    let at = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    &text[at(start)..at(end)]
}

/// Like `str.isupper` or `str.islower`: there is a cased letter, and all cased letters have this case.
pub(super) fn has_case(text: &str, upper: bool) -> bool {
    let right = |c: char| if upper { c.is_uppercase() } else { c.is_lowercase() };
    let wrong = |c: char| if upper { c.is_lowercase() } else { c.is_uppercase() };
    text.chars().any(right) && !text.chars().any(|c| wrong(c) || is_title(c))
}
