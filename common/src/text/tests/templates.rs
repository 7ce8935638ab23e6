use super::*;

#[test]
fn chat_templates_render_as_in_python() {
    let encoder = Encoder::new(&chat(CHATML), &text(Template::Chat)).unwrap();
    let prompt =
        Prompt { messages: vec![Message::new(Role::System, " hi"), Message::new(Role::User, "there you ")] };
    let encoded = encoder.dialogue(&prompt, Response::finished("yes"), WIDE).unwrap();
    assert_eq!(encoded.ids, [2, 6, 10, 7, 3, 10, 2, 4, 10, 8, 11, 9, 3, 10, 2, 5, 10, 12, 3]);
    assert_eq!((encoded.response_start, encoded.eos), (17, true));
    assert!(encoder.warnings().is_empty());
    assert_eq!(encoder.eos_ids(), [3, 1]);
    // A response that ended with the model's other end token keeps it.
    let sampled = Response::Tokens { ids: &[12, 1], finished: true };
    assert_eq!(encoder.dialogue(&prompt, sampled, WIDE).unwrap().response(), [12, 1]);
}

#[test]
fn a_template_may_put_text_before_responses() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}\n\
        {% else %}yes\n{{ m.content }}<end>{% endif %}{% endfor %}";
    let encoder = Encoder::new(&chat(template), &text(Template::Chat)).unwrap();
    let encoded = encoder.dialogue(&Prompt::user("hi"), Response::finished("you"), WIDE).unwrap();
    // `trim_blocks` eats the newline after the block, not the one in the text.
    assert_eq!(encoder.decode(&encoded.ids).unwrap(), "hi\nyes\nyou");
    assert_eq!(encoder.response_text(encoded.response()).unwrap(), "you");
}

#[test]
fn templates_that_rewrite_the_prompt_are_refused_with_the_text_shown() {
    let rewriting = "{{ messages | length }}{{ messages[-1].content }}";
    let error = Encoder::new(&chat(rewriting), &text(Template::Chat)).err().unwrap();
    assert!(matches!(&error, TextError::File { what, .. } if what.contains("only appends")), "{error}");
    // Only some rows show it: the response's text is changed.
    let changing = "{% for m in messages %}{{ m.content | replace('you', 'there') }}{{ ' ' if m.role == 'user' else '' }}{% endfor %}";
    let encoder = Encoder::new(&chat(changing), &text(Template::Chat)).unwrap();
    encoder.dialogue(&Prompt::user("hi"), Response::finished("yes"), WIDE).unwrap();
    let error = encoder.dialogue(&Prompt::user("hi"), Response::finished("you"), WIDE).unwrap_err();
    assert!(error.to_string().contains("hi there"), "{error}");
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
fn text_of_the_template_before_eos_belongs_to_the_response() {
    let template = "{% for m in messages %}{{ m.content }}{{ ' <end>' if m.role == 'assistant' else '\\n' }}{% endfor %}";
    let encoder = Encoder::new(&chat(template), &text(Template::Chat)).unwrap();
    let finished = encoder.dialogue(&Prompt::user("hi"), Response::finished("you"), WIDE).unwrap();
    assert_eq!(finished.response(), [9, 11, 3]);
    assert_eq!(encoder.response_text(finished.response()).unwrap(), "you");
    let open = Response::Text { text: "you", finished: false };
    assert_eq!(encoder.dialogue(&Prompt::user("hi"), open, WIDE).unwrap().response(), [9]);
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
fn a_broken_template_is_blamed_on_its_file_and_not_on_a_row() {
    let error =
        |template: &str| Encoder::new(&chat(template), &text(Template::Chat)).err().unwrap().to_string();
    for template in ["{{ messages[0].nothing.at_all }}", "{{ messages | map('nope') | list }}"] {
        let error = error(template);
        assert!(error.starts_with("chat/tokenizer_config.json: ") && !error.contains("def"), "{error}");
    }
    let job = Template::Jinja("{% if %}".to_owned());
    let error = Encoder::new(&chat(""), &text(job)).err().unwrap().to_string();
    assert!(error.starts_with("text.template: "), "{error}");
}

#[test]
fn a_template_that_wants_a_system_turn_is_read_with_one() {
    let template = "{{ messages[0].content if messages[0].role == 'system' else raise_exception('no system turn') }}\
        {% for m in messages[1:] %} {{ m.content }}{% endfor %}";
    let encoder = Encoder::new(&chat(template), &text(Template::Chat)).unwrap();
    let prompt = Prompt { messages: vec![Message::new(Role::System, "hi"), Message::new(Role::User, "you")] };
    assert_eq!(encoder.dialogue(&prompt, Response::finished("yes"), WIDE).unwrap().response(), [11, 12, 3]);
    assert!(encoder.prompt(&Prompt::user("hi"), 9).unwrap_err().to_string().contains("no system turn"));
}

#[test]
fn templates_see_no_tools_and_no_documents_as_none() {
    let template = "{% if tools is none and documents is none %}hi{% endif %}{% for m in messages %} {{ m.content }}{% endfor %}";
    let encoder = Encoder::new(&chat(template), &text(Template::Chat)).unwrap();
    assert_eq!(encoder.prompt(&Prompt::user("you"), 9).unwrap().ids, [7, 11, 9]);
}
