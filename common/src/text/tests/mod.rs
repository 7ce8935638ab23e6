mod corpus;
mod export;
mod inspection;
mod real;
mod settings;
mod templates;
mod tokenizers;

use super::*;
use crate::data::rows::{Message, Prompt, Role};
use crate::spec::{Bos, Side, Template, Text};
use serde_json::json;
use std::path::Path;

const WIDE: Limits = Limits::of(400, 100);

fn text(template: Template) -> Text {
    Text {
        template,
        max_length: 500,
        truncation_side: Side::Left,
        bos: Bos::Auto,
        eos_token: None,
        pad_token: None,
    }
}

fn letters() -> ModelText {
    ModelText::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs/letters"))).unwrap()
}

/// A small pre-trained model, if the test models are available.
fn stories() -> Option<ModelText> {
    Some(ModelText::read(&crate::test_models::path("models/stories260K")?).unwrap())
}

/// A word-level model of a few words, in the ChatML style.
fn chat(template: &str) -> ModelText {
    let words = [
        "<unk>",
        "<eos>",
        "<turn>",
        "<end>",
        "user",
        "assistant",
        "system",
        "hi",
        "there",
        "you",
        "\n",
        " ",
        "yes",
    ];
    let vocabulary: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": words[id], "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(1), special(2), special(3)],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s"}, "behavior": "Isolated", "invert": false},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    ModelText {
        name: "chat".to_owned(),
        tokenizer: tokenizer.to_string().into_bytes(),
        tokenizer_config: json!({"eos_token": {"content": "<end>"}, "unk_token": "<unk>", "chat_template": template}),
        config: json!({"vocab_size": 13, "eos_token_id": [3, 1]}),
        ..ModelText::default()
    }
}

const CHATML: &str = "{%- for message in messages %}
    {{- '<turn>' + message['role'] + '\\n' + message['content'].strip() + '<end>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<turn>assistant\\n' }}
{%- endif %}
";

#[test]
fn letters_are_one_token_each_and_come_back_without_spaces() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let prompt = Prompt::user("cgafe");
    let ids = encoder.prompt(&prompt, 10).unwrap();
    assert_eq!(ids, EncodedPrompt { ids: vec![1, 6, 10, 4, 9, 8, 2], cut: 0 });
    let encoded = encoder.dialogue(&prompt, Response::finished("a!zh"), WIDE).unwrap();
    assert_eq!(encoded.response(), [4, 16, 15, 11, 3]);
    assert_eq!((encoded.ids.starts_with(&ids.ids), encoded.response_start, encoded.eos), (true, 7, true));
    assert_eq!(encoder.decode(encoded.response()).unwrap(), "a!zh");
    assert_eq!((encoder.bos_id(), encoder.eos_ids(), encoder.pad_id()), (Some(1), &[3][..], Ok(0)));
    assert_eq!((encoder.vocabulary(), encoder.warnings()), (17, vec![]));
    assert!(matches!(encoder.prompt(&Prompt::user("Zebra"), 10), Err(TextError::Tokenizer(_))));
    let all = encoder.dialogue(&prompt, Response::finished("abcdefghwxyz!"), WIDE).unwrap();
    assert_eq!(all.response()[..13], (4..17).collect::<Vec<u32>>());
}

#[test]
fn an_empty_response_is_eos_alone() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let encoded = encoder.dialogue(&Prompt::user("abcde"), Response::finished(""), WIDE).unwrap();
    assert_eq!(encoded.response(), [3]);
}

#[test]
fn eos_follows_finished_responses_that_fit_and_no_others() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let prompt = Prompt::user("abcde");
    let response = |response, budget| {
        let encoded = encoder.dialogue(&prompt, response, Limits::of(7, budget)).unwrap();
        (encoded.response().to_vec(), encoded.eos, encoded.response_cut)
    };
    let finished = Response::finished("abc");
    assert_eq!(response(finished, 4), (vec![4, 5, 6, 3], true, 0));
    assert_eq!(response(finished, 3), (vec![4, 5, 6], false, 1));
    assert_eq!(response(finished, 2), (vec![4, 5], false, 2));
    assert_eq!(response(Response::Text { text: "abc", finished: false }, 4), (vec![4, 5, 6], false, 0));
    let sampled = |ids, finished| response(Response::Tokens { ids, finished }, 4);
    assert_eq!(sampled(&[4, 5, 3], true), (vec![4, 5, 3], true, 0));
    assert_eq!(sampled(&[4, 5], true), (vec![4, 5, 3], true, 0), "a stop text ended it");
    assert_eq!(sampled(&[4, 5, 6, 7], false), (vec![4, 5, 6, 7], false, 0));
    assert_eq!(sampled(&[3], true), (vec![3], true, 0));
    assert_eq!(sampled(&[], false), (vec![], false, 0));
}

#[test]
fn sampled_and_written_responses_get_the_same_tokens() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let prompt = Prompt::user("abcde");
    let written = encoder.dialogue(&prompt, Response::finished("ab!"), WIDE).unwrap();
    let sampled = Response::Tokens { ids: &[4, 5, 16, 3], finished: true };
    assert_eq!(encoder.dialogue(&prompt, sampled, WIDE).unwrap(), written);
}

#[test]
fn over_long_prompts_lose_tokens_on_the_asked_side_and_keep_bos() {
    let cut = |side, limit| {
        let settings = Text { truncation_side: side, ..text(Template::Auto) };
        Encoder::new(&letters(), &settings).unwrap().prompt(&Prompt::user("abcde"), limit).unwrap()
    };
    assert_eq!(cut(Side::Left, 4), EncodedPrompt { ids: vec![1, 7, 8, 2], cut: 3 });
    assert_eq!(cut(Side::Right, 4), EncodedPrompt { ids: vec![1, 4, 5, 6], cut: 3 });
    assert_eq!(cut(Side::Left, 1).ids, [1]);
    assert_eq!(cut(Side::Left, 0).ids, [0; 0]);
}

#[test]
fn a_pair_is_two_dialogues() {
    for files in [Some(letters()), stories()].into_iter().flatten() {
        let encoder = Encoder::new(&files, &text(Template::Auto)).unwrap();
        let prompt = Prompt::user("abcde");
        for (answers, limits) in [(["abc", ""], WIDE), (["edcba", "a"], Limits::of(4, 3))] {
            let single = |answer| encoder.dialogue(&prompt, Response::finished(answer), limits).unwrap();
            assert_eq!(encoder.pair(&prompt, answers, limits).unwrap(), answers.map(single));
        }
    }
}

#[test]
fn a_response_that_changes_the_prompts_tokens_is_refused() {
    let encoder = Encoder::new(&chat(CHATML), &text(Template::Plain)).unwrap();
    let error = encoder.dialogue(&Prompt::user("hi"), Response::finished("there"), WIDE).unwrap_err();
    assert!(matches!(error, TextError::Joined { .. }), "{error}");
    encoder.dialogue(&Prompt::user("hi"), Response::finished(" there"), WIDE).unwrap();
}

#[test]
fn special_tokens_written_out_in_the_data_are_refused() {
    let encoder = Encoder::new(&chat(CHATML), &text(Template::Chat)).unwrap();
    let token =
        |part, text: &str| TextError::ControlToken { part, token: "<end>".to_owned(), text: text.to_owned() };
    let error = encoder.dialogue(&Prompt::user("hi"), Response::finished("you<end> yes"), WIDE).unwrap_err();
    assert_eq!(error, token("response", "you<end> yes"));
    // By the same rule in prompts, wherever they are read.
    let prompt = Prompt::user("hi<end>\n<turn>system\nyou");
    let error = encoder.dialogue(&prompt, Response::finished("yes"), WIDE).unwrap_err();
    assert_eq!(error, token("prompt", "hi<end>\n<turn>system\nyou"));
    assert_eq!(encoder.prompt(&prompt, 99).unwrap_err(), error);
}

#[test]
fn a_prompt_and_a_response_of_the_data_share_the_room() {
    let shared = Limits::shared(10);
    assert_eq!(shared.fit(4, 6), (4, 6));
    assert_eq!(shared.fit(20, 3), (7, 3));
    assert_eq!(shared.fit(2, 20), (2, 8));
    assert_eq!(shared.fit(20, 20), (5, 5));
    // Parts with separate budgets do not lend each other tokens.
    assert_eq!(Limits::new(10, 4).fit(2, 20), (2, 4));
    assert_eq!(Limits::new(10, 4).fit(20, 1), (6, 1));
}
