//! Files as they occur in practice.

use super::*;

const ROW: &str = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;

fn row(prompt: &str) -> String {
    ROW.replace('q', prompt)
}

fn prompts_of(bytes: &[u8]) -> (Vec<String>, Vec<(u64, String)>) {
    let parsed = parse::<PairRow>("x", bytes).unwrap();
    let prompts = parsed.rows.iter().map(|row| row.prompt.last_text().to_owned()).collect();
    let line = |bad: &BadRow| match bad.place.position {
        Position::Line(line) => line,
        other => panic!("{other:?} is no line"),
    };
    (prompts, parsed.bad.into_iter().map(|bad| (line(&bad), bad.what)).collect())
}

#[test]
fn byte_order_marks_are_skipped_wherever_files_were_joined() {
    let (a, b, c) = (row("1"), row("2"), row("3"));
    let bom = "\u{feff}";
    for text in [
        format!("{bom}{a}\n{b}\n{c}\n"),
        format!("{bom}{a}\r\n{bom}{b}\r\n{bom}{bom}{c}"),
        format!("{bom}\n{a}\n{bom}\n{b}{bom}{c}{bom}"),
        format!("{a}{b} {c}"),
        format!("{a}\r{b}\r{c}"),
        format!("{bom}[{a},{bom}{b}]{bom}[{c}]\n{bom}"),
        format!("[{a}]\n[]\n[\n{b},\n{c}\n]"),
    ] {
        assert_eq!(
            prompts_of(text.as_bytes()),
            (vec!["1".into(), "2".into(), "3".into()], vec![]),
            "{text:?}"
        );
    }
    let members = [gzip(format!("{bom}{a}\n{b}").as_bytes()), gzip(format!("{bom}{c}").as_bytes())].concat();
    assert_eq!(prompts_of(&members).0.len(), 3);
}

#[test]
fn objects_over_several_lines_are_rows() {
    let pretty = |prompt: &str| {
        let value: Value = serde_json::from_str(&row(prompt)).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    };
    let text = format!("{}\n{}\n{}\n{}", pretty("1"), row("2"), pretty("3}{"), pretty("4"));
    assert_eq!(prompts_of(text.as_bytes()).0, ["1", "2", "3}{", "4"]);
    // A truncated row does not affect others.
    let text = format!("{{\"prompt\": [\n{}\n{{\"prompt\": \"x\",\n  \"cho\n{}\n", row("1"), row("2"));
    let (prompts, bad) = prompts_of(text.as_bytes());
    let lines: Vec<u64> = bad.iter().map(|(line, _)| *line).collect();
    assert_eq!((prompts, lines), (vec!["1".to_owned(), "2".to_owned()], vec![1, 3, 4]));
}

#[test]
fn faults_of_json_are_named() {
    for (text, what) in [
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b",}"#, "trailing comma"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b", "x": NaN}"#, "write null"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b", "x": -Infinity}"#, "write null"),
        (
            r#"{"prompt": "q", "chosen": "a", "rejected": "b", "prompt": "r"}"#,
            "the key \"prompt\" occurs twice",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "q", "content": "r"}], "chosen": "a", "rejected": "b"}"#,
            "occurs twice",
        ),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b"} x"#, "trailing characters at column 49"),
        (
            r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": "0.5"}"#,
            "margin: found the string \"0.5\"",
        ),
        (r#"{'prompt': 'q'}"#, "key must be a string"),
        (r#"{"prompt": "q", "chosen": "\udc00", "rejected": "b"}"#, "surrogate"),
    ] {
        let found = fault::<PairRow>(text);
        assert!(found.contains(what), "{text}\n{found}");
    }
    let missing = parse::<PairRow>("x", format!("[{ROW},,{},]", row("p")).as_bytes()).unwrap();
    assert_eq!((missing.rows.len(), missing.bad_rows), (2, 2), "{:?}", missing.bad);
    // A surrogate pair of escapes is one character, and Unicode's line separators do not end a line.
    let text =
        "{\"prompt\": \"\\ud83d\\ude00 \u{2028}\u{85}x\", \"chosen\": \"a\u{2029}b\", \"rejected\": \"b\"}";
    let parsed = parse::<PairRow>("x", text.as_bytes()).unwrap();
    assert_eq!(only(&parsed).prompt, Prompt::user("\u{1f600} \u{2028}\u{85}x"));
}

#[test]
fn a_record_is_bounded() {
    let long = format!("{{\"prompt\": \"{}\"}}", "x".repeat(records::RECORD_LIMIT));
    let many = format!("{{\"prompt\": \"q\", \"x\": [{}0]}}", "0,".repeat(200_000));
    let deep = format!("{{\"prompt\": \"q\", \"x\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    // Commas within texts do not count as values.
    let commas = format!("{{\"prompt\": \"{}\"}}", ",".repeat(300_000));
    for (text, what) in
        [(long, "longer than 8 MiB"), (many, "more than 200000 values"), (deep, "recursion limit exceeded")]
    {
        let neighbour = r#"{"prompt": "next"}"#;
        for file in [format!("{text}\n{neighbour}"), format!("[{text},\n{neighbour}]")] {
            let parsed = parse::<PromptRow>("x", file.as_bytes()).unwrap();
            assert_eq!((parsed.rows.len(), parsed.bad_rows), (1, 1), "{what}");
            assert!(parsed.bad[0].what.contains(what), "{}", parsed.bad[0]);
        }
    }
    assert_eq!(parse::<PromptRow>("x", commas.as_bytes()).unwrap().rows.len(), 1);
}

#[test]
fn files_of_other_kinds_are_named() {
    for (file, text, what) in [
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("a.jsonl", "\n<!DOCTYPE html>", "a web page"),
        ("a.csv", "id,text_a\na,b\n", "a table whose first line names no column"),
    ] {
        let error = parse::<PairRow>(file, text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{file}: ")) && error.contains(what), "{error}");
    }
}

#[test]
fn brackets_alone_are_read_in_linear_time() {
    let started = std::time::Instant::now();
    for text in [
        format!("[{}{}", "{".repeat(2_000_000), "]".repeat(2_000_000)),
        format!("[{}", "{]".repeat(2_000_000)),
        "{\n".repeat(200_000),
        format!("{{\n{}", "x\n".repeat(200_000)),
        format!("[{}", "] \n".repeat(200_000)),
    ] {
        let _ = parse::<PromptRow>("x", text.as_bytes());
    }
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn rows_of_all_sets_are_charged_to_one_budget() {
    let text: String = (0..100).map(|n| format!("{{\"prompt\": \"{n}\"}}\n")).collect();
    let mut budget = Budget::of(50_000);
    parse_files::<PromptRow>([("a", memory(&text))], &mut budget).unwrap();
    let error = parse_files::<PromptRow>([("b", memory(&text))], &mut budget).unwrap_err();
    assert!(matches!(error, ParseError::TooLarge { .. }) && error.to_string().starts_with("b:"), "{error}");
    // Duplicates are not kept, and cost nothing.
    let same = "{\"prompt\": \"q\"}\n".repeat(1000);
    parse_files::<PromptRow>([("c", memory(&same))], &mut Budget::of(50_000)).unwrap();
}

#[test]
fn every_row_knows_where_it_was_read() {
    let first = format!("{}\n\n{}", row("1"), row("2"));
    let second = format!("[{},\n{}]", row("1"), row("3"));
    let files = [("a.jsonl", memory(&first)), ("b.json", memory(&second))];
    let parsed = parse_files::<PairRow>(files, &mut Budget::default()).unwrap();
    let places: Vec<String> = parsed.rows.ids().map(|id| parsed.places.of(id).unwrap().to_string()).collect();
    assert_eq!(places, ["a.jsonl:1", "a.jsonl:3", "b.json:2: [1]"]);
    assert_eq!(parsed.places.of(0), None);
}

#[test]
fn a_file_that_cannot_be_read_is_no_broken_archive() {
    // A directory can be opened but not read.
    let folder = std::fs::File::open(std::env::temp_dir()).unwrap();
    let error =
        parse_files::<PromptRow>([("x", folder.into())], &mut Budget::default()).unwrap_err().to_string();
    assert!(error.contains("cannot be read") && !error.contains("broken"), "{error}");
}
