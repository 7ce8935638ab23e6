//! Checks of a result directory that need only its files.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::{Finding, Kind, Probe, check};
use crate::data::rows::{Message, Prompt, Role};
use crate::model::{DecoderConfig, HeadKind, INDEX, ModelFilesError, SINGLE, WeightFiles};
use crate::spec::{Bos, Side, Template, Text};
use crate::text::{Encoder, ModelText, TextError};

/// Names of number formats in config.json and in safetensors headers.
const DTYPES: [(&str, &str); 3] = [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")];

/// More rows than the largest batch that is tried.
const ROWS: usize = 33;
const LONGEST_ROW: usize = 24;
const LOGIT_ROWS: usize = 6;
const GREEDY_PROMPTS: usize = 3;
const NEW_TOKENS: usize = 16;

/// The first findings, and the probe to compute if the files allow it.
#[derive(Clone, Debug)]
pub struct Inspected {
    pub kind: Kind,
    pub findings: Vec<Finding>,
    pub probe: Option<Probe>,
}

/// Reads the directory's text files and checks that they agree.
pub fn inspect(dir: &Path) -> Inspected {
    let files = match ModelText::read(dir) {
        Ok(files) => files,
        Err(error) => {
            let findings = vec![Finding::failed(check::FILES, error.to_string())];
            return Inspected { kind: Kind::Policy, findings, probe: None };
        }
    };
    let head = match HeadKind::of_config(&files.config) {
        Ok(head) => head,
        Err(error) => {
            let findings = vec![Finding::failed(check::WEIGHTS, error.to_string())];
            return Inspected { kind: Kind::Policy, findings, probe: None };
        }
    };
    let kind = Kind::from(head);
    let mut findings = vec![present(dir, &files, kind)];
    findings.extend(weights(dir, &files.config, head));
    let encoder = match Encoder::new(&files, &settings(&files)) {
        Ok(encoder) => encoder,
        Err(error) => {
            let check = if is_of_template(&error) { check::TEMPLATE } else { check::EOS };
            findings.push(Finding::failed(check, error.to_string()));
            return Inspected { kind, findings, probe: None };
        }
    };
    let tokens = Tokens { files: &files, encoder: &encoder, kind };
    findings.extend([tokens.eos(), tokens.bos(), tokens.pad(), template(&files, &encoder)]);
    let probe = probe(dir, &files, &encoder, kind);
    Inspected { kind, findings, probe: Some(probe) }
}

/// The settings that a reader of only the directory would use.
fn settings(files: &ModelText) -> Text {
    Text {
        template: if files.chat_template().is_some() { Template::Chat } else { Template::Plain },
        max_length: usize::MAX,
        truncation_side: Side::Left,
        bos: Bos::Auto,
        eos_token: None,
        pad_token: None,
    }
}

fn is_of_template(error: &TextError) -> bool {
    matches!(error, TextError::Template { .. } | TextError::NotAppended { .. })
        || error.to_string().contains("chat template")
}

fn present(dir: &Path, files: &ModelText, kind: Kind) -> Finding {
    let mut wanted = vec!["config.json", "tokenizer.json", "tokenizer_config.json"];
    if kind == Kind::Policy {
        wanted.push("generation_config.json");
    }
    let mut faults: Vec<String> = wanted
        .into_iter()
        .filter(|name| !dir.join(name).is_file())
        .map(|name| format!("{name} is missing"))
        .collect();
    if !dir.join(SINGLE).is_file() && !dir.join(INDEX).is_file() {
        faults.push(format!("neither {SINGLE} nor {INDEX} is there"));
    }
    let family = files.config.get("model_type").and_then(Value::as_str).unwrap_or("?");
    let kind = match kind {
        Kind::Policy => "policy",
        Kind::Reward => "reward model",
    };
    Finding::of(check::FILES, &faults, format!("a {kind} of the family {family}"))
}

/// Checks that config.json and the headers of the weights agree.
fn weights(dir: &Path, config: &Value, head: HeadKind) -> [Finding; 2] {
    let read = || {
        let decoder = DecoderConfig::load(dir)?;
        let files = WeightFiles::open(dir)?;
        files.check(&decoder, head)?;
        Ok::<_, ModelFilesError>(files)
    };
    let files = match read() {
        Ok(files) => files,
        Err(error) => {
            let unread = Finding::unchecked(check::DTYPE, "the weights do not fit config.json");
            return [Finding::failed(check::WEIGHTS, error.to_string()), unread];
        }
    };
    let dtypes: BTreeSet<String> = files.iter().map(|(_, entry)| entry.dtype.to_string()).collect();
    let stored = dtypes.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let named = ["dtype", "torch_dtype"].into_iter().find_map(|field| config.get(field)?.as_str());
    let dtype = match named {
        None => Finding::failed(check::DTYPE, format!("config.json names none; the weights are {stored}")),
        Some(named) if dtypes.len() == 1 && DTYPES.contains(&(named, stored.as_str())) => {
            Finding::passed(check::DTYPE, named)
        }
        Some(named) => {
            Finding::failed(check::DTYPE, format!("config.json says {named}, the weights are {stored}"))
        }
    };
    let tensors = format!("{} tensors, all of the names and shapes of config.json", files.iter().count());
    [Finding::passed(check::WEIGHTS, tensors), dtype]
}

/// The special tokens according to each file that names them.
struct Tokens<'a> {
    files: &'a ModelText,
    encoder: &'a Encoder,
    kind: Kind,
}

impl Tokens<'_> {
    fn eos(&self) -> Finding {
        let named = self.ids(&self.files.config, "eos_token_id");
        let mut faults = self.outside(&named);
        if named.is_empty() {
            faults.push("config.json names no eos_token_id".to_owned());
        }
        if let Some(generation) = self.files.generation_config.get("eos_token_id") {
            let generated = ids(generation);
            if generated != named {
                faults.push(format!(
                    "config.json says {named:?}, generation_config.json {generated:?}: generation would end elsewhere"
                ));
            }
        } else if self.kind == Kind::Policy && !self.files.generation_config.is_null() {
            faults.push("generation_config.json names no eos_token_id: generation would not end".to_owned());
        }
        for (file, token, id) in self.by_name("eos_token") {
            match id {
                Some(id) if named.first() == Some(&id) => {}
                _ => faults.push(format!("{file} says {token:?} ({}), config.json {named:?}", shown(id))),
            }
        }
        Finding::of(check::EOS, &faults, self.described(&named))
    }

    fn bos(&self) -> Finding {
        let named = self.ids(&self.files.config, "bos_token_id");
        let mut faults = self.outside(&named);
        faults.extend(self.disagreements("bos_token", "bos_token_id", &named));
        Finding::of(check::BOS, &faults, self.described(&named))
    }

    fn pad(&self) -> Finding {
        let named = self.ids(&self.files.config, "pad_token_id");
        let mut faults = self.outside(&named);
        faults.extend(self.disagreements("pad_token", "pad_token_id", &named));
        if self.kind == Kind::Reward {
            let ends = self.encoder.eos_ids();
            match named.first() {
                None => faults.push("config.json names no pad_token_id: batches cannot be scored".to_owned()),
                Some(pad) if ends.contains(pad) => faults.push(format!(
                    "{} also ends answers: a finished answer would be scored at the token before its end",
                    self.described(&named)
                )),
                Some(pad) if self.encoder.bos_id() == Some(*pad) => {
                    faults.push(format!("{} also begins sequences", self.described(&named)));
                }
                Some(_) => {}
            }
        }
        Finding::of(check::PAD, &faults, self.described(&named))
    }

    /// Contradictions of config.json by files that name another token.
    fn disagreements(&self, name: &str, field: &str, named: &[u32]) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(generation) = self.files.generation_config.get(field).filter(|value| !value.is_null())
            && ids(generation) != named
        {
            faults.push(format!("config.json says {named:?}, generation_config.json {generation}"));
        }
        for (file, token, id) in self.by_name(name) {
            if id.is_none() || named.first().copied() != id {
                faults.push(format!("{file} says {token:?} ({}), config.json {named:?}", shown(id)));
            }
        }
        faults
    }

    /// The token called `name`, according to each file that names it.
    fn by_name(&self, name: &str) -> Vec<(&'static str, String, Option<u32>)> {
        let maps = [
            ("tokenizer_config.json", &self.files.tokenizer_config),
            ("special_tokens_map.json", &self.files.special_tokens_map),
        ];
        let token = |map: &Value| {
            let value = map.get(name)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        let found = maps.into_iter().filter_map(|(file, map)| Some((file, token(map)?)));
        found.map(|(file, token)| (file, token.clone(), self.encoder.id(&token))).collect()
    }

    fn ids(&self, file: &Value, field: &str) -> Vec<u32> {
        file.get(field).map(ids).unwrap_or_default()
    }

    fn outside(&self, named: &[u32]) -> Vec<String> {
        let rows = self.files.config.get("vocab_size").and_then(Value::as_u64).unwrap_or(u64::MAX);
        let bad = named.iter().filter(|id| u64::from(**id) >= rows || self.encoder.token(**id).is_none());
        bad.map(|id| format!("config.json names {id}, which is not a token of this model")).collect()
    }

    fn described(&self, named: &[u32]) -> String {
        if named.is_empty() {
            return "none".to_owned();
        }
        let one = |id: &u32| format!("{id} {:?}", self.encoder.token(*id).unwrap_or_default());
        named.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

fn shown(id: Option<u32>) -> String {
    id.map_or_else(|| "not in the tokenizer".to_owned(), |id| id.to_string())
}

/// A number or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let values = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    values.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).collect()
}

fn template(files: &ModelText, encoder: &Encoder) -> Finding {
    let Some(source) = files.chat_template() else {
        let detail = "there is none: a reader cannot know how conversations were rendered";
        return Finding::failed(check::TEMPLATE, detail);
    };
    let in_config = files.tokenizer_config.get("chat_template").and_then(Value::as_str);
    if in_config.is_some_and(|other| other != source) {
        let detail =
            "chat_template.jinja and tokenizer_config.json hold different ones: readers would disagree";
        return Finding::failed(check::TEMPLATE, detail);
    }
    let rendered = encoder.prompt(&probe_prompts()[0], usize::MAX);
    match rendered {
        Ok(prompt) => {
            Finding::passed(check::TEMPLATE, format!("renders a short prompt to {} tokens", prompt.ids.len()))
        }
        // A tokenizer of a few words does not know every letter.
        Err(TextError::Tokenizer(error)) => Finding::unchecked(check::TEMPLATE, error),
        Err(error) => Finding::failed(check::TEMPLATE, error.to_string()),
    }
}

fn probe_prompts() -> [Prompt; 3] {
    let turn = Message::new;
    [
        Prompt::user("a"),
        Prompt::user("b c\n d"),
        Prompt { messages: vec![turn(Role::User, "a"), turn(Role::Assistant, "b"), turn(Role::User, "c")] },
    ]
}

fn probe(dir: &Path, files: &ModelText, encoder: &Encoder, kind: Kind) -> Probe {
    let (mut dialogues, mut prompts) = (Vec::new(), Vec::new());
    if files.chat_template().is_some() {
        for prompt in probe_prompts() {
            // A template may refuse one of these because of its roles, a tokenizer because of its letters.
            if let Ok(encoded) = encoder.prompt(&prompt, usize::MAX) {
                dialogues.push(json!(prompt.messages));
                prompts.push(encoded.ids);
            }
        }
    }
    let rows = rows(files, encoder);
    let greedy_prompts = rows.iter().skip(4).take(GREEDY_PROMPTS).map(|row| row[..row.len() - 1].to_vec());
    Probe {
        kind,
        directory: dir.display().to_string(),
        vocabulary: encoder.vocabulary(),
        eos: encoder.eos_ids().to_vec(),
        logit_rows: LOGIT_ROWS,
        greedy_prompts: greedy_prompts.filter(|prompt| !prompt.is_empty()).collect(),
        rows,
        new_tokens: NEW_TOKENS,
        dialogues,
        prompts,
    }
}

/// Sequences of 1 to [`LONGEST_ROW`] tokens that begin as the model's own do; every second one is finished.
fn rows(files: &ModelText, encoder: &Encoder) -> Vec<Vec<u32>> {
    let config_pad = files.config.get("pad_token_id").map(ids).unwrap_or_default();
    let named_pad = files.token("pad_token").and_then(|token| encoder.id(token));
    let pads = [config_pad.first().copied(), encoder.pad_id().ok(), named_pad];
    let special = |id: u32| pads.contains(&Some(id)) || encoder.is_special(id);
    let ordinary: Vec<u32> =
        (0..encoder.vocabulary() as u32).filter(|id| encoder.token(*id).is_some() && !special(*id)).collect();
    let positions =
        files.config.get("max_position_embeddings").and_then(Value::as_u64).unwrap_or(64) as usize;
    let longest = LONGEST_ROW.min(positions.saturating_sub(NEW_TOKENS)).max(2);
    let row = |number: usize| {
        let length = 1 + number * 7 % longest;
        // Steps through the vocabulary with a stride that is coprime to most sizes.
        let id = |at: usize| ordinary[(number * 977 + at * 7919) % ordinary.len()];
        let mut row: Vec<u32> = encoder.bos_id().into_iter().collect();
        row.extend((0..length).map(id));
        row.truncate(longest);
        if number.is_multiple_of(2) {
            row.extend(encoder.eos_ids().first());
        }
        row
    };
    if ordinary.is_empty() { Vec::new() } else { (0..ROWS).map(row).collect() }
}
