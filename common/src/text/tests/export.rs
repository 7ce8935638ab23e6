use super::*;
use crate::text::TrainedText;
use serde_json::Value;

/// A model directory whose text files are replaced by those of a result.
fn result(files: &ModelText, settings: &Text) -> (ModelText, TrainedText) {
    let encoder = Encoder::new(files, settings).unwrap();
    let trained = TrainedText::of(&encoder, files, settings).unwrap();
    let mut result = files.clone();
    for (name, content) in &trained.files {
        let json = || serde_json::from_slice(content).unwrap();
        match *name {
            "tokenizer_config.json" => result.tokenizer_config = json(),
            "generation_config.json" => result.generation_config = json(),
            "special_tokens_map.json" => result.special_tokens_map = json(),
            "chat_template.jinja" => result.chat_template = Some(String::from_utf8(content.clone()).unwrap()),
            other => panic!("{other}"),
        }
    }
    let ids = &trained.ids;
    result.config["bos_token_id"] = json!(ids.bos);
    result.config["eos_token_id"] = json!(ids.eos);
    result.config["pad_token_id"] = json!(ids.pad);
    (result, trained)
}

fn dialogue() -> Prompt {
    let turn = |role, text: &str| Message::new(role, text);
    let (system, user, assistant) = (Role::System, Role::User, Role::Assistant);
    Prompt { messages: vec![turn(system, "a"), turn(user, "b"), turn(assistant, "c"), turn(user, "d")] }
}

/// Rendering a result with its own template gives the tokens that its job trained on.
fn assert_same_tokens(files: &ModelText, settings: &Text, prompts: &[Prompt], response: &str) {
    let (result, trained) = result(files, settings);
    let before = Encoder::new(files, settings).unwrap();
    let again = result_encoders(&result, settings);
    for after in &again {
        for prompt in prompts {
            assert_eq!(before.prompt(prompt, 90).unwrap(), after.prompt(prompt, 90).unwrap(), "{settings:?}");
            let response = Response::finished(response);
            assert_eq!(
                before.dialogue(prompt, response, WIDE).unwrap(),
                after.dialogue(prompt, response, WIDE).unwrap(),
                "{settings:?}"
            );
        }
        assert_eq!(before.token_ids(), after.token_ids());
    }
    // A second round changes nothing.
    assert_eq!(TrainedText::of(&again[0], &result, settings).unwrap(), trained, "{settings:?}");
}

/// A result, read with the job's settings and without them.
fn result_encoders(result: &ModelText, settings: &Text) -> [Encoder; 2] {
    [settings, &text(Template::Chat)].map(|settings| Encoder::new(result, settings).unwrap())
}

const TURNS: &str = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";

#[test]
fn a_result_reads_text_as_its_job_did() {
    let mut bare = letters();
    bare.tokenizer_config.as_object_mut().unwrap().remove("chat_template");
    let mut file = letters();
    file.chat_template = Some("{{ bos_token }}never used".to_owned());
    let mut mapped = letters();
    mapped.special_tokens_map =
        json!({ "bos_token": { "content": "<s>" }, "eos_token": "</s>", "pad_token": "</s>" });
    mapped.generation_config = json!({ "eos_token_id": [3, 2], "temperature": 0.6 });
    let mut nameless = letters();
    nameless.tokenizer_config = Value::Null;
    let bos_settings = [Bos::Auto, Bos::Always, Bos::Never];
    let one = [Prompt::user("a")];
    for files in [&letters(), &bare, &file, &mapped, &nameless] {
        for bos in bos_settings {
            assert_same_tokens(files, &Text { bos, ..text(Template::Plain) }, &one, "ab");
            let turns = Template::Jinja(TURNS.to_owned());
            assert_same_tokens(files, &Text { bos, ..text(turns) }, &[Prompt::user("a"), dialogue()], "ab");
        }
    }
    for bos in bos_settings {
        assert_same_tokens(&letters(), &Text { bos, ..text(Template::Chat) }, &one, "ab");
    }
    let Some(stories) = stories() else { return };
    for template in [Template::Hh, Template::Plain, Template::Auto] {
        for bos in bos_settings {
            let settings = Text { bos, ..text(template.clone()) };
            assert_same_tokens(&stories, &settings, &[Prompt::user("Once"), dialogue()], " upon");
        }
    }
}

/// Rows for a reward model end at the token at which it was trained to be read.
#[test]
fn foils_own_templates_end_a_dialogue_as_training_does() {
    let dialogue = json!([
        { "role": "system", "content": "a" }, { "role": "user", "content": "b" },
        { "role": "assistant", "content": "c" }, { "role": "user", "content": "d" },
        { "role": "assistant", "content": "e" },
    ]);
    for (template, expected) in [
        (Template::Hh, "a\n\nHuman: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: e</s>"),
        (Template::Plain, "a\n\nb\n\nc\n\nde</s>"),
    ] {
        let (result, _) = result(&letters(), &text(template));
        let template = crate::text::jinja::Template::parse(result.chat_template().unwrap()).unwrap();
        let rendered = template.render(&[("messages", &dialogue), ("eos_token", &json!("</s>"))]).unwrap();
        assert_eq!(rendered, expected);
    }
}

#[test]
fn every_file_names_the_tokens_that_were_trained() {
    let mut files = chat(CHATML);
    files.special_tokens_map = json!({ "eos_token": { "content": "<end>" } });
    // Classes that do not use tokenizer.json unchanged.
    files.tokenizer_config["tokenizer_class"] = json!("LlamaTokenizer");
    files.tokenizer_config["auto_map"] = json!({ "AutoTokenizer": ["code.Tokenizer", null] });
    let settings = Text {
        eos_token: Some("<eos>".to_owned()),
        pad_token: Some("<turn>".to_owned()),
        truncation_side: Side::Right,
        ..text(Template::Jinja(TURNS.to_owned()))
    };
    let (result, trained) = result(&files, &settings);
    assert_eq!((trained.ids.eos.as_slice(), trained.ids.pad), (&[1, 3][..], Some(2)));
    assert_eq!(result.generation_config, json!({ "eos_token_id": [1, 3], "pad_token_id": 2 }));
    let expected = json!({
        "eos_token": "<eos>", "unk_token": "<unk>", "chat_template": TURNS, "pad_token": "<turn>",
        "truncation_side": "right", "tokenizer_class": "PreTrainedTokenizerFast",
    });
    assert_eq!(result.tokenizer_config, expected);
    assert_eq!(result.special_tokens_map, json!({ "eos_token": "<eos>", "pad_token": "<turn>" }));
}

#[test]
fn unchanged_settings_are_exported_as_they_were() {
    let mut files = chat(CHATML);
    let list = json!([{ "name": "default", "template": CHATML }, { "name": "tool_use", "template": "t" }]);
    files.tokenizer_config["chat_template"] = list.clone();
    files.tokenizer_config["model_max_length"] = json!(1e30);
    files.generation_config = json!({ "temperature": 0.6, "eos_token_id": 3 });
    let (result, _) = result(&files, &text(Template::Chat));
    assert_eq!(result.tokenizer_config["chat_template"], list);
    assert_eq!(result.tokenizer_config["eos_token"], json!({ "content": "<end>" }));
    assert!(result.tokenizer_config.get("bos_token").is_none(), "there is none");
    assert!(result.tokenizer_config.get("model_max_length").is_none());
    let expected = json!({ "temperature": 0.6, "eos_token_id": [3, 1] });
    assert_eq!(result.generation_config, expected);
}

#[test]
fn a_pad_token_that_texts_hold_is_refused_or_replaced() {
    let pad = |files: &ModelText, token: Option<&str>| {
        let settings = Text { pad_token: token.map(str::to_owned), ..text(Template::Plain) };
        let encoder = Encoder::new(files, &settings).unwrap();
        (encoder.pad_id(), encoder.warnings().join("; "))
    };
    for (token, fault) in
        [("<s>", "begins sequences (BOS)"), ("</s>", "ends responses (EOS)"), ("a", "ordinary token")]
    {
        let error = pad(&letters(), Some(token)).0.unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
        // An unsuitable pad token of the model is replaced, with a warning.
        let mut files = letters();
        files.tokenizer_config["pad_token"] = json!(token);
        let (found, warnings) = pad(&files, None);
        assert_eq!(found, Ok(0), "<pad>, which config.json still names");
        assert!(warnings.contains(&format!("{token:?}")) && warnings.contains("\"<pad>\""), "{warnings}");
    }
    let writes = Text { template: Template::Jinja(format!("<turn>{TURNS}")), ..text(Template::Plain) };
    let spare = Encoder::new(&chat(TURNS), &writes).unwrap().pad_id();
    assert!(spare.is_err(), "the job's own template writes the only spare token: {spare:?}");
    let mut unknown = chat(TURNS);
    unknown.tokenizer_config["pad_token"] = json!("<unk>");
    assert_ne!(pad(&unknown, None).0, Ok(0), "words that the tokenizer does not know become <unk>");
    let mut beyond = letters();
    beyond.tokenizer_config.as_object_mut().unwrap().remove("pad_token");
    beyond.config["pad_token_id"] = json!(17);
    assert!(pad(&beyond, None).0.is_ok_and(|id| id < 17), "no token has the id 17");
}

/// A tokenizer that marks the start of a text, but not after BOS.
fn marking() -> ModelText {
    let mut words: Vec<String> = ["<unk>", "<s>", "</s>", "▁"].map(str::to_owned).to_vec();
    words.extend("\nHumanAsit:bcd".chars().map(String::from));
    words.sort();
    words.dedup();
    let vocabulary: Vec<_> = words.iter().map(|word| json!([word, -1.0])).collect();
    let id = |word: &str| words.iter().position(|known| known == word).unwrap();
    let special = ["<s>", "</s>"].map(|word| {
        json!({"id": id(word), "content": word, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": special, "pre_tokenizer": metaspace, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": id("<unk>"), "vocab": vocabulary},
    });
    ModelText {
        tokenizer: tokenizer.to_string().into_bytes(),
        tokenizer_config: json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}),
        config: json!({"vocab_size": 40}),
        ..ModelText::default()
    }
}

#[test]
fn without_a_template_that_gives_the_trained_tokens_there_is_none() {
    let files = marking();
    for template in [Template::Hh, Template::Plain, Template::Auto] {
        let (result, trained) = result(&files, &text(template.clone()));
        assert!(result.chat_template().is_none(), "{template:?}: {trained:?}");
        // The job itself is not affected.
        let settings = text(template);
        let [before, after] = [&files, &result].map(|files| Encoder::new(files, &settings).unwrap());
        let prompt = Prompt::user("b");
        assert_eq!(before.prompt(&prompt, 90).unwrap(), after.prompt(&prompt, 90).unwrap());
        assert_eq!(TrainedText::of(&after, &result, &settings).unwrap(), trained);
    }
    // Without BOS, a template gives the trained tokens.
    assert_same_tokens(&files, &Text { bos: Bos::Never, ..text(Template::Hh) }, &[Prompt::user("b")], "c");
    // The model's own template file would be another template: it is replaced by one that raises an error.
    let mut own = marking();
    own.chat_template = Some(TURNS.to_owned());
    let (result, _) = result(&own, &text(Template::Hh));
    let error = Encoder::new(&result, &text(Template::Chat)).err().unwrap().to_string();
    assert!(error.contains("no chat template renders the tokens"), "{error}");
}
