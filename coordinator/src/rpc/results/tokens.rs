//! The texts of tokens, from a tokenizer.json. The file is read as a stream that keeps only the requested
//! tokens, because it may be large, and the tokenizers library would hold all of it several times over.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

/// Replaces a space at the start of a word in SentencePiece vocabularies.
const META_SPACE: char = '\u{2581}';

/// The texts of `ids`: concatenated, they equal the decoded ids, with special tokens included. If several
/// tokens form a character, the text of the last one contains it.
///
/// # Errors
/// The file is not a tokenizer, or is of an unsupported kind.
pub(super) fn texts(tokenizer: &[u8], ids: &[u32]) -> Result<Vec<String>, String> {
    let wanted: HashSet<u32> = ids.iter().copied().collect();
    let mut deserializer = serde_json::Deserializer::from_slice(tokenizer);
    let found = FileSeed { wanted: &wanted }
        .deserialize(&mut deserializer)
        .map_err(|error| format!("its tokenizer.json cannot be read: {error}"))?;
    let alphabet = found.alphabet()?;
    let mut texts = Vec::with_capacity(ids.len());
    // Bytes of an incomplete character.
    let mut pending = Vec::new();
    for id in ids {
        let mut text = String::new();
        match (found.added.get(id), found.vocabulary.get(id)) {
            (Some(added), _) => {
                flush(&mut pending, &mut text);
                text.push_str(added);
            }
            (None, Some(piece)) => {
                alphabet.bytes(piece, &mut pending);
                take_characters(&mut pending, &mut text);
            }
            (None, None) => {
                flush(&mut pending, &mut text);
                text.push_str(&format!("<{id}>"));
            }
        }
        texts.push(text);
    }
    if let Some(last) = texts.last_mut() {
        flush(&mut pending, last);
    }
    Ok(texts)
}

/// Moves complete characters to a text; invalid bytes each become a replacement character.
fn take_characters(pending: &mut Vec<u8>, text: &mut String) {
    loop {
        match std::str::from_utf8(pending) {
            Ok(whole) => {
                text.push_str(whole);
                pending.clear();
                return;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&pending[..valid]));
                pending.drain(..valid);
                let Some(broken) = error.error_len() else { return };
                text.push(char::REPLACEMENT_CHARACTER);
                pending.drain(..broken);
            }
        }
    }
}

fn flush(pending: &mut Vec<u8>, text: &mut String) {
    text.push_str(&String::from_utf8_lossy(pending));
    pending.clear();
}

/// How a vocabulary represents bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// A printable character for each byte, as in GPT-2.
    Bytes,
    /// Text with a symbol for the space, and `<0xC3>` for a byte that is not valid text.
    SentencePiece,
    /// Text in which `##` continues a word, and any other token begins one.
    WordPiece,
    /// Plain text.
    Plain,
}

impl Alphabet {
    fn bytes(self, piece: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::Bytes => {
                for character in piece.chars() {
                    match byte_of(character) {
                        Some(byte) => bytes.push(byte),
                        // Not in the alphabet: added to the vocabulary later, and kept as it is.
                        None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            Self::SentencePiece => match fallback_byte(piece) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(piece.replace(META_SPACE, " ").as_bytes()),
            },
            Self::WordPiece => match piece.strip_prefix("##") {
                Some(rest) => bytes.extend_from_slice(rest.as_bytes()),
                None => {
                    bytes.push(b' ');
                    bytes.extend_from_slice(piece.as_bytes());
                }
            },
            Self::Plain => bytes.extend_from_slice(piece.as_bytes()),
        }
    }
}

/// The byte that a GPT-2 character represents: printable Latin-1 characters represent themselves, and the
/// characters from U+0100 on represent the other bytes, in order.
fn byte_of(character: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| is_itself(*byte)),
        code @ 0x100..=0x143 => (0..=u8::MAX).filter(|byte| !is_itself(*byte)).nth((code - 0x100) as usize),
        _ => None,
    }
}

/// The byte that a piece like `<0xC3>` represents.
fn fallback_byte(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The parts of a tokenizer.json that affect texts.
#[derive(Debug, Default)]
struct Found {
    added: HashMap<u32, String>,
    vocabulary: HashMap<u32, String>,
    model: String,
    decoders: Vec<String>,
}

impl Found {
    fn alphabet(&self) -> Result<Alphabet, String> {
        let has = |name: &str| self.decoders.iter().any(|decoder| decoder == name);
        if has("BPEDecoder") || has("CTC") {
            return Err("the texts of tokens of a tokenizer with suffixes of words are not shown".to_owned());
        }
        Ok(match self.model.as_str() {
            _ if has("ByteLevel") => Alphabet::Bytes,
            _ if has("Metaspace") || has("ByteFallback") || self.model == "Unigram" => {
                Alphabet::SentencePiece
            }
            _ if has("WordPiece") || self.model == "WordPiece" => Alphabet::WordPiece,
            _ => Alphabet::Plain,
        })
    }
}

struct FileSeed<'a> {
    wanted: &'a HashSet<u32>,
}

impl<'de> DeserializeSeed<'de> for FileSeed<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FileSeed<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a tokenizer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Found, A::Error> {
        let mut found = Found::default();
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "added_tokens" => {
                    let added = fields.next_value_seed(AddedSeed { wanted: self.wanted })?;
                    found.added = added;
                }
                "model" => {
                    let model = fields.next_value_seed(ModelSeed { wanted: self.wanted })?;
                    (found.model, found.vocabulary) = model;
                }
                "decoder" => {
                    let decoder: Option<Decoder> = fields.next_value()?;
                    decoder.into_iter().for_each(|decoder| decoder.names(&mut found.decoders));
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// A decoder, which may be a sequence of others.
#[derive(Deserialize)]
struct Decoder {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    decoders: Vec<Decoder>,
}

impl Decoder {
    fn names(self, names: &mut Vec<String>) {
        names.push(self.kind);
        self.decoders.into_iter().for_each(|decoder| decoder.names(names));
    }
}

struct AddedSeed<'a> {
    wanted: &'a HashSet<u32>,
}

impl<'de> DeserializeSeed<'de> for AddedSeed<'_> {
    type Value = HashMap<u32, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AddedSeed<'_> {
    type Value = HashMap<u32, String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("added tokens")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        struct Added {
            id: u32,
            content: String,
        }
        let mut added = HashMap::new();
        while let Some(token) = tokens.next_element::<Added>()? {
            if self.wanted.contains(&token.id) {
                added.insert(token.id, token.content);
            }
        }
        Ok(added)
    }
}

struct ModelSeed<'a> {
    wanted: &'a HashSet<u32>,
}

impl<'de> DeserializeSeed<'de> for ModelSeed<'_> {
    type Value = (String, HashMap<u32, String>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ModelSeed<'_> {
    type Value = (String, HashMap<u32, String>);

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a tokenizer's model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let (mut kind, mut vocabulary) = (String::new(), HashMap::new());
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "type" => kind = fields.next_value()?,
                "vocab" => vocabulary = fields.next_value_seed(VocabularySeed { wanted: self.wanted })?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok((kind, vocabulary))
    }
}

/// A map from texts to ids or, for a unigram model, a list of texts with their scores.
struct VocabularySeed<'a> {
    wanted: &'a HashSet<u32>,
}

impl<'de> DeserializeSeed<'de> for VocabularySeed<'_> {
    type Value = HashMap<u32, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for VocabularySeed<'_> {
    type Value = HashMap<u32, String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut tokens: A) -> Result<Self::Value, A::Error> {
        let mut found = HashMap::new();
        while let Some((text, id)) = tokens.next_entry::<String, u32>()? {
            if self.wanted.contains(&id) {
                found.insert(id, text);
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut id) = (HashMap::new(), 0u32);
        while let Some((text, _)) = tokens.next_element::<(String, IgnoredAny)>()? {
            if self.wanted.contains(&id) {
                found.insert(id, text);
            }
            id = id.checked_add(1).ok_or_else(|| <A::Error as de::Error>::custom("too many tokens"))?;
        }
        Ok(found)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(HashMap::new())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(tokenizer: &serde_json::Value, ids: &[u32]) -> Vec<String> {
        texts(tokenizer.to_string().as_bytes(), ids).unwrap()
    }

    #[test]
    fn every_byte_has_the_character_that_the_tokenizers_library_gives_it() {
        // The library's own alphabet, obtained by encoding each byte of Latin-1 the way it does.
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut bytes: Vec<u8> = alphabet.iter().filter_map(|character| byte_of(*character)).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(
            [byte_of('Ġ'), byte_of('Ċ'), byte_of('a'), byte_of('字')],
            [Some(b' '), Some(b'\n'), Some(b'a'), None]
        );
    }

    #[test]
    fn a_character_of_several_tokens_is_the_last_ones() {
        // é is C3 A9: Ã and © in GPT-2's alphabet.
        let tokenizer = json!({
            "model": { "type": "BPE", "vocab": { "ros": 0, "Ã": 1, "©": 2, "Ġon": 3 } },
            "added_tokens": [{ "id": 9, "content": "<|end|>", "special": true }],
            "decoder": { "type": "ByteLevel", "add_prefix_space": true }
        });
        assert_eq!(of(&tokenizer, &[0, 1, 2, 3, 9]), ["ros", "", "é", " on", "<|end|>"]);
        assert_eq!(
            of(&tokenizer, &[1, 9, 2, 77, 1]),
            ["", "\u{fffd}<|end|>", "\u{fffd}", "<77>", "\u{fffd}"]
        );
        assert!(of(&tokenizer, &[]).is_empty());
    }

    #[test]
    fn sentencepiece_has_spaces_and_bytes() {
        let tokenizer = json!({
            "added_tokens": [],
            "decoder": { "type": "Sequence", "decoders": [{ "type": "Replace", "pattern": {} }, { "type": "ByteFallback" }] },
            "model": { "type": "BPE", "vocab": { "▁Hello": 5, "<0xC3>": 6, "<0xA9>": 7 }, "merges": [["a", "b"]] }
        });
        assert_eq!(of(&tokenizer, &[5, 6, 7]), [" Hello", "", "é"]);
        let unigram =
            json!({ "model": { "type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.5], ["b", -2]] } });
        assert_eq!(of(&unigram, &[1, 2]), [" a", "b"]);
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_an_error() {
        for file in
            ["", "[]", "{\"model\":7}", "{\"model\":{\"vocab\":{\"a\":-1}}}", "{\"added_tokens\":[{}]}"]
        {
            assert!(texts(file.as_bytes(), &[1]).is_err(), "{file}");
        }
        let suffixes =
            json!({ "model": { "type": "BPE", "vocab": {} }, "decoder": { "type": "BPEDecoder" } });
        assert!(texts(suffixes.to_string().as_bytes(), &[1]).unwrap_err().contains("suffixes"));
    }
}
