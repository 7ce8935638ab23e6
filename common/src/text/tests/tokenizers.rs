use super::*;

fn token(content: &str) -> serde_json::Value {
    json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// A model whose words include the space before them, as in SentencePiece; its decoder drops the space at the
/// start of a text.
fn spaced() -> ModelText {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let words = ["<unk>", "</s>", "▁a", "▁dog", "▁named", "▁Spot"];
    let vocabulary: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": metaspace, "decoder": metaspace,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    ModelText {
        name: "spaced".to_owned(),
        tokenizer: tokenizer.to_string().into_bytes(),
        tokenizer_config: json!({"eos_token": "</s>", "unk_token": "<unk>"}),
        ..ModelText::default()
    }
}

fn changed(files: &ModelText, change: impl FnOnce(&mut serde_json::Value)) -> ModelText {
    let mut content: serde_json::Value = serde_json::from_slice(&files.tokenizer).unwrap();
    change(&mut content);
    ModelText { tokenizer: content.to_string().into_bytes(), ..files.clone() }
}

fn refusal(files: &ModelText) -> String {
    Encoder::new(files, &text(Template::Plain)).err().unwrap().to_string()
}

#[test]
fn a_responses_text_keeps_its_first_space() {
    let encoder = Encoder::new(&spaced(), &text(Template::Plain)).unwrap();
    let ids = encoder.prompt(&Prompt::user("a dog named Spot"), 9).unwrap().ids;
    assert_eq!(ids, [2, 3, 4, 5]);
    assert_eq!(encoder.response_text(&ids[2..]).unwrap(), " named Spot");
    let mut stream = encoder.stream();
    stream.push(4).unwrap();
    assert_eq!(stream.push(5).unwrap(), " named Spot");
    // Encoded again after the prompt, it gives the same tokens.
    let response = Response::Text { text: " named Spot", finished: false };
    assert_eq!(encoder.dialogue(&Prompt::user("a dog"), response, WIDE).unwrap().ids, ids);
    // A heading's space does not belong to the response.
    let encoder = Encoder::new(&spaced(), &text(Template::Hh)).unwrap();
    assert_eq!(encoder.response_text(&ids[2..]).unwrap(), "named Spot");
}

#[test]
fn equality_of_tokenizers_is_by_content() {
    let files = spaced();
    let print =
        |files: &ModelText| Encoder::new(files, &text(Template::Plain)).unwrap().fingerprint().to_owned();
    let pretty = serde_json::from_slice::<serde_json::Value>(&files.tokenizer).unwrap();
    let pretty = ModelText { tokenizer: serde_json::to_vec_pretty(&pretty).unwrap(), ..files.clone() };
    assert_ne!(pretty.tokenizer, files.tokenizer);
    assert_eq!(print(&pretty), print(&files));
    let swapped = changed(&files, |content| {
        content["model"]["vocab"]["▁dog"] = json!(4);
        content["model"]["vocab"]["▁named"] = json!(3);
    });
    let lower = changed(&files, |content| content["normalizer"] = json!({"type": "Lowercase"}));
    for other in [swapped, lower] {
        assert_ne!(print(&other), print(&files));
    }
}

#[test]
fn tokens_of_the_config_alone_are_added_at_their_ids() {
    let mut files = spaced();
    files.tokenizer_config["added_tokens_decoder"] =
        json!({"6": token("<|im_start|>"), "7": token("<|im_end|>")});
    files.tokenizer_config["chat_template"] =
        json!("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}");
    let encoder = Encoder::new(&files, &text(Template::Chat)).unwrap();
    assert_eq!(encoder.prompt(&Prompt::user("a dog"), 9).unwrap().ids, [6, 2, 3, 7]);
    assert!(encoder.is_special(6) && encoder.vocabulary() == 8);
    files.tokenizer_config["added_tokens_decoder"] = json!({"9": token("<|im_start|>")});
    let error = refusal(&files);
    assert!(
        error.contains("tokenizer_config.json") && error.contains("at id 9") && error.contains("gives it 6"),
        "{error}"
    );
}

#[test]
fn special_tokens_of_the_model_alone_are_added_under_every_name() {
    let template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";
    let (list, named) =
        (json!(["<|im_start|>", "<|im_end|>"]), json!({"a": "<|im_start|>", "b": "<|im_end|>"}));
    // (in tokenizer_config.json, in special_tokens_map.json)
    for (config, map) in [
        (json!({"extra_special_tokens": list}), json!({})),
        (json!({"extra_special_tokens": named}), json!({})),
        (json!({"additional_special_tokens": list}), json!({})),
        (json!({"extra_special_tokens": list, "additional_special_tokens": ["<x>"]}), json!({})),
        (json!({"im_start_token": "<|im_start|>", "im_end_token": "<|im_end|>"}), json!({})),
        (json!({}), json!({"additional_special_tokens": list})),
    ] {
        let mut files = spaced();
        files.tokenizer_config["chat_template"] = json!(template);
        for (name, value) in config.as_object().unwrap() {
            files.tokenizer_config[name] = value.clone();
        }
        files.special_tokens_map = map.clone();
        let encoder = Encoder::new(&files, &text(Template::Chat)).unwrap();
        let ids = encoder.prompt(&Prompt::user("a dog"), 9).unwrap().ids;
        assert_eq!((ids.as_slice(), encoder.vocabulary()), (&[6, 2, 3, 7][..], 8), "{config} {map}");
    }
}

#[test]
fn the_older_map_of_special_tokens_counts_before_an_older_config() {
    let mut files = spaced();
    files.tokenizer_config["sep_token"] = json!("a");
    files.special_tokens_map = json!({"sep_token": "dog"});
    assert_eq!(files.token("sep_token"), Some("dog"));
    files.tokenizer_config["added_tokens_decoder"] = json!({});
    assert_eq!(files.token("sep_token"), Some("a"));
}

#[test]
fn tokens_that_only_added_tokens_json_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    write("tokenizer.json", &spaced().tokenizer);
    write("added_tokens.json", br#"{"</s>": 1}"#);
    ModelText::read(dir.path()).unwrap();
    write("added_tokens.json", br#"{"<|im_start|>": 6}"#);
    let error = ModelText::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("added_tokens.json") && error.contains("<|im_start|>"), "{error}");
    write("tokenizer_config.json", br#"{"added_tokens_decoder": {}}"#);
    ModelText::read(dir.path()).unwrap();
}

#[test]
fn a_tokenizer_that_breaks_the_library_is_refused_with_its_file() {
    let fixed =
        changed(&spaced(), |content| content["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}));
    let charsmap = changed(&spaced(), |content| {
        content["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    });
    for files in [fixed, charsmap] {
        let error = refusal(&files);
        assert!(error.starts_with("spaced/tokenizer.json: "), "{error}");
    }
}

#[test]
fn a_normalizer_or_a_decoder_that_grows_texts_without_end_is_refused() {
    let twice = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let long = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(2000)});
    for (part, list, value) in [
        ("normalizer", "normalizers", json!(vec![&twice; 40])),
        ("decoder", "decoders", json!(vec![&twice; 40])),
        ("normalizer", "normalizers", json!([long])),
    ] {
        let files = changed(&spaced(), |content| content[part] = json!({"type": "Sequence", list: value}));
        let error = refusal(&files);
        assert!(error.contains(part) && error.contains("times longer"), "{error}");
    }
}

#[test]
fn special_tokens_reach_templates_as_the_tokenizer_names_them() {
    let mut files = spaced();
    files.config = json!({"bos_token_id": 2});
    files.tokenizer_config["chat_template"] = json!(
        "{{ bos_token }}{{ 'a' if bos_token is defined else 'dog' }}{% for m in messages %} {{ m.content }}{% endfor %}"
    );
    let ids = |files: &ModelText| {
        Encoder::new(files, &text(Template::Chat)).unwrap().prompt(&Prompt::user("named"), 9).unwrap().ids
    };
    assert_eq!(ids(&files), [3, 4], "config.json names no token for templates");
    files.tokenizer_config["bos_token"] = json!({"content": "</s>"});
    assert_eq!(ids(&files), [1, 2, 4]);
}

#[test]
fn several_templates_without_a_default_are_refused_by_name() {
    let mut files = spaced();
    files.tokenizer_config["chat_template"] = json!([{"name": "tool_use", "template": "{{ 1 }}"}]);
    let error = Encoder::new(&files, &text(Template::Auto)).err().unwrap().to_string();
    assert!(error.contains("tool_use") && error.contains("none is named default"), "{error}");
    Encoder::new(&files, &text(Template::Plain)).unwrap();
}
