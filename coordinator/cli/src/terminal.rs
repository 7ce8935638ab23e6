//! What fits between the edges of a terminal.

use console::Term;

/// Columns of the terminal that standard output goes to; without bound where that is no terminal.
pub(super) fn stdout_columns() -> usize {
    columns(&Term::stdout())
}

/// The same of standard error.
pub(super) fn stderr_columns() -> usize {
    columns(&Term::stderr())
}

fn columns(term: &Term) -> usize {
    term.size_checked().map_or(usize::MAX, |(_, columns)| usize::from(columns))
}

/// Breaks a text between words into lines of at most `columns`, all but the first indented. A word longer than that has
/// a line of its own.
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
        assert_eq!(wrap("[1/2] a   0.1 s", 80), "[1/2] a   0.1 s", "what fits stays as it is");
        assert_eq!(wrap("at /a/very/long/path", 10), "at\n    /a/very/long/path");
    }
}
