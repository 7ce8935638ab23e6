use super::*;

#[test]
fn bos_is_never_doubled() {
    for (bos, count) in [(Bos::Auto, 1), (Bos::Always, 1), (Bos::Never, 0)] {
        let settings = Text { bos, ..text(Template::Auto) };
        let ids =
            Encoder::new(&letters(), &settings).unwrap().prompt(&Prompt::user("abcde"), 20).unwrap().ids;
        assert_eq!(ids.iter().filter(|&&id| id == 1).count(), count, "{bos:?}");
    }
    // The config says that the tokenizer adds no BOS; `always` overrides it.
    for (bos, first) in [(Bos::Auto, 4), (Bos::Always, 1)] {
        let settings = Text { bos, ..text(Template::Plain) };
        assert_eq!(
            Encoder::new(&letters(), &settings).unwrap().prompt(&Prompt::user("a"), 9).unwrap().ids[0],
            first
        );
    }
}

#[test]
fn an_ending_that_is_not_eos_is_warned_of() {
    let settings = Text { eos_token: Some("<eos>".to_owned()), ..text(Template::Chat) };
    let warnings = Encoder::new(&chat(CHATML), &settings).unwrap().warnings();
    assert!(warnings[0].contains("\"<end>\"") && warnings[0].contains("\"<eos>\""), "{warnings:?}");
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
    // Without an own pad token and an unknown token that never occurs, the pad token is the special token
    // that nothing writes.
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
fn an_unknown_token_is_told_by_the_file_that_names_it() {
    for file in ["config.json", "generation_config.json"] {
        let mut files = letters();
        let named = if file == "config.json" { &mut files.config } else { &mut files.generation_config };
        *named = json!({ "eos_token_id": [3, 99] });
        let error = Encoder::new(&files, &text(Template::Hh)).err().unwrap().to_string();
        assert!(error.contains(&format!("{file}: ")) && error.contains("99"), "{file}: {error}");
    }
}

#[test]
fn a_template_that_git_lfs_did_not_fetch_is_no_template() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), &letters().tokenizer).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    std::fs::write(dir.path().join("chat_template.jinja"), pointer).unwrap();
    let error = ModelText::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja") && error.contains("git lfs pull"), "{error}");
}
