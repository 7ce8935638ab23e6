//! Completions and their texts in wire format.

use foil_common::data::rows::Prompt;
use foil_proto::v1;

use super::chunk::Sample;

/// Maximum number of a prompt's turns shown.
const MAX_TURNS: usize = 64;

pub(super) fn completion(round: u32, found: &Sample, text_bytes: usize) -> v1::Completion {
    let Sample { sample, selection } = found;
    let log_prob = || sample.log_probs.iter().map(|log_prob| f64::from(*log_prob)).sum();
    v1::Completion {
        round,
        index: sample.index,
        text: Some(text(&sample.text, text_bytes)),
        tokens: u32::try_from(sample.tokens.len()).unwrap_or(u32::MAX),
        finished: sample.finished,
        reward: finite(sample.reward),
        gold: finite(sample.gold),
        kl: finite(sample.kl),
        log_prob: finite((!sample.log_probs.is_empty()).then(log_prob)),
        selection: (*selection).into(),
    }
}

/// JSON cannot represent other numbers.
fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

pub(super) fn messages(prompt: &Prompt, bytes: usize) -> Vec<v1::ChatMessage> {
    let message = |message: &foil_common::data::rows::Message| v1::ChatMessage {
        role: message.role.as_str().to_owned(),
        text: Some(text(&message.content, bytes)),
    };
    // Very long dialogues are cut at the start, because the last turns are the ones answered.
    let turns = prompt.messages.len();
    prompt.messages.iter().skip(turns.saturating_sub(MAX_TURNS)).map(message).collect()
}

/// A text, truncated between characters.
pub(super) fn text(whole: &str, bytes: usize) -> v1::Text {
    v1::Text { text: whole[..whole.floor_char_boundary(bytes)].to_owned(), bytes: whole.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_says_its_length() {
        let cut = text("aäb", 2);
        assert_eq!((cut.text.as_str(), cut.bytes), ("a", 4));
        assert_eq!(text("aäb", 4).text, "aäb");
    }
}
