mod dialogues;
mod files;
mod formats;
mod named;
mod packed;
mod separated;
mod shapes;
mod tables;
mod trl;

use super::*;
use crate::data::rows::{DemonstrationRow, GoldenRow, Message, PairRow, Prompt, PromptRow, Role};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use std::io::Write;

fn pairs(text: &str) -> Parsed<Vec<PairRow>> {
    parse("pairs.jsonl", text.as_bytes()).unwrap()
}

fn only<T: Clone>(parsed: &Parsed<Vec<T>>) -> T {
    assert_eq!((parsed.rows.len(), parsed.bad_rows), (1, 0), "{:?}", parsed.bad);
    parsed.rows[0].clone()
}

fn fault<T: Wanted + std::fmt::Debug>(text: &str) -> String {
    let parsed = parse::<T>("rows.jsonl", text.as_bytes()).unwrap();
    assert!(parsed.rows.is_empty(), "{:?}", parsed.rows);
    assert_eq!(parsed.bad_rows, 1);
    parsed.bad[0].to_string()
}

fn turns(turns: &[(Role, &str)]) -> Prompt {
    Prompt { messages: turns.iter().map(|(role, text)| Message::new(*role, *text)).collect() }
}

fn memory(bytes: impl AsRef<[u8]>) -> Content {
    Bytes::copy_from_slice(bytes.as_ref()).into()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

use Role::{Assistant, System, User};

#[test]
fn whole_dialogues_share_their_prompt() {
    let row = only(&pairs(
        r#"{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: Well, so.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: Well, no."}"#,
    ));
    assert_eq!(row.prompt, turns(&[(User, "Hi"), (Assistant, "Hello"), (User, "How?")]));
    assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("Well, so.", "Well, no."));
}

#[test]
fn responses_that_share_part_of_a_character_are_not_split_within_it() {
    let row = only(&pairs(
        r#"{"chosen": "\n\nHuman: Hi\n\nAssistant: é", "rejected": "\n\nHuman: Hi\n\nAssistant: è"}"#,
    ));
    assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("é", "è"));
}

#[test]
fn a_prompt_string_in_dialogue_form_becomes_turns() {
    let row = only(&pairs(
        r#"{"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "chosen": " yes", "rejected": " no ", "source": "x"}"#,
    ));
    assert_eq!(row.prompt, turns(&[(User, "a"), (Assistant, "b"), (User, "c")]));
    assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("yes", "no"));
}

#[test]
fn a_plain_prompt_string_and_its_responses_are_kept_verbatim() {
    let row = only(&pairs(
        r#"{"prompt": "Once upon a time", "chosen": " there was\n", "rejected": " no", "margin": 0.5}"#,
    ));
    assert_eq!(row.prompt, Prompt::user("Once upon a time"));
    assert_eq!((row.chosen.as_str(), row.rejected.as_str()), (" there was\n", " no"));
    assert_eq!(row.margin, Some(0.5));
}

#[test]
fn message_lists_are_read_with_and_without_their_prompt() {
    let explicit = only(&pairs(
        r#"{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}"#,
    ));
    let implicit = only(&pairs(
        r#"{"chosen": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#,
    ));
    let both = only(&pairs(
        r#"{"prompt": "q", "chosen": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#,
    ));
    let sharegpt = only(&pairs(
        r#"{"system": "s", "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}"#,
    ));
    assert_eq!(explicit.prompt, turns(&[(System, "s"), (User, "q")]));
    assert_eq!((explicit.chosen.as_str(), explicit.rejected.as_str()), ("a", "b"));
    assert_eq!(explicit, implicit);
    assert_eq!(explicit, both);
    assert_eq!(explicit, sharegpt);
}

#[test]
fn scored_texts_give_a_pair_for_every_difference() {
    let parsed =
        pairs(r#"{"text": ["q<sep>a", "q<sep>b", "q<sep>c"], "scores": [1.0, 3.0, 1.0], "query_id": "7"}"#);
    let found: Vec<_> =
        parsed.rows.iter().map(|row| (row.chosen.as_str(), row.rejected.as_str(), row.margin)).collect();
    assert_eq!(found, [("b", "a", Some(2.0)), ("b", "c", Some(2.0))]);
    assert_eq!(parsed.skipped.ties, 1);
    let row = only(&pairs(
        r###"{"text": ["## Human:\nwhy?\n\n## Assistant:\nno", "## Human:\nwhy?\n\n## Assistant:\nso"], "score": [0, 1]}"###,
    ));
    assert_eq!(row.prompt, Prompt::user("why?"));
    assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("so", "no"));
}

#[test]
fn golden_answers_and_demonstrations_are_read_under_their_names() {
    let text = r#"{"prompt": "q", "golden": {"gpt4": "first", "claude": "second"}}"#;
    let parsed = parse::<GoldenRow>("g", text.as_bytes()).unwrap();
    assert_eq!(only(&parsed).golden, "first");
    assert_eq!(parsed.skipped.spare_answers, 1);
    let list = parse::<GoldenRow>("g", br#"{"prompt": "q", "golden": ["first", "second"]}"#).unwrap();
    assert_eq!(only(&list), only(&parsed));
    for name in ["answer", "completion", "response", "output", "golden"] {
        let text = format!(r#"{{"prompt": "q", "{name}": "a"}}"#);
        let row = only(&parse::<DemonstrationRow>("d", text.as_bytes()).unwrap());
        assert_eq!((row.prompt, row.answer.as_str()), (Prompt::user("q"), "a"));
    }
    let text = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    assert_eq!(only(&parse::<DemonstrationRow>("d", text.as_bytes()).unwrap()).answer, "a");
}

#[test]
fn prompts_come_from_any_record_once_each_in_order() {
    let text = concat!(
        "{\"prompt\": \"b\"}\n\n",
        "\"a\"\n",
        "{\"prompt\": \"b\", \"golden\": \"x\"}\r\n",
        "{\"chosen\": \"\\n\\nHuman: c\\n\\nAssistant: 1\", \"rejected\": \"\\n\\nHuman: c\\n\\nAssistant: 2\"}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"x\"}]}\n",
        "{\"text\": [\"d<sep>a\", \"d<sep>b\"], \"score\": [1, 2]}\n",
    );
    let parsed = parse::<PromptRow>("p", text.as_bytes()).unwrap();
    let found: Vec<_> = parsed.rows.iter().map(|row| row.prompt.last_text()).collect();
    assert_eq!(found, ["b", "a", "c", "d"]);
    assert_eq!((parsed.bad_rows, parsed.skipped.duplicates, parsed.records), (0, 2, 6));
}

#[test]
fn bad_rows_are_named_by_file_and_line_with_what_was_found() {
    let cases = [
        (r#"{"prompt": "q", "chosen": "a", "rejected": "  "}"#, "rejected: the response is empty"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": " a"}"#, "the same text"),
        (r#"{"prompt": 3, "chosen": "a", "rejected": "b"}"#, "prompt: found the number 3"),
        (r#"{"prompt": "", "chosen": "a", "rejected": "b"}"#, "prompt: the prompt's last turn is empty"),
        (
            r#"{"prompt": "q", "chosen": null, "rejected": "b"}"#,
            "an object with prompt, chosen (null), rejected",
        ),
        (r#"{"prompt": "q", "chosen": "a"}"#, "an object with prompt, chosen"),
        (r#"{"chosen": "a", "rejected": "b"}"#, "there is no prompt"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}"#, "margin: found the number -1"),
        (
            r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}"#,
            "not JSON: expected value at column",
        ),
        (r#"{"prompt": "q", "x": None}"#, "not JSON: expected value at column 22, \"None}\""),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "\ud800"}"#, "not JSON"),
        (r#"{"text": ["q<sep>a", "q<sep>b"], "score": [1e999, 1]}"#, "not JSON: number out of range"),
        (r#"{"text": ["q<sep>a"], "score": [1]}"#, "found 1 texts and 1 scores"),
        (r#"{"text": ["a", "b"], "score": [2, 1]}"#, "neither dialogues"),
        (
            r#"{"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}"#,
            "differ before",
        ),
        (
            r#"{"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"}"#,
            "must end with the user's",
        ),
        (
            r#"{"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"}"#,
            "role: found the string \"tool\"",
        ),
        (r"42", "found the number 42; a row is a JSON object"),
    ];
    for (text, what) in cases {
        let found = fault::<PairRow>(text);
        assert!(found.starts_with("rows.jsonl:1: ") && found.contains(what), "{text}\n{found}");
    }
    assert!(fault::<GoldenRow>(r#"{"prompt": "q", "golden": ""}"#).contains("golden: the response is empty"));
    assert!(fault::<GoldenRow>(r#"{"prompt": "q"}"#).contains("a prompt and its golden are expected"));
    assert!(fault::<GoldenRow>(r#"{"golden": "a"}"#).contains("no prompt"));
}

#[test]
fn a_bad_row_does_not_affect_its_neighbors() {
    let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    let lines = [good.as_bytes(), b"{\"prompt\": \"\xff\"}", b"{", b"", good.replace('q', "p").as_bytes()]
        .join(&b'\n');
    let parsed = parse::<PairRow>("x.jsonl", &lines).unwrap();
    let places: Vec<_> = parsed.bad.iter().map(|bad| bad.place.position).collect();
    assert_eq!((parsed.rows.len(), places), (2, vec![Position::Line(2), Position::Line(3)]));
    assert!(parsed.bad[0].what.contains("not UTF-8"));

    let array = format!("\u{feff}[\n  {good},\n  {{\"prompt\": [}},\n\n 7, {}\n]\n", good.replace('q', "p"));
    let parsed = parse::<PairRow>("x.json", array.as_bytes()).unwrap();
    let places: Vec<_> = parsed.bad.iter().map(|bad| bad.place.position).collect();
    let element = |line, index| Position::Element { line, index };
    assert_eq!((parsed.rows.len(), places), (2, vec![element(3, 1), element(5, 2)]));
    assert!(parsed.bad[0].to_string().starts_with("x.json:3: [1]: not JSON"));
}

#[test]
fn a_truncated_array_keeps_its_complete_rows_and_reports_the_rest() {
    let text = r#"[{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "r", "cho"#;
    let parsed = parse::<PairRow>("x.json", text.as_bytes()).unwrap();
    assert_eq!((parsed.rows.len(), parsed.bad_rows), (1, 2));
    assert!(parsed.bad[1].what.contains("no end"));
}

#[test]
fn one_object_over_several_lines_is_one_row() {
    let text = "{\n \"prompt\": \"q\",\n \"chosen\": \"a\",\n \"rejected\": \"b\"\n}\n";
    only(&pairs(text));
}

#[test]
fn files_that_are_not_json_are_refused_with_advice() {
    for bytes in [
        &b"PAR1...."[..],
        b"\xff\xfe{\0",
        b"PK\x03\x04",
        b"\x1f\x8bbroken",
        b"ARROW1\0\0",
        b"\xff\xff\xff\xff",
    ] {
        let error = parse::<PairRow>("x", bytes).unwrap_err();
        assert!(matches!(error, ParseError::Format { .. }), "{error}");
    }
    let named = br#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    assert_eq!(parse::<PairRow>("rows.csv", &named[..]).unwrap().rows.len(), 1, "its content is JSON lines");
    let cut = &gzip(br#"{"prompt": "q"}"#)[..20];
    assert!(matches!(parse::<PromptRow>("x.gz", cut), Err(ParseError::Format { .. })));
    for bytes in [&b""[..], b" \n\n", b"[]"] {
        assert!(matches!(parse::<PairRow>("x", bytes), Err(ParseError::Empty { .. })));
    }
}

#[test]
fn too_many_bad_rows_fail_with_the_first_one_shown() {
    let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    let parsed = pairs(&format!("{good}\n{}\n{{}}\n", good.replace('q', "p")));
    parsed.require("data.preferences", 0.5).unwrap();
    let error = parsed.require("data.preferences", 0.1).unwrap_err().to_string();
    assert!(error.contains("1 of 3 rows") && error.contains("pairs.jsonl:3"), "{error}");
    let many = parse::<PairRow>("x", "{}\n".repeat(100).as_bytes()).unwrap();
    assert_eq!((many.bad_rows, many.bad.len()), (100, KEPT_BAD_ROWS));
}

#[test]
fn several_files_make_one_set() {
    let a = br#"{"prompt": "q"}"#;
    let b = gzip(b"{\"prompt\": \"r\"}\n{\"prompt\": \"q\"}\n{}");
    let parsed =
        parse_files::<PromptRow>([("a", memory(&a[..])), ("b.gz", memory(b))], &mut Budget::default())
            .unwrap();
    assert_eq!((parsed.rows.len(), parsed.skipped.duplicates), (2, 1));
    assert_eq!(parsed.bad[0].to_string(), "b.gz:3: found an object without fields; a prompt is expected");
    let read = |name: &str, format: &str, records, bad_rows| ReadFile {
        name: name.to_owned(),
        format: format.to_owned(),
        records,
        bad_rows,
    };
    assert_eq!(parsed.files, [read("a", "JSON lines", 1, 0), read("b.gz", "JSON lines, gzip", 3, 1)]);
}

fn never_panics(bytes: &[u8]) {
    let _ = parse::<PairRow>("x", bytes);
    let _ = parse::<GoldenRow>("x", bytes);
    let _ = parse::<DemonstrationRow>("x", bytes);
    let _ = parse::<PromptRow>("x", bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        never_panics(&bytes);
        never_panics(&[b"[", bytes.as_slice()].concat());
    }

    #[test]
    fn any_json_like_text_gives_an_answer(
        text in "([\\[\\]{},:\"\\\\ \n]|\"prompt\"|\"chosen\"|\"rejected\"|\"golden\"|\"text\"|\"score\"|\"a\"|1|null|é|\\\\n\\\\nHuman:|\\\\n\\\\nAssistant:){0,40}"
    ) {
        never_panics(text.as_bytes());
    }

    #[test]
    fn any_two_dialogues_give_an_answer(
        first in "(\n\nHuman:|\n\nAssistant:|## Human:|\n|é| |x){0,12}",
        second in "(\n\nHuman:|\n\nAssistant:|## Human:|\n|è| |x){0,12}",
    ) {
        let record = serde_json::json!({"chosen": format!("\n\nHuman:{first}"), "rejected": format!("\n\nHuman:{second}")});
        never_panics(record.to_string().as_bytes());
    }
}

fn real_data(file: &str) -> Option<Vec<u8>> {
    crate::test_models::read(&format!("data/{file}"))
}

#[test]
fn real_preferences_parse_without_a_bad_row() {
    for (file, rows, prompts) in
        [("hh/preferences.train.jsonl.gz", 3327, 3325), ("hh/preferences.eval.jsonl.gz", 609, 609)]
    {
        let Some(bytes) = real_data(file) else { return };
        let parsed = parse::<PairRow>(file, &bytes).unwrap();
        assert_eq!((parsed.rows.len(), parsed.bad_rows), (rows, 0), "{:?}", parsed.bad);
        assert!(parsed.rows.iter().all(|row| row.prompt.messages[0].role == User));
        let found = parse::<PromptRow>(file, &bytes).unwrap();
        assert_eq!((found.rows.len(), found.bad_rows), (prompts, 0));
    }
}

#[test]
fn real_golden_answers_parse_without_a_bad_row() {
    let Some(bytes) = real_data("golden/golden.jsonl.gz") else { return };
    let plain = parse::<GoldenRow>("golden", &bytes).unwrap();
    assert_eq!((plain.rows.len(), plain.bad_rows), (634, 0));
    let Some(bytes) = real_data("golden/golden_and_samples.jsonl.gz") else { return };
    let several = parse::<GoldenRow>("golden", &bytes).unwrap();
    assert_eq!(several.rows, plain.rows);
    assert_eq!(several.skipped.spare_answers, 3 * 634);
    assert_eq!(parse::<PromptRow>("golden", &bytes).unwrap().rows.len(), 634);
}

#[test]
fn real_files_in_native_formats_parse() {
    for (file, records, rows, bad, ties, duplicates) in [
        ("formats/hh-rlhf.harmless-base.test.jsonl.gz", 2312, 2308, 4, 0, 0),
        ("formats/dsp.helpful.test.json.gz", 2352, 2348, 4, 0, 0),
        ("formats/dsp.webgpt.test.json.gz", 901, 656, 0, 245, 0),
        ("formats/llamafactory.dpo_en_demo.json.gz", 300, 295, 0, 0, 5),
    ] {
        let Some(bytes) = real_data(file) else { return };
        let parsed = parse::<PairRow>(file, &bytes).unwrap();
        let first: Vec<_> = parsed.bad.iter().map(ToString::to_string).collect();
        assert_eq!(
            (parsed.records, parsed.rows.len(), parsed.bad_rows, parsed.skipped),
            (records, rows, bad, Skipped { ties, duplicates, ..Skipped::default() }),
            "{file}: {first:#?}"
        );
    }
}
