//! Dialogues written as one text: `\n\nHuman: …\n\nAssistant: …`, and the variant with `## Human:` headings.
//!
//! A heading is at the start of a line. If some `Human:` headings follow a blank line, the others are text,
//! as in the HH data; if none does, every line that starts with a heading is a turn. Windows line ends are
//! accepted.

use super::value::excerpt;
use crate::data::rows::{Message, Prompt, Role};
use std::borrow::Cow;

/// The two headings of a style.
#[derive(Clone, Copy, Debug)]
struct Style {
    human: &'static str,
    assistant: &'static str,
    /// Turns may have to follow a blank line.
    spaced: bool,
}

const STYLES: [Style; 2] = [
    Style { human: "Human:", assistant: "Assistant:", spaced: true },
    Style { human: "## Human:", assistant: "## Assistant:", spaced: false },
];

/// The notation of a dialogue, by which responses to it are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    style: Style,
    /// Turns follow a blank line.
    spaced: bool,
    windows: bool,
    /// The prompt ends with the heading of the answer.
    announced: bool,
}

/// A line that starts with a heading.
#[derive(Clone, Copy, Debug)]
struct Heading {
    role: Role,
    start: usize,
    end: usize,
    /// It follows a blank line, or starts the text.
    spaced: bool,
}

/// A prompt in dialogue form: it starts with a turn, and either ends there or with an empty assistant turn.
/// Text before the first turn is a system turn if the prompt ends with the assistant's heading. `None` if the
/// text is not a dialogue.
pub(super) fn prompt(text: &str) -> Option<Result<(Prompt, Form), String>> {
    let (text, windows) = line_ends(text);
    let text = text.trim_start();
    let style = style_of(text, |headings| {
        let last = headings.last()?;
        (last.role == Role::Assistant && text[last.end..].trim().is_empty()).then_some(())
    })?;
    Some(read_prompt(text, style, windows))
}

/// Two whole dialogues that differ in their last response: the prompt is the shared prefix up to the last
/// assistant heading. `None` if the texts are not dialogues.
pub(super) fn pair(first: &str, second: &str) -> Option<Result<(Prompt, String, String), String>> {
    let (first, windows) = line_ends(first);
    let (second, _) = line_ends(second);
    let (first, second) = (first.trim_start(), second.trim_start());
    let style = style_of(first, |_| Some(()))?;
    style_of(second, |_| Some(()))?;
    Some(read_pair(first, second, style, windows))
}

fn read_pair(
    first: &str,
    second: &str,
    style: Style,
    windows: bool,
) -> Result<(Prompt, String, String), String> {
    let shared = &first[..shared_prefix(first, second)];
    let headings = turns(shared, style)?;
    let Some(heading) = headings.iter().rfind(|heading| heading.role == Role::Assistant) else {
        return Err(format!(
            "the two dialogues differ before the first assistant turn, after {:?}; they must share their prompt",
            excerpt(shared, 40)
        ));
    };
    let (prompt, form) = read_prompt(&first[..heading.end], style, windows)?;
    let chosen = form.answer("chosen", &first[heading.end..])?;
    let rejected = form.answer("rejected", &second[heading.end..])?;
    Ok((prompt, chosen, rejected))
}

/// One whole dialogue: the prompt before its last response, and that response (empty if it ends with a
/// heading).
pub(super) fn whole(text: &str) -> Option<Result<(Prompt, String), String>> {
    let (text, windows) = line_ends(text);
    let text = text.trim_start();
    let style = style_of(text, |_| Some(()))?;
    Some(turns(text, style).and_then(|headings| {
        let last = headings.iter().rfind(|heading| heading.role == Role::Assistant);
        let end = last.map_or(text.len(), |heading| heading.end);
        let (prompt, _) = read_prompt(&text[..end], style, windows)?;
        Ok((prompt, text[end..].trim().to_owned()))
    }))
}

impl Form {
    /// A response to a prompt of this form, which may repeat the heading before it.
    ///
    /// # Errors
    /// A response that continues with further turns.
    pub(super) fn answer(self, name: &str, text: &str) -> Result<String, String> {
        let text = if self.windows { line_ends(text).0 } else { Cow::Borrowed(text) };
        let mut text = text.trim();
        let mut announced = self.announced;
        if let Some(after) = text.strip_prefix(self.style.assistant).filter(|_| !announced) {
            (text, announced) = (after.trim_start(), true);
        }
        // The assistant's own headings are part of the text, and so is the first line after its heading.
        let further = headings(text, self.style).into_iter().find(|heading| {
            heading.role == Role::User
                && (heading.spaced || !self.spaced)
                && (heading.start > 0 || !announced)
        });
        match further {
            None => Ok(text.to_owned()),
            Some(heading) => Err(format!(
                "{name}: the response continues with another turn, {:?}; one response without further turns is expected",
                excerpt(&text[heading.start..], 40)
            )),
        }
    }
}

/// The text with `\n` line ends, and whether it had Windows ones.
fn line_ends(text: &str) -> (Cow<'_, str>, bool) {
    if text.contains("\r\n") { (Cow::Owned(text.replace("\r\n", "\n")), true) } else { (text.into(), false) }
}

/// The style of a text that starts with a heading, or in which `may_open` allows other text before the
/// headings.
fn style_of(text: &str, may_open: impl Fn(&[Heading]) -> Option<()>) -> Option<Style> {
    STYLES.into_iter().find(|style| {
        if text.starts_with(style.human) || text.starts_with(style.assistant) {
            return true;
        }
        let headings = headings(text, *style);
        headings.first().is_some_and(|first| first.role == Role::User && (first.spaced || !style.spaced))
            && headings.iter().any(|heading| heading.role == Role::Assistant)
            && may_open(&headings).is_some()
    })
}

fn shared_prefix(first: &str, second: &str) -> usize {
    let mut shared = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    while !first.is_char_boundary(shared) {
        shared -= 1;
    }
    shared
}

fn headings(text: &str, style: Style) -> Vec<Heading> {
    let mut headings = Vec::new();
    let (mut start, mut spaced) = (0, true);
    for line in text.split_inclusive('\n') {
        let marks = [(style.human, Role::User), (style.assistant, Role::Assistant)];
        if let Some((mark, role)) = marks.into_iter().find(|(mark, _)| line.starts_with(mark)) {
            headings.push(Heading { role, start, end: start + mark.len(), spaced });
        }
        spaced = line.trim().is_empty();
        start += line.len();
    }
    headings
}

/// The headings that begin a turn.
///
/// # Errors
/// Headings with and without blank lines, so that it is not clear which begin a turn.
fn turns(text: &str, style: Style) -> Result<Vec<Heading>, String> {
    let headings = headings(text, style);
    if !style.spaced || !headings.iter().skip(1).any(|heading| heading.spaced) {
        return Ok(headings);
    }
    let mut turns: Vec<Heading> = Vec::with_capacity(headings.len());
    for heading in headings {
        if heading.spaced {
            turns.push(heading);
        } else if turns.last().is_some_and(|last| last.role != heading.role) {
            return Err(format!(
                "some turns follow a blank line, but a line within the {}'s turn starts with the other speaker's heading: \
                 put blank lines before every turn, or change that line",
                if heading.role == Role::User { "assistant" } else { "human" }
            ));
        }
    }
    Ok(turns)
}

fn read_prompt(text: &str, style: Style, windows: bool) -> Result<(Prompt, Form), String> {
    let headings = turns(text, style)?;
    let later = headings.get(1..).unwrap_or_default();
    let spaced = style.spaced && (later.is_empty() || later.iter().any(|heading| heading.spaced));
    let mut messages = Vec::with_capacity(headings.len() + 1);
    let before = headings.first().map_or(text, |first| &text[..first.start]).trim();
    if !before.is_empty() {
        messages.push(Message::new(Role::System, before));
    }
    for (index, heading) in headings.iter().enumerate() {
        let end = headings.get(index + 1).map_or(text.len(), |next| next.start);
        messages.push(Message::new(heading.role, text[heading.end..end].trim()));
    }
    let is_announced = |last: &mut Message| last.role == Role::Assistant && last.content.is_empty();
    let announced = messages.pop_if(is_announced).is_some();
    Ok((check_prompt(messages)?, Form { style, spaced, windows, announced }))
}

/// Turns as a prompt.
///
/// # Errors
/// Turns that do not end with a user turn that has text.
pub(super) fn check_prompt(messages: Vec<Message>) -> Result<Prompt, String> {
    match messages.last() {
        None => Err("the prompt has no turns; at least one user turn is expected".to_owned()),
        Some(last) if last.role != Role::User => Err(format!(
            "the prompt ends with the {}'s turn; it must end with the user's",
            last.role.as_str()
        )),
        Some(last) if last.content.trim().is_empty() => {
            Err("the prompt's last turn is empty; some text is expected".to_owned())
        }
        Some(_) => Ok(Prompt { messages }),
    }
}
