use std::fmt;

use foil_proto::v1;

use super::SpecError;
use super::check::{size, wire_size};
use super::choice::choices;

/// The conversion of conversations to tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    pub template: Template,
    /// Maximum sequence length in tokens, prompt and response together.
    pub max_length: usize,
    /// The side on which a prompt is truncated; BOS is kept in either case.
    pub truncation_side: Side,
    pub bos: Bos,
    /// `None` for the model's eos_token.
    pub eos_token: Option<String>,
    /// `None` for the model's own if it is not EOS, else a token that no text yields.
    pub pad_token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Template {
    /// The model's chat template if it has one, else `Hh`.
    #[default]
    Auto,
    /// `"\n\nHuman: …\n\nAssistant:"`
    Hh,
    /// The prompt alone.
    Plain,
    /// The template in the model's tokenizer_config.json.
    Chat,
    /// A Jinja template given in the job file.
    Jinja(String),
}

choices! {
    Side:
    #[default]
    Left = "left",
    Right = "right",
}

choices! {
    /// Whether sequences start with BOS.
    Bos:
    /// According to the tokenizer's config, never twice.
    #[default]
    Auto = "auto",
    Always = "always",
    Never = "never",
}

impl Text {
    pub(crate) fn parse(wire: v1::TextSpec) -> Result<Self, SpecError> {
        Ok(Self {
            template: Template::parse(&wire.template)?,
            max_length: size("text", "max_length", wire.max_length, 512, 2)?,
            truncation_side: Side::parse("text", "truncation_side", &wire.truncation_side)?,
            bos: Bos::parse("text", "bos", &wire.bos)?,
            eos_token: Some(wire.eos_token).filter(|token| !token.is_empty()),
            pad_token: Some(wire.pad_token).filter(|token| !token.is_empty()),
        })
    }
}

impl Template {
    fn parse(text: &str) -> Result<Self, SpecError> {
        match text {
            "" | "auto" => Ok(Self::Auto),
            "hh" => Ok(Self::Hh),
            "plain" => Ok(Self::Plain),
            "chat" => Ok(Self::Chat),
            jinja if jinja.contains("{{") || jinja.contains("{%") => Ok(Self::Jinja(jinja.to_owned())),
            other => Err(SpecError::field(
                "text.template",
                other,
                "hh, plain, chat, auto or a Jinja template ({{ … }})",
            )),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Hh => "hh",
            Self::Plain => "plain",
            Self::Chat => "chat",
            Self::Jinja(template) => template,
        })
    }
}

impl From<&Text> for v1::TextSpec {
    fn from(text: &Text) -> Self {
        Self {
            template: text.template.to_string(),
            max_length: Some(wire_size(text.max_length)),
            truncation_side: text.truncation_side.to_string(),
            bos: text.bos.to_string(),
            eos_token: text.eos_token.clone().unwrap_or_default(),
            pad_token: text.pad_token.clone().unwrap_or_default(),
        }
    }
}
