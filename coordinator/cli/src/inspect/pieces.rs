//! Tokens as readable text: what each adds to the decoded text, or the name of a special token.

use foil_common::text::inspect::RowView;
use foil_common::text::{Encoder, TextError};

/// The text of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// A special token.
    pub(super) is_special: bool,
    /// Whether the token adds no text by itself, such as a part of a character; `text` is its name.
    pub(super) is_part: bool,
}

/// The pieces of a row, one for each token.
pub(super) fn pieces(encoder: &Encoder, view: &RowView) -> Result<Vec<Piece>, TextError> {
    let mut stream = encoder.stream();
    let mut shown = 0;
    view.tokens
        .iter()
        .map(|token| {
            let is_special = encoder.is_special(token.id);
            if is_special {
                return Ok(Piece { text: token.text.clone(), is_special, is_part: false });
            }
            let text = stream.push(token.id)?;
            let added = text.get(shown..).unwrap_or_default().to_owned();
            shown = text.len();
            let is_part = added.is_empty();
            Ok(Piece { text: if is_part { token.text.clone() } else { added }, is_special, is_part })
        })
        .collect()
}
