use super::{Encoder, TextError};

/// The text of a growing completion. A character of several tokens appears with its last one.
pub struct TextStream<'a> {
    encoder: &'a Encoder,
    ids: Vec<u32>,
    /// Number of tokens whose text is final; decoding starts one token earlier, for context.
    settled: usize,
    text: String,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(encoder: &'a Encoder) -> Self {
        Self { encoder, ids: Vec::new(), settled: 0, text: String::new() }
    }

    /// Adds a token; returns the whole text so far.
    pub fn push(&mut self, id: u32) -> Result<&str, TextError> {
        self.ids.push(id);
        let start = self.settled.saturating_sub(1);
        let before = self.encoder.decode_continuation(&self.ids[start..self.settled])?;
        let after = self.encoder.decode_continuation(&self.ids[start..])?;
        if let Some(new) = after.strip_prefix(before.as_str()).filter(|new| !new.ends_with('\u{fffd}')) {
            self.text.push_str(new);
            self.settled = self.ids.len();
        }
        Ok(&self.text)
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}
