//! Dialogues in one text, as they occur in practice.

use super::*;
use serde_json::json;

fn prompt(text: &str) -> Result<Prompt, String> {
    let parsed = parse::<PromptRow>("p", json!({ "prompt": text }).to_string().as_bytes()).unwrap();
    match parsed.bad.first() {
        Some(bad) => Err(bad.what.clone()),
        None => Ok(parsed.rows[0].prompt.clone()),
    }
}

fn pair(chosen: &str, rejected: &str) -> Parsed<Vec<PairRow>> {
    pairs(&json!({ "chosen": chosen, "rejected": rejected }).to_string())
}

#[test]
fn turns_are_separated_whatever_the_line_ends() {
    let expected = turns(&[(User, "a"), (Assistant, "b"), (User, "c\nd")]);
    for text in [
        "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\nd\n\nAssistant:",
        "\r\n\r\nHuman: a\r\n\r\nAssistant: b\r\n\r\nHuman: c\r\nd\r\n\r\nAssistant:",
        "Human: a\nAssistant: b\nHuman: c\nd\nAssistant:",
        "Human: a\r\nAssistant: b\r\nHuman: c\r\nd\r\nAssistant: ",
        "\n\n\n\nHuman: a\n\n\n\nAssistant: b\n \nHuman: c\nd\n\t\nAssistant:\n",
        "## Human:\na\n## Assistant:\nb\n\n## Human:\nc\nd\n## Assistant:",
        "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\nd",
    ] {
        assert_eq!(prompt(text).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn a_heading_within_a_line_or_of_the_same_speaker_is_text() {
    let expected = turns(&[(User, "say Human: x\nHuman: y"), (Assistant, "b\nAssistant: c"), (User, "d")]);
    let text = "\n\nHuman: say Human: x\nHuman: y\n\nAssistant: b\nAssistant: c\n\nHuman: d\n\nAssistant:";
    assert_eq!(prompt(text).unwrap(), expected);
}

#[test]
fn headings_of_mixed_spacing_are_refused() {
    let fault = prompt("\n\nHuman: a\nAssistant: b\n\nHuman: c\n\nAssistant:").unwrap_err();
    assert!(fault.contains("other speaker's heading"), "{fault}");
}

#[test]
fn text_before_the_first_turn_is_a_system_turn_if_the_form_is_certain() {
    let expected = turns(&[(System, "Be kind."), (User, "a")]);
    assert_eq!(prompt("Be kind.\n\nHuman: a\n\nAssistant:").unwrap(), expected);
    let quoting = "What is wrong here?\n\nHuman: a\n\nAssistant: b";
    assert_eq!(prompt(quoting).unwrap(), Prompt::user(quoting));
    let row = only(&pair("Be kind.\n\nHuman: a\n\nAssistant: x", "Be kind.\n\nHuman: a\n\nAssistant: y"));
    assert_eq!((row.prompt, row.chosen.as_str(), row.rejected.as_str()), (expected, "x", "y"));
}

#[test]
fn whole_dialogues_are_compared_whatever_the_line_ends() {
    for end in ["\n\n", "\r\n\r\n", "\n", "\r\n"] {
        let text =
            |answer: &str| format!("{end}Human: a{end}Assistant: b{end}Human: c{end}Assistant: {answer}");
        let row = only(&pair(&text("yes"), &text("no")));
        assert_eq!(row.prompt, turns(&[(User, "a"), (Assistant, "b"), (User, "c")]), "{end:?}");
        assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("yes", "no"));
    }
    let mixed = pair("\r\n\r\nHuman: a\r\n\r\nAssistant: yes", "\n\nHuman: a\n\nAssistant: no");
    assert_eq!(only(&mixed).prompt, Prompt::user("a"));
}

#[test]
fn a_response_has_no_further_turns() {
    let parsed = pair(
        "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "\n\nHuman: a\n\nAssistant: other\n\nHuman: e\n\nAssistant: f",
    );
    assert!(
        parsed.bad[0].what.starts_with("chosen: the response continues with another turn"),
        "{:?}",
        parsed.bad
    );
    // Frequent in HH: the heading again, on the line of the response.
    let row = only(&pair("\n\nHuman: a\n\nAssistant: Human: b", "\n\nHuman: a\n\nAssistant: Assistant: c"));
    assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("Human: b", "Assistant: c"));
    let text = |answer: &str| format!("\n\nHuman: a\n\nAssistant: {answer}\n\nAssistant: more");
    assert_eq!(only(&pair(&text("b"), &text("c"))).chosen, "b\n\nAssistant: more");
    let row = only(&pairs(
        r#"{"prompt": "\r\n\r\nHuman: a", "chosen": "\r\n\r\nAssistant: x\r\ny", "rejected": "\r\n\r\nAssistant: z"}"#,
    ));
    assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("x\ny", "z"));
}
