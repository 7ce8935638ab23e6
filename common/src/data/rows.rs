//! The canonical row types. The coordinator writes them once per job, as JSON lines; ranks read nothing else.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into() }
    }
}

/// A conversation that ends with a user message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    pub messages: Vec<Message>,
}

impl Prompt {
    /// A conversation of one user message.
    pub fn user(text: impl Into<String>) -> Self {
        Prompt { messages: vec![Message::new(Role::User, text)] }
    }

    /// The last turn's text; empty if there are no turns.
    pub fn last_text(&self) -> &str {
        self.messages.last().map_or("", |message| message.content.as_str())
    }

    /// The identity of a prompt, used by splits, overlap reports and deduplication.
    pub fn key(&self) -> PromptKey {
        let mut hasher = blake3::Hasher::new();
        hash_prompt(&mut hasher, self);
        PromptKey(*hasher.finalize().as_bytes())
    }

    fn fault(&self) -> Option<String> {
        match self.messages.last() {
            None => Some("the prompt has no messages; at least one user message is needed".to_owned()),
            Some(last) if last.role != Role::User => Some(format!(
                "the prompt ends with the {}'s turn; it must end with the user's",
                last.role.as_str()
            )),
            Some(_) => None,
        }
    }
}

/// BLAKE3 of a prompt's roles and contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PromptKey(pub [u8; 32]);

/// A prompt to generate completions for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptRow {
    pub id: u64,
    pub prompt: Prompt,
}

/// A human preference: `chosen` ≻ `rejected`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairRow {
    pub id: u64,
    pub prompt: Prompt,
    pub chosen: String,
    pub rejected: String,
    /// Strength of the preference in the annotators' units, if the source states it; finite and not
    /// negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Parts of a benchmark that the pair belongs to, as used in metric names; accuracy is also measured on
    /// each. Training rows have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// A prompt with its golden answer, by an annotator or a far stronger model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRow {
    pub id: u64,
    pub prompt: Prompt,
    pub golden: String,
}

/// A prompt with a response to imitate in supervised fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemonstrationRow {
    pub id: u64,
    pub prompt: Prompt,
    pub answer: String,
}

/// The common interface of the row types.
pub trait Row: Clone + Serialize + DeserializeOwned {
    fn id(&self) -> u64;
    fn set_id(&mut self, id: u64);
    fn prompt(&self) -> &Prompt;
    /// The responses to the prompt, in the order of the type's fields.
    fn responses(&self) -> Vec<&str>;
    fn margin(&self) -> Option<f64> {
        None
    }
    /// See [`PairRow::groups`].
    fn groups(&self) -> &[String] {
        &[]
    }
}

macro_rules! row {
    ($type:ty, [$($answer:ident),*]) => {
        impl Row for $type {
            fn id(&self) -> u64 {
                self.id
            }
            fn set_id(&mut self, id: u64) {
                self.id = id;
            }
            fn prompt(&self) -> &Prompt {
                &self.prompt
            }
            fn responses(&self) -> Vec<&str> {
                vec![$(self.$answer.as_str()),*]
            }
        }
    };
}
row!(PromptRow, []);
row!(GoldenRow, [golden]);
row!(DemonstrationRow, [answer]);

impl Row for PairRow {
    fn id(&self) -> u64 {
        self.id
    }
    fn set_id(&mut self, id: u64) {
        self.id = id;
    }
    fn prompt(&self) -> &Prompt {
        &self.prompt
    }
    fn responses(&self) -> Vec<&str> {
        vec![&self.chosen, &self.rejected]
    }
    fn margin(&self) -> Option<f64> {
        self.margin
    }
    fn groups(&self) -> &[String] {
        &self.groups
    }
}

/// Assigns ids that depend on content, not on position: 53 bits of BLAKE3, which every JSON reader represents
/// exactly. A row that repeats an earlier one (or collides with it) hashes its occurrence too.
pub fn assign_ids<T: Row>(rows: &mut [T]) {
    let mut used = HashSet::with_capacity(rows.len());
    for row in rows {
        let mut occurrence = 0u64;
        let id = loop {
            let id = content_id(row, occurrence);
            if used.insert(id) {
                break id;
            }
            occurrence += 1;
        };
        row.set_id(id);
    }
}

/// The identity of a row: equal if prompt, responses and groups are equal.
pub(crate) fn content_key<T: Row>(row: &T) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hash_prompt(&mut hasher, row.prompt());
    for answer in row.responses() {
        hash_text(&mut hasher, answer);
    }
    for group in row.groups() {
        hash_text(&mut hasher, group);
    }
    *hasher.finalize().as_bytes()
}

pub(crate) fn content_id<T: Row>(row: &T, occurrence: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&content_key(row));
    hasher.update(&occurrence.to_le_bytes());
    hasher.update(&row.margin().map_or([0; 8], |margin| margin.to_bits().to_le_bytes()));
    let mut low = [0u8; 8];
    low.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(low) >> 11
}

fn hash_prompt(hasher: &mut blake3::Hasher, prompt: &Prompt) {
    hasher.update(&(prompt.messages.len() as u64).to_le_bytes());
    for message in &prompt.messages {
        hash_text(hasher, message.role.as_str());
        hash_text(hasher, &message.content);
    }
}

fn hash_text(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

/// A data set that cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}:{line}: {what}; this file is written by the coordinator: submit the job again to have it rewritten"
)]
pub struct RowError {
    pub file: String,
    /// Line number, from 1.
    pub line: usize,
    pub what: String,
}

/// Reads a data set: one JSON object per line, all of one row type, ids unique.
pub fn read<T: Row>(file: &str, bytes: &[u8]) -> Result<Vec<T>, RowError> {
    let mut rows = Vec::new();
    let mut ids = HashSet::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let fail = |what: String| RowError { file: file.to_owned(), line: index + 1, what };
        let row: T = serde_json::from_slice(line).map_err(|error| fail(error.to_string()))?;
        if let Some(what) = row.prompt().fault() {
            return Err(fail(what));
        }
        if !ids.insert(row.id()) {
            return Err(fail(format!("the id {} occurs twice", row.id())));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Writes a data set: the inverse of [`read`].
pub fn write<T: Row>(rows: &[T]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for row in rows {
        // A row holds only strings and numbers, and writing to a Vec cannot fail.
        if serde_json::to_writer(&mut bytes, row).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(text: &str) -> PairRow {
        PairRow {
            id: 0,
            prompt: Prompt::user(text),
            chosen: "yes\nline".into(),
            rejected: "no".into(),
            margin: None,
            groups: Vec::new(),
        }
    }

    #[test]
    fn rows_survive_a_round_trip() {
        let mut rows = vec![pair("a"), pair("b"), pair("a")];
        rows[1].margin = Some(0.25);
        rows[2].groups = vec!["chat_hard".to_owned()];
        assign_ids(&mut rows);
        let bytes = write(&rows);
        assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), 3);
        assert_eq!(read::<PairRow>("x", &bytes).unwrap(), rows);
    }

    #[test]
    fn ids_follow_content_not_position() {
        let mut forward = vec![pair("a"), pair("b"), pair("c")];
        let mut backward: Vec<_> = forward.iter().rev().cloned().collect();
        assign_ids(&mut forward);
        assign_ids(&mut backward);
        backward.reverse();
        assert_eq!(forward, backward);
        assert!(forward.iter().all(|row| row.id < 1 << 53));
    }

    #[test]
    fn repeated_rows_get_ids_of_their_own() {
        let mut rows = vec![pair("a"), pair("a")];
        assign_ids(&mut rows);
        assert_ne!(rows[0].id, rows[1].id);
    }

    #[test]
    fn a_broken_row_is_named_by_file_and_line() {
        let mut rows = vec![pair("a")];
        assign_ids(&mut rows);
        let mut bytes = write(&rows);
        bytes.extend_from_slice(b"{\"id\":1,\"prompt\":7}\n");
        let error = read::<PairRow>("pairs.jsonl", &bytes).unwrap_err();
        assert_eq!((error.file.as_str(), error.line), ("pairs.jsonl", 2));
        let doubled = [write(&rows), write(&rows)].concat();
        assert!(read::<PairRow>("x", &doubled).unwrap_err().what.contains("twice"));
    }

    #[test]
    fn a_prompt_must_end_with_the_user() {
        let line = br#"{"id":1,"prompt":{"messages":[{"role":"assistant","content":"a"}]}}"#;
        assert!(read::<PromptRow>("x", line).unwrap_err().what.contains("assistant"));
        assert!(read::<PromptRow>("x", br#"{"id":1,"prompt":{"messages":[]}}"#).is_err());
    }
}
