use super::error::{head, tail};
use super::special::{Special, starts_with_bos};
use super::template::{Renderer, Source};
use super::tokenizer::{self, guarded};
use super::{Encoded, EncodedPrompt, Limits, ModelText, Response, TextError, TextStream, TokenIds};
use crate::data::rows::Prompt;
use crate::spec::{Bos, Side, Template, Text};
use serde_json::Value;
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::Tokenizer;

/// Tokenizer, template and BOS/EOS policy of one model. `Send + Sync` and deterministic.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// The tokenizer file, for messages.
    name: String,
    /// Tokens and their text that are put before a response when it is decoded, if the decoder would drop
    /// its first space.
    anchor: Option<(Vec<u32>, String)>,
    fingerprint: OnceLock<String>,
    renderer: Renderer,
    special: Special,
    bos: BosPolicy,
    cut: Side,
    vocabulary: usize,
    /// The pad token of the model's own files, if the job names none.
    own_pad: Option<String>,
}

/// A prompt's text and its tokens, without BOS and of any length.
struct ReadPrompt<'a> {
    prompt: &'a Prompt,
    rendered: String,
    ids: Vec<u32>,
}

/// The handling of BOS after a prompt's text is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BosPolicy {
    /// Left as the template writes it.
    AsWritten,
    Put,
    Remove,
}

impl Encoder {
    /// Reads the tokenizer files of a model directory.
    pub fn load(dir: &Path, text: &Text) -> Result<Self, TextError> {
        Self::new(&ModelText::read(dir)?, text)
    }

    pub fn new(files: &ModelText, text: &Text) -> Result<Self, TextError> {
        let tokenizer = tokenizer::read(files)?;
        let special = guarded(&files.file("tokenizer.json"), || Special::find(files, text, &tokenizer))??;
        let vocabulary = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        check_vocabulary(files, vocabulary)?;
        let renderer = renderer(files, text, &special)?;
        let bos = match (&renderer, text.bos) {
            (Renderer::Jinja(_), Bos::Auto) => BosPolicy::AsWritten,
            (_, Bos::Never) => BosPolicy::Remove,
            (_, bos) if starts_with_bos(files, bos, &special, &tokenizer)? => BosPolicy::Put,
            _ => BosPolicy::AsWritten,
        };
        let own_pad = files.token("pad_token").filter(|_| text.pad_token.is_none()).map(str::to_owned);
        let name = files.file("tokenizer.json");
        let anchor = tokenizer::anchor(&tokenizer);
        Ok(Encoder {
            tokenizer,
            name,
            anchor,
            fingerprint: OnceLock::new(),
            renderer,
            special,
            bos,
            cut: text.truncation_side,
            vocabulary,
            own_pad,
        })
    }

    /// The tokens of a prompt, at most `limit` of them: a longer one is truncated on the job's side; BOS is
    /// kept.
    pub fn prompt(&self, prompt: &Prompt, limit: usize) -> Result<EncodedPrompt, TextError> {
        Ok(self.shorten(self.with_bos(self.read(prompt)?.ids), limit))
    }

    /// The tokens of a prompt and a response to it. A response that is truncated to its budget is unfinished:
    /// it has no EOS.
    pub fn dialogue(
        &self,
        prompt: &Prompt,
        response: Response<'_>,
        limits: Limits,
    ) -> Result<Encoded, TextError> {
        self.continued(&self.read(prompt)?, response, limits)
    }

    /// The dialogues of a prompt with each of two finished responses. Equal to two calls of
    /// [`Self::dialogue`], but encodes the prompt once.
    pub fn pair(
        &self,
        prompt: &Prompt,
        [first, second]: [&str; 2],
        limits: Limits,
    ) -> Result<[Encoded; 2], TextError> {
        let read = self.read(prompt)?;
        let encode = |text| self.continued(&read, Response::finished(text), limits);
        Ok([encode(first)?, encode(second)?])
    }

    fn read<'a>(&self, prompt: &'a Prompt) -> Result<ReadPrompt<'a>, TextError> {
        self.refuse_control_tokens(prompt)?;
        let rendered = self.renderer.prompt(prompt)?;
        let ids = self.encode(&rendered)?;
        Ok(ReadPrompt { prompt, rendered, ids })
    }

    fn continued(
        &self,
        read: &ReadPrompt<'_>,
        response: Response<'_>,
        limits: Limits,
    ) -> Result<Encoded, TextError> {
        let (mut response_ids, eos) = match response {
            Response::Text { text, finished } => {
                (self.encode_response(read, text, finished)?, finished.then_some(self.special.eos))
            }
            Response::Tokens { ids, finished } => self.sampled(ids, finished),
        };
        response_ids.extend(eos);
        let ids = self.with_bos(read.ids.clone());
        let (prompt_limit, response_limit) = limits.fit(ids.len(), response_ids.len());
        let response_cut = response_ids.len() - response_limit;
        response_ids.truncate(response_limit);
        let EncodedPrompt { mut ids, cut: prompt_cut } = self.shorten(ids, prompt_limit);
        let response_start = ids.len();
        ids.append(&mut response_ids);
        Ok(Encoded { ids, response_start, prompt_cut, response_cut, eos: eos.is_some() && response_cut == 0 })
    }

    /// The response's tokens in the context of the prompt.
    fn encode_response(
        &self,
        read: &ReadPrompt<'_>,
        response: &str,
        finished: bool,
    ) -> Result<Vec<u32>, TextError> {
        self.refuse_control_token(response, "response")?;
        let rendered = &read.rendered;
        let text = self.renderer.response(read.prompt, rendered, response, finished)?;
        let mut ids = self.encode(&format!("{rendered}{text}"))?;
        if !ids.starts_with(&read.ids) {
            return Err(TextError::Joined { prompt: tail(rendered, 60), response: head(response, 60) });
        }
        ids.drain(..read.ids.len());
        Ok(ids)
    }

    /// Refuses control tokens in the data: a user's `<|im_end|>` would end the turn and start another one.
    fn refuse_control_tokens(&self, prompt: &Prompt) -> Result<(), TextError> {
        prompt.messages.iter().try_for_each(|message| self.refuse_control_token(&message.content, "prompt"))
    }

    fn refuse_control_token(&self, text: &str, part: &'static str) -> Result<(), TextError> {
        match self.special.written_in(text) {
            None => Ok(()),
            Some((token, at)) => Err(TextError::ControlToken {
                part,
                token: token.to_owned(),
                text: format!("{}{}", tail(&text[..at], 60), head(&text[at..], 60 + token.len())),
            }),
        }
    }

    /// Sampled tokens and their EOS: the one that the model wrote, or the usual one if a stop text ended
    /// them.
    fn sampled(&self, ids: &[u32], finished: bool) -> (Vec<u32>, Option<u32>) {
        match ids.split_last() {
            Some((last, body)) if finished && self.special.eos_ids.contains(last) => {
                (body.to_vec(), Some(*last))
            }
            _ => (ids.to_vec(), finished.then_some(self.special.eos)),
        }
    }

    /// Decodes tokens, skipping special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        guarded(&self.name, || self.tokenizer.decode(ids, true))?
            .map_err(|error| TextError::Tokenizer(format!("tokens do not decode: {error}")))
    }

    /// Decodes tokens that follow others, keeping a first space that the decoder would drop at the start of a
    /// text.
    pub(super) fn decode_continuation(&self, ids: &[u32]) -> Result<String, TextError> {
        if let Some((anchor, text)) = &self.anchor {
            let anchored = self.decode(&[anchor.as_slice(), ids].concat())?;
            if let Some(rest) = anchored.strip_prefix(text.as_str()) {
                return Ok(rest.to_owned());
            }
        }
        self.decode(ids)
    }

    /// A hash that is equal for equivalent tokenizers, whatever the layout of their files.
    pub fn fingerprint(&self) -> &str {
        self.fingerprint.get_or_init(|| tokenizer::fingerprint(&self.tokenizer))
    }

    /// A response's text without what the template adds around it.
    pub fn response_text(&self, ids: &[u32]) -> Result<String, TextError> {
        let text = self.decode_continuation(ids)?;
        let text = text.strip_prefix(self.renderer.lead()).unwrap_or(&text);
        let finished = ids.last().is_some_and(|id| self.special.eos_ids.contains(id));
        let closing = if finished { self.renderer.closing() } else { "" };
        Ok(text.strip_suffix(closing).unwrap_or(text).to_owned())
    }

    /// A decoder of one token at a time, for stop texts.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// A token's text in the vocabulary, special tokens included.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The token that ends a finished response.
    pub fn eos_id(&self) -> u32 {
        self.special.eos
    }

    /// All tokens that end a completion; [`Self::eos_id`] is the first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.special.eos_ids
    }

    /// The BOS token, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos
    }

    /// The pad token of exported models: neither EOS nor BOS nor a token of any text. It is the model's own
    /// pad token if that is suitable, else a special token for padding or reserved, else the unknown token of
    /// a tokenizer with byte fallback, else any other special token that the template does not write.
    pub fn pad_id(&self) -> Result<u32, TextError> {
        self.special.pad.clone()
    }

    /// The model's own pad token and its replacement, if it is unsuitable.
    fn replaced_pad(&self) -> Option<(String, String)> {
        let own = self.own_pad.clone()?;
        let pad = self.token_name(self.pad_id().ok());
        (!pad.is_empty() && own != pad).then_some((own, pad))
    }

    /// The tokenizer's highest id plus one.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Warnings about the model's text settings.
    pub fn warnings(&self) -> Vec<String> {
        let eos = self.special.name(Some(self.special.eos));
        let foreign = self.renderer.foreign_ending().map(|ending| {
            format!(
                "the chat template ends responses with {ending:?}, but responses are trained to end with EOS, {eos:?}; \
                 if the model was tuned with the template, set text.eos_token to what ends its responses"
            )
        });
        let pad = self.replaced_pad().map(|(own, pad)| {
            format!(
                "the model's own pad token {own:?} also begins, ends or occurs in texts; results name {pad:?} instead, \
                 so that a batch is scored as its rows are; text.pad_token chooses another"
            )
        });
        foreign.into_iter().chain(pad).collect()
    }

    /// The tokens that begin, end and pad sequences. If no token is suitable for padding, the model's own pad
    /// token stays: language models are read with masks.
    pub fn token_ids(&self) -> TokenIds {
        let own = || self.own_pad.as_ref().and_then(|token| self.tokenizer.token_to_id(token));
        let pad = self.pad_id().ok().or_else(own);
        TokenIds { bos: self.bos_id(), eos: self.special.eos_ids.clone(), pad }
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Whether a token is special, so that no text yields it.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.names.contains_key(&id)
    }

    pub(super) fn bos_policy(&self) -> BosPolicy {
        self.bos
    }

    /// A token's text; empty for `None`.
    pub(super) fn token_name(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.token(id)).unwrap_or_default()
    }

    /// The text of a prompt, before it is encoded.
    pub(super) fn render(&self, prompt: &Prompt) -> Result<String, TextError> {
        self.renderer.prompt(prompt)
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = guarded(&self.name, || self.tokenizer.encode_fast(text, false))?.map_err(|error| {
            TextError::Tokenizer(format!(
                "the tokenizer refuses a text: {error}; it starts {:?}",
                head(text, 60)
            ))
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        let starts = ids.first().copied() == self.special.bos;
        match (self.bos, self.special.bos) {
            (BosPolicy::Put, Some(bos)) if !starts => ids.insert(0, bos),
            (BosPolicy::Remove, Some(_)) if starts => drop(ids.remove(0)),
            _ => {}
        }
        ids
    }

    fn shorten(&self, mut ids: Vec<u32>, limit: usize) -> EncodedPrompt {
        let cut = ids.len().saturating_sub(limit);
        if cut > 0 {
            match self.cut {
                Side::Right => ids.truncate(limit),
                Side::Left => {
                    let kept = usize::from(limit > 0 && ids.first().copied() == self.special.bos);
                    ids.drain(kept..kept + cut);
                }
            }
        }
        EncodedPrompt { ids, cut }
    }
}

fn renderer(files: &ModelText, text: &Text, special: &Special) -> Result<Renderer, TextError> {
    let jinja = |origin: String, source| {
        Renderer::jinja(Source {
            origin,
            text: source,
            tokens: special.template_variables(files, text),
            eos: special.name(Some(special.eos)).to_owned(),
        })
    };
    match (&text.template, files.chat_template()) {
        (Template::Hh, _) => Ok(Renderer::Hh),
        (Template::Plain, _) => Ok(Renderer::Plain),
        (Template::Jinja(source), _) => jinja("text.template".to_owned(), source),
        (Template::Auto | Template::Chat, Some(source)) => jinja(files.chat_template_file(), source),
        (Template::Auto | Template::Chat, None) if files.templates_without_default().is_some() => {
            let names = files.templates_without_default().unwrap_or_default();
            Err(TextError::Setting {
                field: "text.template",
                what: format!(
                    "{} has the chat templates {}, and none is named default",
                    files.file("tokenizer_config.json"),
                    names.join(", ")
                ),
                advice: "write one of them into the job, or set hh or plain",
            })
        }
        (Template::Auto, None) => Ok(Renderer::Hh),
        (Template::Chat, None) => Err(TextError::Setting {
            field: "text.template",
            what: format!("chat, but {} has no chat template", files.name),
            advice: "set hh, plain or a Jinja template, or add chat_template.jinja to the directory",
        }),
    }
}

/// Refuses a tokenizer with ids for which the model has no embedding.
fn check_vocabulary(files: &ModelText, vocabulary: usize) -> Result<(), TextError> {
    match files.config.get("vocab_size").and_then(Value::as_u64) {
        Some(size) if (size as usize) < vocabulary => Err(TextError::File {
            file: files.file("tokenizer.json"),
            what: format!(
                "has token ids up to {}, but config.json says vocab_size {size}; the two files do not belong together",
                vocabulary - 1
            ),
        }),
        _ => Ok(()),
    }
}
