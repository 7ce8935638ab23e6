//! Rendering of conversations to text.

use super::error::{head, tail};
use super::{TextError, jinja};
use crate::data::rows::{Message, Prompt, Role};
use serde_json::{Value, json};

/// A template, ready to render. Deterministic.
pub(super) enum Renderer {
    Hh,
    Plain,
    Jinja(Box<Jinja>),
}

pub(super) struct Jinja {
    template: jinja::Template,
    /// Special tokens by their names in templates.
    tokens: Vec<(&'static str, Value)>,
    eos: String,
    /// Text between a prompt and its response.
    lead: String,
    /// Text after a response, up to EOS.
    closing: String,
    /// All text after a response.
    ending: String,
}

/// A template and its variables.
pub(super) struct Source<'a> {
    /// The file or setting of the template.
    pub(super) origin: String,
    pub(super) text: &'a str,
    /// The special tokens that the tokenizer names, as `bos_token` and so on; others are undefined.
    pub(super) tokens: Vec<(&'static str, String)>,
    pub(super) eos: String,
}

/// Maximum number of characters of a text in error messages.
const SHOWN: usize = 160;

impl Renderer {
    pub(super) fn jinja(source: Source<'_>) -> Result<Self, TextError> {
        let Source { origin, text, tokens, eos } = source;
        let template = jinja::Template::parse(text)
            .map_err(|error| TextError::File { file: origin.clone(), what: error.to_string() })?;
        let tokens = tokens.into_iter().map(|(name, text)| (name, Value::String(text))).collect();
        let mut jinja = Jinja {
            template,
            tokens,
            eos,
            lead: String::new(),
            closing: String::new(),
            ending: String::new(),
        };
        jinja.probe().map_err(|what| TextError::File { file: origin, what })?;
        Ok(Renderer::Jinja(Box::new(jinja)))
    }

    /// Renders a prompt.
    pub(super) fn prompt(&self, prompt: &Prompt) -> Result<String, TextError> {
        match self {
            Renderer::Hh => Ok(hh(prompt)),
            Renderer::Plain => Ok(plain(prompt)),
            Renderer::Jinja(jinja) => jinja.render(&prompt.messages, true),
        }
    }

    /// Renders a response after the rendered prompt, without EOS, and checks that the template renders the
    /// whole dialogue the same way.
    pub(super) fn response(
        &self,
        prompt: &Prompt,
        rendered: &str,
        response: &str,
        finished: bool,
    ) -> Result<String, TextError> {
        let Renderer::Jinja(jinja) = self else {
            return Ok(format!("{}{response}", self.lead()));
        };
        let mut messages = prompt.messages.clone();
        messages.push(Message::new(Role::Assistant, response));
        let dialogue = jinja.render(&messages, false)?;
        let closing = if finished { jinja.closing.as_str() } else { "" };
        let found = [response, response.trim()].into_iter().find_map(|response| {
            let text = format!("{}{response}{closing}", jinja.lead);
            dialogue.strip_prefix(rendered)?.starts_with(&text).then_some(text)
        });
        found.ok_or_else(|| TextError::NotAppended {
            prompt: tail(rendered, SHOWN),
            dialogue: tail(&dialogue, 2 * SHOWN),
        })
    }

    /// Text between a prompt and its response.
    pub(super) fn lead(&self) -> &str {
        match self {
            Renderer::Hh => " ",
            Renderer::Plain => "",
            Renderer::Jinja(jinja) => &jinja.lead,
        }
    }

    /// Text between a response and the EOS after it.
    pub(super) fn closing(&self) -> &str {
        match self {
            Renderer::Hh | Renderer::Plain => "",
            Renderer::Jinja(jinja) => &jinja.closing,
        }
    }

    /// The end of responses in the template if it is not EOS: a model trained with the template ends its
    /// responses so.
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

/// `\n\nHuman: …\n\nAssistant: …\n\nHuman: …\n\nAssistant:`; a system turn precedes it unchanged.
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

/// The texts of the turns, separated by blank lines.
fn plain(prompt: &Prompt) -> String {
    let texts: Vec<&str> = prompt.messages.iter().map(|message| message.content.as_str()).collect();
    texts.join("\n\n")
}

impl Jinja {
    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        self.rendered(messages, add_generation_prompt).map_err(|error| TextError::Template {
            what: error.to_string(),
            prompt: head(messages.last().map_or("", |message| message.content.as_str()), SHOWN),
        })
    }

    fn rendered(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, jinja::Error> {
        let messages = json!(messages);
        let (asks, none) = (Value::Bool(add_generation_prompt), Value::Null);
        let mut variables = vec![
            ("messages", &messages),
            ("tools", &none),
            ("documents", &none),
            ("add_generation_prompt", &asks),
        ];
        variables.extend(self.tokens.iter().map(|(name, text)| (*name, text)));
        self.template.render(&variables)
    }

    /// Finds the texts around a response by rendering a small dialogue, with a system turn if the template
    /// refuses one without.
    fn probe(&mut self) -> Result<(), String> {
        let user = Message::new(Role::User, "def");
        let system = Message::new(Role::System, "ghi");
        self.learn(vec![user.clone()]).or_else(|what| self.learn(vec![system, user]).map_err(|_| what))
    }

    fn learn(&mut self, mut messages: Vec<Message>) -> Result<(), String> {
        const ANSWER: &str = "abc";
        let fails =
            |error: jinja::Error| format!("the chat template takes no dialogue of one user turn: {error}");
        let prompt = self.rendered(&messages, true).map_err(fails)?;
        messages.push(Message::new(Role::Assistant, ANSWER));
        let dialogue = self.rendered(&messages, false).map_err(fails)?;
        let around = dialogue.strip_prefix(prompt.as_str()).and_then(|rest| rest.split_once(ANSWER));
        let Some((lead, ending)) = around else {
            return Err(format!(
                "the chat template changes what was rendered before: it renders a trial prompt as {:?}, and the prompt with an \
                 response as {:?}; responses could not be separated from prompts: set text.template to a template that only appends",
                tail(&prompt, SHOWN),
                tail(&dialogue, 2 * SHOWN)
            ));
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
