/// The error of encoding text, with advice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("{file}: {what}")]
    File { file: String, what: String },
    #[error("{field}: {what}; {advice}")]
    Setting { field: &'static str, what: String, advice: &'static str },
    /// The template itself is broken, or refuses this prompt.
    #[error(
        "the chat template fails: {what}; on the prompt {prompt:?}: repair the row, or set text.template to one that takes it"
    )]
    Template { what: String, prompt: String },
    /// The dialogue with its response does not start with the rendered prompt.
    #[error(
        "the chat template changes what was rendered before: the prompt is {prompt:?}, with its response the dialogue is {dialogue:?}; responses could not be separated from prompts: repair the row, or set text.template to one that only appends"
    )]
    NotAppended { prompt: String, dialogue: String },
    /// The response changes the prompt's last tokens.
    #[error(
        "the response {response:?} joins with the end of the prompt {prompt:?} into other tokens than the prompt has alone; a model that samples from the prompt never sees these: start the response with white space, or set text.template to one that ends prompts with a heading"
    )]
    Joined { prompt: String, response: String },
    /// EOS would end the response early; BOS and others would be read as turns.
    #[error(
        "the {part} spells the special token {token:?} out, in {text:?}: it would be read as a turn's end or start; texts of the data never become control tokens: remove it from the row"
    )]
    ControlToken { part: &'static str, token: String, text: String },
    #[error("{0}")]
    Tokenizer(String),
}

/// The end of a text, for messages.
pub(super) fn tail(text: &str, characters: usize) -> String {
    match text.char_indices().rev().nth(characters) {
        Some((start, first)) => format!("…{}", &text[start + first.len_utf8()..]),
        None => text.to_owned(),
    }
}

/// The start of a text, for messages.
pub(super) fn head(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
