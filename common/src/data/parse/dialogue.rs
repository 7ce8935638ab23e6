//! Dialogues written as one text: `\n\nHuman: …\n\nAssistant: …`, and the variant with `## Human:` headings.

use super::excerpt;
use crate::data::rows::{Message, Prompt, Role};

/// The two headings of a style; each stands at the start of a line.
struct Style {
    human: &'static str,
    assistant: &'static str,
}

const STYLES: [Style; 2] = [
    Style { human: "\n\nHuman:", assistant: "\n\nAssistant:" },
    Style { human: "\n## Human:", assistant: "\n## Assistant:" },
];

/// The text with the white space before its first heading made uniform, and its style; `None` for other texts.
fn recognise(text: &str) -> Option<(String, &'static Style)> {
    let text = text.trim_start();
    let style = STYLES.iter().find(|style| text.starts_with(style.human.trim_start()))?;
    Some((format!("\n\n{text}"), style))
}

/// A prompt in dialogue form: it starts with a human turn, and either ends there or with an empty assistant turn.
/// `None` where the text has no such form.
pub(super) fn prompt(text: &str) -> Option<Result<Prompt, String>> {
    let (text, style) = recognise(text)?;
    Some(read_prompt(&text, style))
}

/// Two whole dialogues that part in their last answer: the prompt is the shared prefix up to the last assistant
/// heading. `None` where the texts are no dialogues.
pub(super) fn pair(first: &str, second: &str) -> Option<Result<(Prompt, String, String), String>> {
    let (first, style) = recognise(first)?;
    let (second, _) = recognise(second)?;
    let shared = shared_prefix(&first, &second);
    let Some(heading) = first[..shared].rfind(style.assistant) else {
        return Some(Err(format!(
            "the two dialogues part before the first assistant turn, after {:?}; they must share their prompt",
            excerpt(&first[..shared], 40)
        )));
    };
    let end = heading + style.assistant.len();
    let prompt = read_prompt(&first[..end], style);
    Some(prompt.map(|prompt| (prompt, first[end..].trim().to_owned(), second[end..].trim().to_owned())))
}

/// One whole dialogue: the prompt before its last answer, and that answer (empty where it ends with a heading).
pub(super) fn whole(text: &str) -> Option<Result<(Prompt, String), String>> {
    let (text, style) = recognise(text)?;
    let Some(heading) = text.rfind(style.assistant) else {
        return Some(read_prompt(&text, style).map(|prompt| (prompt, String::new())));
    };
    let end = heading + style.assistant.len();
    Some(read_prompt(&text[..end], style).map(|prompt| (prompt, text[end..].trim().to_owned())))
}

fn shared_prefix(first: &str, second: &str) -> usize {
    let mut shared = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    while !first.is_char_boundary(shared) {
        shared -= 1;
    }
    shared
}

fn read_prompt(text: &str, style: &Style) -> Result<Prompt, String> {
    let mut messages = turns(text, style);
    if messages.last().is_some_and(|last| last.role == Role::Assistant && last.content.is_empty()) {
        messages.pop();
    }
    super::turns::check_prompt(messages)
}

fn turns(text: &str, style: &Style) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut rest = text;
    let mut open: Option<Role> = None;
    loop {
        let human = rest.find(style.human).map(|at| (at, Role::User, style.human.len()));
        let assistant = rest.find(style.assistant).map(|at| (at, Role::Assistant, style.assistant.len()));
        let next = [human, assistant].into_iter().flatten().min_by_key(|(at, ..)| *at);
        let end = next.map_or(rest.len(), |(at, ..)| at);
        if let Some(role) = open {
            messages.push(Message::new(role, rest[..end].trim()));
        }
        let Some((at, role, length)) = next else {
            return messages;
        };
        rest = &rest[at + length..];
        open = Some(role);
    }
}
