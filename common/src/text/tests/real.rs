use super::*;
use proptest::prelude::*;

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
    let encoded = encoder.dialogue(&prompt, Response::finished("Once upon a time, Zoë ran."), WIDE).unwrap();
    assert!(encoded.ids.starts_with(&ids));
    assert_eq!((encoded.ids.last(), encoded.eos), (Some(&2), true));
    assert_eq!(encoder.response_text(encoded.response()).unwrap(), "Once upon a time, Zoë ran.");
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
        .dialogue(&Prompt::user("Once upon a time"), Response::finished(", there was a little girl"), WIDE)
        .unwrap();
    assert_eq!(encoded.response()[..6], [432, 383, 286, 261, 376, 298]);
}

#[test]
fn a_stream_gives_the_text_of_all_its_tokens() {
    let Some(files) = stories() else { return };
    let encoder = Encoder::new(&files, &text(Template::Plain)).unwrap();
    let story = "Once Zoë found — a 🐈 here.";
    let ids = encoder.prompt(&Prompt::user(story), 100).unwrap().ids;
    // A stream continues from a prompt, so the space before its first word belongs to it.
    let story = format!(" {story}");
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
    fn responses_come_back_from_their_tokens(
        question in "[a-zA-Z ,.é🐈]{1,40}", response in "[a-zA-Zé🐈!]{1,10}( [a-zA-Zé,.🐈]{1,8}){0,5}", budget in 1usize..60
    ) {
        let Some(files) = stories() else { return Ok(()) };
        let encoder = Encoder::new(&files, &text(Template::Hh)).unwrap();
        let prompt = Prompt::user(question);
        let whole = encoder.dialogue(&prompt, Response::finished(&response), WIDE).unwrap();
        prop_assert_eq!(encoder.response_text(whole.response()).unwrap(), response.clone());
        let limits = Limits::of(20, budget);
        let cut = encoder.dialogue(&prompt, Response::finished(&response), limits).unwrap();
        prop_assert!(cut.ids.len() <= 20 + budget);
        prop_assert_eq!(cut.ids[0], 1);
        prop_assert_eq!(cut.response(), &whole.response()[..cut.response().len()]);
        prop_assert_eq!(cut.eos, cut.response().last() == Some(&2));
        prop_assert_eq!(cut.response_cut, whole.response().len() - cut.response().len());
        let asked = encoder.prompt(&prompt, 20).unwrap();
        prop_assert_eq!(&cut.ids[..cut.response_start], &asked.ids[..]);
    }
}
