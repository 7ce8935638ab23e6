//! Width of the terminal, and wrapping of text to it.

use console::Term;

/// Columns of the terminal of standard output; unlimited if it is not a terminal.
pub(super) fn stdout_columns() -> usize {
    columns(&Term::stdout())
}

/// Columns of the terminal of standard error; unlimited if it is not a terminal.
pub(super) fn stderr_columns() -> usize {
    columns(&Term::stderr())
}

fn columns(term: &Term) -> usize {
    term.size_checked().map_or(usize::MAX, |(_, columns)| usize::from(columns))
}

/// Wraps a text at spaces to lines of at most `columns`, indented except for the first. A longer word has a
/// separate line.
pub(super) fn wrap(text: &str, columns: usize) -> String {
    const INDENT: &str = "    ";
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_inclusive(' ') {
        let width = line.chars().count() + word.trim_end().chars().count();
        if width > columns && !line.trim().is_empty() {
            lines.push(line.trim_end().to_owned());
            line = INDENT.to_owned();
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_break_between_words() {
        assert_eq!(wrap("warning: the prompts are cut", 16), "warning: the\n    prompts are\n    cut");
        assert_eq!(wrap("[1/2] a   0.1 s", 80), "[1/2] a   0.1 s", "a short text is unchanged");
        assert_eq!(wrap("at /a/very/long/path", 10), "at\n    /a/very/long/path");
    }
}
