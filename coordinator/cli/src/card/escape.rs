//! Escapes a job's texts for Markdown and YAML: file and model names are arbitrary and must not become
//! markup.

/// Characters of a name that can stand in a code span, also in a table.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || " ._/@:+=,#()-".contains(character)
}

/// A name as a code span, or as escaped text if it holds characters that could end the span or a table's
/// cell.
pub(super) fn name(text: &str) -> String {
    let is_code = !text.is_empty() && !text.starts_with(' ') && !text.ends_with(' ');
    match is_code && text.chars().all(is_plain) {
        true => format!("`{text}`"),
        false => markdown(text),
    }
}

/// Escapes text so that it cannot begin an element of Markdown or HTML, or end a table cell. Other
/// punctuation stays readable.
pub(crate) fn markdown(text: &str) -> String {
    let text = visible(text);
    let mut escaped = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let (before, after) = (&text[..at], &text[at + character.len_utf8()..]);
        let is_marked = match character {
            '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' => true,
            // Headings, lists and underlines of headings.
            '#' | '-' | '+' | '=' => before.trim().is_empty(),
            '.' | ')'
                if !before.trim().is_empty()
                    && before.trim_start().bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                true
            }
            // Addresses become links by themselves.
            ':' => after.starts_with("//"),
            '.' => before.to_ascii_lowercase().ends_with("www"),
            _ => false,
        };
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // An escaped one is the start of a formula before a bracket.
            '\\' => escaped.push_str("&#92;"),
            other => {
                if is_marked {
                    escaped.push('\\');
                }
                escaped.push(other);
            }
        }
    }
    escaped
}

/// Replaces control characters and characters that reorder text with symbols.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character) {
            code @ ..0x20 => shown.extend(char::from_u32(0x2400 + code)),
            0x7f => shown.push('\u{2421}'),
            code @ (0x80..=0x9f | 0x2028 | 0x2029 | 0x202a..=0x202e | 0x2066..=0x2069 | 0xfeff) => {
                shown.push_str(&format!("\u{27e8}U+{code:04X}\u{27e9}"));
            }
            _ => shown.push(character),
        }
    }
    shown
}

/// A YAML string in double quotes, on one line. YAML's readers refuse characters that are not printable, so
/// those are escaped.
pub(super) fn yaml(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match u32::from(character) {
            0x22 | 0x5c => quoted.extend(['\\', character]),
            code @ (..0x20
            | 0x7f..=0xa0
            | 0x2028
            | 0x2029
            | 0x202a..=0x202e
            | 0x2066..=0x2069
            | 0xfeff
            | 0xfffe
            | 0xffff) => {
                quoted.push_str(&format!("\\u{code:04x}"));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// A fenced code block: its fence is longer than any run of backticks in the text.
pub(super) fn fenced(language: &str, text: &str) -> String {
    let longest = text.split(|character| character != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_names() {
        assert_eq!(name("pairs.train.jsonl.gz"), "`pairs.train.jsonl.gz`");
        assert_eq!(name("a`b"), "a\\`b");
        assert_eq!(name("a|b\n---\nlicense: mit"), "a\\|b␊---␊license: mit");
        assert_eq!(markdown("<img src=x> & [a](b)"), "&lt;img src=x&gt; &amp; \\[a\\](b)");
        assert_eq!(markdown("\u{202e}x\u{0}"), "⟨U+202E⟩x␀");
        assert_eq!(markdown("https://a.example www.b.example @c"), "https\\://a.example www\\.b.example @c");
        assert_eq!(markdown("- a"), "\\- a");
        assert_eq!([markdown(r"\(x\)"), markdown(" 1. a")], ["&#92;(x&#92;)", " 1\\. a"]);
        assert_eq!([markdown("1. a"), markdown("# a")], ["1\\. a", "\\# a"]);
        assert_eq!(markdown("dpo (beta 0.1), v1.2-rc: a + b"), "dpo (beta 0.1), v1.2-rc: a + b");
    }

    #[test]
    fn a_yaml_string_is_what_a_reader_of_json_reads() {
        for text in
            ["a", "", "on", "1:20", "- x", "\"\\", "a\n---\nb: c", "é 😀 \u{85}\u{2028}\u{feff}\u{7f}\u{9b}"]
        {
            let quoted = yaml(text);
            assert_eq!(quoted.lines().count(), 1, "{quoted}");
            assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
            assert_eq!(serde_norway::from_str::<String>(&quoted).unwrap(), text);
        }
    }

    #[test]
    fn a_fence_outlasts_the_backticks_in_it() {
        assert_eq!(fenced("yaml", "a: b\n"), "```yaml\na: b\n```");
        assert_eq!(fenced("", "x ```` y"), "`````\nx ```` y\n`````");
    }
}
