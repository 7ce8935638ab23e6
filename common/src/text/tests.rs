use super::*;
use crate::data::rows::{Message, Prompt, Role};
use crate::spec::{Bos, Side, Template, Text};
use proptest::prelude::*;
use serde_json::json;
use std::path::{Path, PathBuf};

const WIDE: Limits = Limits { prompt: 400, answer: 100 };

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

/// The shared folder's small pre-trained model, where there is one.
fn stories() -> Option<ModelText> {
    let root = std::env::var_os("FOIL_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let dir = root.join("models/stories260K");
    if !dir.exists() {
        println!("skipped: {} is absent (set FOIL_SHARED)", dir.display());
        return None;
    }
    Some(ModelText::read(&dir).unwrap())
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
    let encoded = encoder.dialogue(&prompt, Answer::finished("a!zh"), WIDE).unwrap();
    assert_eq!(encoded.answer(), [4, 16, 15, 11, 3]);
    assert_eq!((encoded.ids.starts_with(&ids.ids), encoded.answer_start, encoded.eos), (true, 7, true));
    assert_eq!(encoder.decode(encoded.answer()).unwrap(), "a!zh");
    assert_eq!((encoder.bos_id(), encoder.eos_ids(), encoder.pad_id()), (Some(1), &[3][..], Ok(0)));
    assert_eq!((encoder.vocabulary(), encoder.warnings()), (17, vec![]));
    assert!(matches!(encoder.prompt(&Prompt::user("Zebra"), 10), Err(TextError::Tokenizer(_))));
    let all = encoder.dialogue(&prompt, Answer::finished("abcdefghwxyz!"), WIDE).unwrap();
    assert_eq!(all.answer()[..13], (4..17).collect::<Vec<u32>>());
}

#[test]
fn an_empty_answer_is_eos_alone() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let encoded = encoder.dialogue(&Prompt::user("abcde"), Answer::finished(""), WIDE).unwrap();
    assert_eq!(encoded.answer(), [3]);
}

#[test]
fn eos_follows_finished_answers_that_fit_and_no_others() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let prompt = Prompt::user("abcde");
    let answer = |answer, budget| {
        let encoded = encoder.dialogue(&prompt, answer, Limits { prompt: 7, answer: budget }).unwrap();
        (encoded.answer().to_vec(), encoded.eos, encoded.answer_cut)
    };
    let finished = Answer::finished("abc");
    assert_eq!(answer(finished, 4), (vec![4, 5, 6, 3], true, 0));
    assert_eq!(answer(finished, 3), (vec![4, 5, 6], false, 1));
    assert_eq!(answer(finished, 2), (vec![4, 5], false, 2));
    assert_eq!(answer(Answer::Text { text: "abc", finished: false }, 4), (vec![4, 5, 6], false, 0));
    let sampled = |ids, finished| answer(Answer::Tokens { ids, finished }, 4);
    assert_eq!(sampled(&[4, 5, 3], true), (vec![4, 5, 3], true, 0));
    assert_eq!(sampled(&[4, 5], true), (vec![4, 5, 3], true, 0), "a stop text ended it");
    assert_eq!(sampled(&[4, 5, 6, 7], false), (vec![4, 5, 6, 7], false, 0));
    assert_eq!(sampled(&[3], true), (vec![3], true, 0));
    assert_eq!(sampled(&[], false), (vec![], false, 0));
}

#[test]
fn sampled_and_written_answers_get_the_same_tokens() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let prompt = Prompt::user("abcde");
    let written = encoder.dialogue(&prompt, Answer::finished("ab!"), WIDE).unwrap();
    let sampled = Answer::Tokens { ids: &[4, 5, 16, 3], finished: true };
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
fn bos_is_never_doubled() {
    for (bos, count) in [(Bos::Auto, 1), (Bos::Always, 1), (Bos::Never, 0)] {
        let settings = Text { bos, ..text(Template::Auto) };
        let ids =
            Encoder::new(&letters(), &settings).unwrap().prompt(&Prompt::user("abcde"), 20).unwrap().ids;
        assert_eq!(ids.iter().filter(|&&id| id == 1).count(), count, "{bos:?}");
    }
    // The config says that the tokenizer adds none; always overrules it.
    for (bos, first) in [(Bos::Auto, 4), (Bos::Always, 1)] {
        let settings = Text { bos, ..text(Template::Plain) };
        assert_eq!(
            Encoder::new(&letters(), &settings).unwrap().prompt(&Prompt::user("a"), 9).unwrap().ids[0],
            first
        );
    }
}

#[test]
fn chat_templates_render_as_in_python() {
    let encoder = Encoder::new(&chat(CHATML), &text(Template::Chat)).unwrap();
    let prompt =
        Prompt { messages: vec![Message::new(Role::System, " hi"), Message::new(Role::User, "there you ")] };
    let encoded = encoder.dialogue(&prompt, Answer::finished("yes"), WIDE).unwrap();
    assert_eq!(encoded.ids, [2, 6, 10, 7, 3, 10, 2, 4, 10, 8, 11, 9, 3, 10, 2, 5, 10, 12, 3]);
    assert_eq!((encoded.answer_start, encoded.eos), (17, true));
    assert!(encoder.warnings().is_empty());
    assert_eq!(encoder.eos_ids(), [3, 1]);
    // An answer that ended with the model's other end token keeps it.
    let sampled = Answer::Tokens { ids: &[12, 1], finished: true };
    assert_eq!(encoder.dialogue(&prompt, sampled, WIDE).unwrap().answer(), [12, 1]);
}

#[test]
fn a_template_may_put_text_before_answers() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}\n\
        {% else %}yes\n{{ m.content }}<end>{% endif %}{% endfor %}";
    let encoder = Encoder::new(&chat(template), &text(Template::Chat)).unwrap();
    let encoded = encoder.dialogue(&Prompt::user("hi"), Answer::finished("you"), WIDE).unwrap();
    // `trim_blocks` eats the newline after the block, not the one in the text.
    assert_eq!(encoder.decode(&encoded.ids).unwrap(), "hi\nyes\nyou");
    assert_eq!(encoder.answer_text(encoded.answer()).unwrap(), "you");
}

#[test]
fn templates_that_rewrite_the_prompt_are_refused_with_the_text_shown() {
    let rewriting = "{{ messages | length }}{{ messages[-1].content }}";
    let error = Encoder::new(&chat(rewriting), &text(Template::Chat)).err().unwrap();
    assert!(matches!(error, TextError::NotAppended { .. }), "{error}");
    // Only some rows show it: the answer's text is changed.
    let changing = "{% for m in messages %}{{ m.content | replace('you', 'there') }}{{ ' ' if m.role == 'user' else '' }}{% endfor %}";
    let encoder = Encoder::new(&chat(changing), &text(Template::Chat)).unwrap();
    encoder.dialogue(&Prompt::user("hi"), Answer::finished("yes"), WIDE).unwrap();
    let error = encoder.dialogue(&Prompt::user("hi"), Answer::finished("you"), WIDE).unwrap_err();
    assert!(error.to_string().contains("hi there"), "{error}");
}

#[test]
fn an_answer_that_changes_the_prompts_tokens_is_refused() {
    let encoder = Encoder::new(&chat(CHATML), &text(Template::Plain)).unwrap();
    let error = encoder.dialogue(&Prompt::user("hi"), Answer::finished("there"), WIDE).unwrap_err();
    assert!(matches!(error, TextError::Joined { .. }), "{error}");
    encoder.dialogue(&Prompt::user("hi"), Answer::finished(" there"), WIDE).unwrap();
}

#[test]
fn special_tokens_written_in_an_answer_are_refused() {
    let encoder = Encoder::new(&chat(CHATML), &text(Template::Chat)).unwrap();
    let error = encoder.dialogue(&Prompt::user("hi"), Answer::finished("you<end> yes"), WIDE).unwrap_err();
    assert_eq!(
        error,
        TextError::SpecialInAnswer { answer: "you<end> yes".to_owned(), token: "<end>".to_owned() }
    );
}

#[test]
fn template_errors_reach_the_user() {
    let refusing = "{% if messages[0].content == 'you' %}{{ raise_exception('no ' + 'you') }}{% endif %}{{ messages[0].content }} \
        {%- for m in messages[1:] %} {{ m.content }}{% endfor %}";
    let encoder = Encoder::new(&chat(refusing), &text(Template::Jinja(refusing.to_owned()))).unwrap();
    let error = encoder.prompt(&Prompt::user("you"), 9).unwrap_err().to_string();
    assert!(error.contains("no you") && error.contains("text.template"), "{error}");
    for broken in ["{% if %}", "{{ nothing.at.all }}"] {
        assert!(Encoder::new(&chat(broken), &text(Template::Chat)).is_err());
    }
    let mut files = chat("");
    files.tokenizer_config = json!({"eos_token": "<end>"});
    let error = Encoder::new(&files, &text(Template::Chat)).err().unwrap().to_string();
    assert!(error.contains("text.template: chat, but chat has no chat template"), "{error}");
}

#[test]
fn the_named_default_of_several_templates_and_the_jinja_file_win() {
    let mut files = chat("");
    files.tokenizer_config["chat_template"] = json!([
        {"name": "tool_use", "template": "{{ 1 }}"},
        {"name": "default", "template": CHATML},
    ]);
    let prompt = |files: &ModelText| {
        let encoder = Encoder::new(files, &text(Template::Auto)).unwrap();
        encoder.prompt(&Prompt::user("hi"), 20).unwrap().ids
    };
    assert_eq!(prompt(&files), [2, 4, 10, 7, 3, 10, 2, 5, 10]);
    files.chat_template = Some(
        "{% for m in messages %}{% generation %}{{ m.content }} {% endgeneration %}{% endfor %}".to_owned(),
    );
    assert_eq!(prompt(&files), [7, 11]);
}

#[test]
fn what_a_template_writes_before_eos_belongs_to_the_answer() {
    let template = "{% for m in messages %}{{ m.content }}{{ ' <end>' if m.role == 'assistant' else '\\n' }}{% endfor %}";
    let encoder = Encoder::new(&chat(template), &text(Template::Chat)).unwrap();
    let finished = encoder.dialogue(&Prompt::user("hi"), Answer::finished("you"), WIDE).unwrap();
    assert_eq!(finished.answer(), [9, 11, 3]);
    assert_eq!(encoder.answer_text(finished.answer()).unwrap(), "you");
    let open = Answer::Text { text: "you", finished: false };
    assert_eq!(encoder.dialogue(&Prompt::user("hi"), open, WIDE).unwrap().answer(), [9]);
}

#[test]
fn an_ending_that_is_not_eos_is_warned_of() {
    let settings = Text { eos_token: Some("<eos>".to_owned()), ..text(Template::Chat) };
    let warnings = Encoder::new(&chat(CHATML), &settings).unwrap().warnings();
    assert!(warnings[0].contains("\"<end>\"") && warnings[0].contains("\"<eos>\""), "{warnings:?}");
}

#[test]
fn the_date_in_templates_is_fixed() {
    let dated = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %} {{ m.content }}{% endfor %}";
    let files = chat(dated);
    let encoder = Encoder::new(&files, &text(Template::Chat)).unwrap();
    let ids = encoder.prompt(&Prompt::user("hi"), 99).unwrap().ids;
    assert_eq!(ids, [0, 11, 7]);
}

#[test]
fn eos_and_pad_follow_the_job_then_the_model() {
    let settings = |eos: Option<&str>, pad: Option<&str>| Text {
        eos_token: eos.map(str::to_owned),
        pad_token: pad.map(str::to_owned),
        ..text(Template::Hh)
    };
    let files = chat("");
    let load = |eos, pad| Encoder::new(&files, &settings(eos, pad)).unwrap();
    assert_eq!(load(None, None).eos_ids(), [3, 1]);
    assert_eq!(load(Some("<eos>"), None).eos_ids(), [1, 3]);
    assert_eq!(load(None, Some("<turn>")).pad_id(), Ok(2));
    assert!(load(None, Some("<end>")).pad_id().unwrap_err().to_string().contains("text.pad_token"));
    assert!(Encoder::new(&files, &settings(Some("<no>"), None)).is_err());
    // No pad of its own, no unknown token that never occurs: the special token that nothing writes.
    assert_eq!(load(None, None).pad_id(), Ok(2));

    let mut conflicting = chat("");
    conflicting.config["eos_token_id"] = json!(1);
    assert_eq!(Encoder::new(&conflicting, &settings(None, None)).unwrap().eos_ids(), [1]);
    let mut padded = chat("");
    padded.tokenizer_config["pad_token"] = json!("<end>");
    assert_eq!(Encoder::new(&padded, &settings(None, None)).unwrap().pad_id(), Ok(2), "EOS cannot pad");
    let mut none = chat("<turn>");
    none.config = json!({"eos_token_id": [1, 3]});
    assert!(Encoder::new(&none, &settings(None, None)).unwrap().pad_id().is_err());
    let mut small = chat("");
    small.config["vocab_size"] = json!(4);
    assert!(Encoder::new(&small, &settings(None, None)).err().unwrap().to_string().contains("vocab_size 4"));
}

#[test]
fn missing_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = ModelText::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: is missing"), "{error}");
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(Encoder::load(dir.path(), &text(Template::Hh)).err().unwrap().to_string().contains("unreadable"));
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(ModelText::read(dir.path()).unwrap_err().to_string().contains("config.json: not JSON"));
}

#[test]
fn a_real_tokenizer_gets_bos_once_and_keeps_the_prompts_tokens() {
    let Some(files) = stories() else { return };
    let encoder = Encoder::new(&files, &text(Template::Auto)).unwrap();
    let prompt = Prompt {
        messages: vec![
            Message::new(Role::User, "Tell me a story."),
            Message::new(Role::Assistant, "Of what?"),
            Message::new(Role::User, "Of Lily."),
        ],
    };
    let ids = encoder.prompt(&prompt, 400).unwrap().ids;
    assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 1);
    assert_eq!(ids[0], 1);
    assert_eq!(
        encoder.decode(&ids).unwrap(),
        "\n\nHuman: Tell me a story.\n\nAssistant: Of what?\n\nHuman: Of Lily.\n\nAssistant:"
    );
    let encoded = encoder.dialogue(&prompt, Answer::finished("Once upon a time, Zoë ran."), WIDE).unwrap();
    assert!(encoded.ids.starts_with(&ids));
    assert_eq!((encoded.ids.last(), encoded.eos), (Some(&2), true));
    assert_eq!(encoder.answer_text(encoded.answer()).unwrap(), "Once upon a time, Zoë ran.");
    assert_eq!((encoder.bos_id(), encoder.eos_id(), encoder.pad_id()), (Some(1), 2, Ok(0)));
    let cut = encoder.prompt(&prompt, 12).unwrap();
    assert_eq!((cut.ids.len(), cut.ids[0], cut.cut), (12, 1, ids.len() - 12));
    assert_eq!(cut.ids[1..], ids[ids.len() - 11..]);
}

#[test]
fn a_plain_story_starts_like_the_models_own() {
    let Some(files) = stories() else { return };
    let encoder = Encoder::new(&files, &text(Template::Plain)).unwrap();
    let ids = encoder.prompt(&Prompt::user("Once upon a time"), 100).unwrap().ids;
    assert_eq!(ids, [1, 403, 407, 261, 378]);
    let encoded = encoder
        .dialogue(&Prompt::user("Once upon a time"), Answer::finished(", there was a little girl"), WIDE)
        .unwrap();
    assert_eq!(encoded.answer()[..6], [432, 383, 286, 261, 376, 298]);
}

#[test]
fn a_stream_gives_the_text_of_all_its_tokens() {
    let Some(files) = stories() else { return };
    let encoder = Encoder::new(&files, &text(Template::Plain)).unwrap();
    let story = "Once Zoë found — a 🐈 here.";
    let ids = encoder.prompt(&Prompt::user(story), 100).unwrap().ids;
    let mut stream = encoder.stream();
    for (count, id) in ids.iter().enumerate() {
        let so_far = stream.push(*id).unwrap().to_owned();
        assert!(story.starts_with(&so_far), "{so_far:?} after {count}");
    }
    assert_eq!(stream.text(), story);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn answers_come_back_from_their_tokens(
        question in "[a-zA-Z ,.é🐈]{1,40}", answer in "[a-zA-Zé🐈!]{1,10}( [a-zA-Zé,.🐈]{1,8}){0,5}", budget in 1usize..60
    ) {
        let Some(files) = stories() else { return Ok(()) };
        let encoder = Encoder::new(&files, &text(Template::Hh)).unwrap();
        let prompt = Prompt::user(question);
        let whole = encoder.dialogue(&prompt, Answer::finished(&answer), WIDE).unwrap();
        prop_assert_eq!(encoder.answer_text(whole.answer()).unwrap(), answer.clone());
        let limits = Limits { prompt: 20, answer: budget };
        let cut = encoder.dialogue(&prompt, Answer::finished(&answer), limits).unwrap();
        prop_assert!(cut.ids.len() <= 20 + budget);
        prop_assert_eq!(cut.ids[0], 1);
        prop_assert_eq!(cut.answer(), &whole.answer()[..cut.answer().len()]);
        prop_assert_eq!(cut.eos, cut.answer().last() == Some(&2));
        prop_assert_eq!(cut.answer_cut, whole.answer().len() - cut.answer().len());
        let asked = encoder.prompt(&prompt, 20).unwrap();
        prop_assert_eq!(&cut.ids[..cut.answer_start], &asked.ids[..]);
    }
}
