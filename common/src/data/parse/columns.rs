//! The known columns of data sets, and how each is read. `common/README.md` shows this table.

/// The purpose for which a record is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Prompts,
    Pairs,
    Golden,
    Demonstrations,
}

/// The meaning of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The prompt, or part of it. Every set needs all of it.
    Prompt,
    /// A response; pairs and prompts do not use it.
    Answer,
    /// Compared responses, or which of them is better; only pairs use them.
    Comparison,
    /// The margin of a preference; only pairs use it.
    Margin,
    /// Whether the response is desirable; prompts do not use it.
    Label,
    /// The part of a benchmark that a pair belongs to; only pairs use it.
    Group,
    /// An unsupported part of a prompt.
    Unsupported(&'static str),
}

/// A known column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// The formats that have it.
    pub formats: &'static str,
    pub kind: Kind,
    /// Its meaning, for the table.
    pub meaning: &'static str,
}

/// The handling of a column that was not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Ignored, and listed by name.
    Ignored,
    /// Refused, since it would change the meaning of the row; with advice.
    Refused(&'static str),
}

impl Column {
    pub(super) fn unread(&self, purpose: Purpose) -> Unread {
        use Purpose::{Demonstrations, Golden, Pairs, Prompts};
        match (self.kind, purpose) {
            (Kind::Unsupported(advice), _) => Unread::Refused(advice),
            (Kind::Prompt, _) => Unread::Refused(
                "the prompt is read from another column and this one does not agree; keep one of them",
            ),
            (Kind::Comparison, Pairs) => {
                Unread::Refused("the pair is read from other columns; keep either these or those")
            }
            (Kind::Margin, Pairs) => Unread::Refused(
                "its meaning is not clear here; give margin, or score_chosen and score_rejected, or rename it",
            ),
            (Kind::Label, Pairs | Golden | Demonstrations) => {
                Unread::Refused("its meaning is not clear with these columns; rename it if it is not a label")
            }
            (Kind::Answer, _)
            | (Kind::Group, _)
            | (Kind::Comparison | Kind::Margin, Prompts | Golden | Demonstrations)
            | (Kind::Label, Prompts) => Unread::Ignored,
        }
    }
}

pub(crate) fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.name == name)
}

const TOOLS: &str = "tools are not supported: leave the row out, or write the tools into the system message as the \
                     model's template does";
const MEDIA: &str = "only text is supported: leave the row out";
const ARGUMENTS: &str =
    "the template is rendered with its defaults: set them in text.template, and remove the column";

const fn column(name: &'static str, formats: &'static str, kind: Kind, meaning: &'static str) -> Column {
    Column { name, formats, kind, meaning }
}

/// All known columns.
pub const COLUMNS: &[Column] = &[
    column(
        "prompt",
        "TRL, HH, UltraFeedback, Nectar",
        Kind::Prompt,
        "a string, one user turn or a dialogue; or messages",
    ),
    column("query", "DSP", Kind::Prompt, "as `prompt`"),
    column("question", "Orca, GSM8K", Kind::Prompt, "as `prompt`"),
    column(
        "instruction",
        "Alpaca, UltraFeedback",
        Kind::Prompt,
        "as `prompt`; `input` or `context` follows after a blank line",
    ),
    column(
        "input",
        "Alpaca, OpenAI",
        Kind::Prompt,
        "what `instruction` is about; alone, as `prompt`; or an object with `messages`",
    ),
    column("context", "Dolly", Kind::Prompt, "what `instruction` is about"),
    column("system", "ShareGPT, Alpaca, Orca", Kind::Prompt, "the system turn, before all others"),
    column("system_prompt", "Orca", Kind::Prompt, "as `system`"),
    column(
        "history",
        "Alpaca, SHP",
        Kind::Prompt,
        "turns before the prompt: `[user, assistant]` pairs or messages; SHP's string is the prompt",
    ),
    column(
        "messages",
        "TRL, OpenAI",
        Kind::Prompt,
        "`{role, content}` turns; the last assistant turn is the answer",
    ),
    column("conversations", "ShareGPT", Kind::Prompt, "as `messages`, of `{from, value}` turns"),
    column("golden", "Foil", Kind::Answer, "the golden answer; of several, in a list or by name, the first"),
    column("answer", "Foil, GSM8K", Kind::Answer, "the answer: a string or a message"),
    column("completion", "TRL, KTO", Kind::Answer, "as `answer`"),
    column("response", "Orca, Dolly", Kind::Answer, "as `answer`"),
    column("output", "Alpaca", Kind::Answer, "as `answer`"),
    column(
        "chosen",
        "TRL, HH, ShareGPT, UltraFeedback",
        Kind::Comparison,
        "the better answer: a string, a message, messages with or without the prompt, or a whole dialogue; or a list of \
         strings, each of which is better than each of `rejected`",
    ),
    column("rejected", "TRL, HH, ShareGPT, UltraFeedback", Kind::Comparison, "the worse answer, as `chosen`"),
    column("preferred_output", "OpenAI", Kind::Comparison, "as `chosen`"),
    column("non_preferred_output", "OpenAI", Kind::Comparison, "as `rejected`"),
    column("text", "DSP", Kind::Comparison, "a list of dialogues or `query<sep>answer` texts, with `score`"),
    column(
        "completions",
        "UltraFeedback",
        Kind::Comparison,
        "a list of `{response, overall_score}`: a pair for every two of different score",
    ),
    column(
        "answers",
        "Nectar",
        Kind::Comparison,
        "a list of `{answer, rank}`: a pair for every two of different rank, 1 the best",
    ),
    column("human_ref_A", "SHP", Kind::Comparison, "the one answer"),
    column("human_ref_B", "SHP", Kind::Comparison, "the other answer"),
    column("score", "DSP", Kind::Margin, "a number for each of `text`"),
    column("scores", "DSP", Kind::Margin, "as `score`"),
    column("margin", "TRL", Kind::Margin, "by how much `chosen` is better, from 0 on"),
    column(
        "score_chosen",
        "UltraFeedback",
        Kind::Margin,
        "with `score_rejected`: their difference is the margin",
    ),
    column("score_rejected", "UltraFeedback", Kind::Margin, "see `score_chosen`"),
    column("chosen_score", "TRL", Kind::Margin, "as `score_chosen`"),
    column("rejected_score", "TRL", Kind::Margin, "as `score_rejected`"),
    column("chosen_rating", "UltraFeedback", Kind::Margin, "as `score_chosen`"),
    column("rejected_rating", "UltraFeedback", Kind::Margin, "as `score_rejected`"),
    column("chosen-rating", "UltraFeedback", Kind::Margin, "as `score_chosen`"),
    column("rejected-rating", "UltraFeedback", Kind::Margin, "as `score_rejected`"),
    column(
        "label",
        "KTO",
        Kind::Label,
        "true: the answer is used; false: the row gives no answer, and is counted",
    ),
    column("kto_tag", "ShareGPT, Alpaca", Kind::Label, "as `label`"),
    column(
        "labels",
        "SHP, TRL",
        Kind::Label,
        "SHP's 1: `human_ref_A` is better, 0: `human_ref_B`; labels of steps are refused",
    ),
    column(
        "subset",
        "RewardBench",
        Kind::Group,
        "of evaluation pairs: the part of the benchmark, on which accuracy is reported too",
    ),
    column("domain", "RM-Bench, SHP", Kind::Group, "as `subset`"),
    column("tools", "TRL, ShareGPT, OpenAI", Kind::Unsupported(TOOLS), "refused unless empty"),
    column("functions", "OpenAI", Kind::Unsupported(TOOLS), "refused unless empty"),
    column("tool_calls", "OpenAI", Kind::Unsupported(TOOLS), "refused unless empty"),
    column("function_call", "OpenAI", Kind::Unsupported(TOOLS), "refused unless empty"),
    column("documents", "TRL", Kind::Unsupported(TOOLS), "refused unless empty"),
    column("images", "TRL, ShareGPT, Alpaca", Kind::Unsupported(MEDIA), "refused unless empty"),
    column("image", "TRL", Kind::Unsupported(MEDIA), "refused unless empty"),
    column("videos", "ShareGPT, Alpaca", Kind::Unsupported(MEDIA), "refused unless empty"),
    column("audios", "ShareGPT, Alpaca", Kind::Unsupported(MEDIA), "refused unless empty"),
    column("chat_template_kwargs", "TRL", Kind::Unsupported(ARGUMENTS), "refused unless empty"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of `common/README.md`.
    fn page() -> String {
        let mut lines = vec!["| column | formats | read as |".to_owned(), "|---|---|---|".to_owned()];
        lines.extend(
            COLUMNS
                .iter()
                .map(|column| format!("| `{}` | {} | {} |", column.name, column.formats, column.meaning)),
        );
        lines.join("\n")
    }

    #[test]
    fn the_page_shows_the_known_columns() {
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&page()), "put this table into common/README.md:\n\n{}\n", page());
    }

    #[test]
    fn every_column_is_named_once() {
        for (index, column) in COLUMNS.iter().enumerate() {
            assert!(COLUMNS[..index].iter().all(|other| other.name != column.name), "{}", column.name);
        }
    }
}
