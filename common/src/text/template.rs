//! How a dialogue becomes one text.

use super::error::{head, tail};
use super::{ModelText, TextError};
use crate::data::rows::{Message, Prompt, Role};
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, ErrorKind, context};

/// A ready template. Cheap to render, the same text each time.
pub(super) enum Renderer {
    Hh,
    Plain,
    Jinja(Box<Jinja>),
}

pub(super) struct Jinja {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    pad: String,
    /// What the template writes between a prompt and the answer to it.
    lead: String,
    /// What it writes after an answer, up to EOS.
    closing: String,
    /// All that it writes after an answer.
    ending: String,
}

/// Texts in messages are cut to this many characters.
const SHOWN: usize = 160;

impl Renderer {
    pub(super) fn jinja(
        files: &ModelText,
        source: &str,
        [bos, eos, pad]: [&str; 3],
    ) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_recursion_limit(200);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(|error| TextError::File { file: files.file("chat template"), what: describe(&error) })?;
        let mut jinja = Jinja {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            pad: pad.to_owned(),
            lead: String::new(),
            closing: String::new(),
            ending: String::new(),
        };
        jinja.probe()?;
        Ok(Renderer::Jinja(Box::new(jinja)))
    }

    /// The text that an answer follows.
    pub(super) fn prompt(&self, prompt: &Prompt) -> Result<String, TextError> {
        match self {
            Renderer::Hh => Ok(hh(prompt)),
            Renderer::Plain => Ok(plain(prompt)),
            Renderer::Jinja(jinja) => jinja.render(&prompt.messages, true),
        }
    }

    /// What follows the rendered prompt for this answer, EOS aside. Checks that the template itself would have written so.
    pub(super) fn answer(
        &self,
        prompt: &Prompt,
        rendered: &str,
        answer: &str,
        finished: bool,
    ) -> Result<String, TextError> {
        let Renderer::Jinja(jinja) = self else {
            return Ok(format!("{}{answer}", self.lead()));
        };
        let mut messages = prompt.messages.clone();
        messages.push(Message::new(Role::Assistant, answer));
        let dialogue = jinja.render(&messages, false)?;
        let closing = if finished { jinja.closing.as_str() } else { "" };
        let found = [answer, answer.trim()].into_iter().find_map(|answer| {
            let text = format!("{}{answer}{closing}", jinja.lead);
            dialogue.strip_prefix(rendered)?.starts_with(&text).then_some(text)
        });
        found.ok_or_else(|| TextError::NotAppended {
            prompt: tail(rendered, SHOWN),
            dialogue: tail(&dialogue, 2 * SHOWN),
        })
    }

    /// What stands between a prompt and its answer.
    pub(super) fn lead(&self) -> &str {
        match self {
            Renderer::Hh => " ",
            Renderer::Plain => "",
            Renderer::Jinja(jinja) => &jinja.lead,
        }
    }

    /// What the template writes between an answer and the EOS after it.
    pub(super) fn closing(&self) -> &str {
        match self {
            Renderer::Hh | Renderer::Plain => "",
            Renderer::Jinja(jinja) => &jinja.closing,
        }
    }

    /// What the template ends answers with, where that is not EOS: a model trained with it writes something else.
    pub(super) fn foreign_ending(&self) -> Option<&str> {
        match self {
            Renderer::Jinja(jinja)
                if !jinja.ending.trim().is_empty() && !jinja.ending.contains(&jinja.eos) =>
            {
                Some(jinja.ending.trim())
            }
            _ => None,
        }
    }
}

/// `\n\nHuman: …\n\nAssistant: …\n\nHuman: …\n\nAssistant:`; a system turn stands before it as it is.
fn hh(prompt: &Prompt) -> String {
    let mut text = String::new();
    for message in &prompt.messages {
        match message.role {
            Role::System => text.push_str(&message.content),
            Role::User => text.push_str(&format!("\n\nHuman: {}", message.content)),
            Role::Assistant => text.push_str(&format!("\n\nAssistant: {}", message.content)),
        }
    }
    text + "\n\nAssistant:"
}

/// The turns' texts alone, with an empty line between two.
fn plain(prompt: &Prompt) -> String {
    let texts: Vec<&str> = prompt.messages.iter().map(|message| message.content.as_str()).collect();
    texts.join("\n\n")
}

impl Jinja {
    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let fail = |error: &Error| TextError::Template {
            what: describe(error),
            prompt: head(messages.last().map_or("", |message| message.content.as_str()), SHOWN),
        };
        let context = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
            pad_token => self.pad,
        };
        let template = self.environment.get_template("chat").map_err(|error| fail(&error))?;
        template.render(context).map_err(|error| fail(&error))
    }

    /// Learns from one small dialogue what the template writes around an answer.
    fn probe(&mut self) -> Result<(), TextError> {
        const ANSWER: &str = "abc";
        let mut messages = vec![Message::new(Role::User, "def")];
        let prompt = self.render(&messages, true)?;
        messages.push(Message::new(Role::Assistant, ANSWER));
        let dialogue = self.render(&messages, false)?;
        let around = dialogue.strip_prefix(prompt.as_str()).and_then(|rest| rest.split_once(ANSWER));
        let Some((lead, ending)) = around else {
            return Err(TextError::NotAppended {
                prompt: tail(&prompt, SHOWN),
                dialogue: tail(&dialogue, 2 * SHOWN),
            });
        };
        self.lead = lead.to_owned();
        self.closing = match ending.find(self.eos.as_str()) {
            Some(at) => ending[..at].to_owned(),
            None => String::new(),
        };
        self.ending = ending.to_owned();
        Ok(())
    }
}

fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

/// `{% generation %}` marks the assistant's tokens for trainers that ask the template; here the split is checked instead.
fn without_generation_tags(source: &str) -> String {
    let mut text = source.to_owned();
    for open in ["{%", "{%-", "{%+"] {
        for close in ["%}", "-%}", "+%}"] {
            text = text.replace(&format!("{open} generation {close}"), &format!("{open} if true {close}"));
            text = text.replace(&format!("{open} endgeneration {close}"), &format!("{open} endif {close}"));
        }
    }
    text
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Templates write today's date with this. Training and sampling must see the same text on every day, so the date is fixed: it is the one
/// that Llama's templates fall back to.
fn strftime_now(format: &str, _more: Rest<Value>, _named: Kwargs) -> Result<String, Error> {
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text.push_str(match characters.next() {
            Some('d') => "26",
            Some('m') => "07",
            Some('b') => "Jul",
            Some('B') => "July",
            Some('y') => "24",
            Some('Y') => "2024",
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('j') => "208",
            Some('H' | 'M' | 'S') => "00",
            Some('F') => "2024-07-26",
            Some('T') => "00:00:00",
            Some('%') => "%",
            other => {
                let found = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: %{found} is unknown"),
                ));
            }
        });
    }
    Ok(text)
}
