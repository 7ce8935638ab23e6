use std::fmt::Debug;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::*;
use crate::data::parse::parse;
use crate::data::rows::{Message, Prompt, Role};

/// Texts with everything that is hard for formats: quotes, separators, line ends, other scripts.
fn text(rng: &mut impl Rng) -> String {
    let parts = ["a", "\"", ",", "\t", "x\ny", "ü", "你好", "\\", "'", "{", "7", "true", "<b>", "é "];
    let inner: String = (0..rng.random_range(1..6)).map(|_| *parts.choose(rng).unwrap()).collect();
    format!("w{inner}w{}", rng.random_range(0..1_000_000))
}

fn prompt(rng: &mut impl Rng) -> Prompt {
    let mut messages = Vec::new();
    if rng.random_bool(0.3) {
        messages.push(Message::new(Role::System, text(rng)));
    }
    for _ in 0..rng.random_range(0..3) {
        messages.push(Message::new(Role::User, text(rng)));
        messages.push(Message::new(Role::Assistant, text(rng)));
    }
    messages.push(Message::new(Role::User, text(rng)));
    Prompt { messages }
}

fn records(set: SetKind, rng: &mut impl Rng) -> Vec<Value> {
    let record = |number: usize| {
        let messages: Vec<Value> = prompt(rng)
            .messages
            .iter()
            .map(|message| json!({ "role": message.role.as_str(), "content": message.content }))
            .collect();
        let mut record = json!({ "prompt": messages });
        match set {
            SetKind::Preferences => {
                (record["chosen"], record["rejected"]) = (json!(text(rng)), json!(text(rng)));
                if number.is_multiple_of(2) {
                    record["margin"] = json!(rng.random_range(1..9) as f64 / 4.0);
                }
            }
            SetKind::Golden => record["golden"] = json!(text(rng)),
            SetKind::Sft => record["answer"] = json!(text(rng)),
            SetKind::Prompts => {}
        }
        record
    };
    (0..40).map(record).collect()
}

fn lines(records: &[Value]) -> Vec<u8> {
    records.iter().map(|record| format!("{record}\n")).collect::<String>().into_bytes()
}

fn conversion(file: &str, bytes: Vec<u8>, shape: Option<Shape>, set: Option<SetKind>) -> Conversion {
    let content = Content::from(bytes::Bytes::from(bytes));
    Conversion {
        files: vec![(file.to_owned(), content)],
        names: ColumnNames::default(),
        shape,
        set,
        max_bad_fraction: 0.0,
    }
}

/// The rows of a file without ids, in order.
fn read(set: SetKind, name: &str, bytes: &[u8]) -> Vec<AnyRow> {
    fn rows<T: Wanted + Debug>(name: &str, bytes: &[u8]) -> Vec<Value> {
        let parsed = parse::<T>(name, bytes).unwrap();
        assert_eq!(parsed.bad_rows, 0, "{name}: {:?}", parsed.bad);
        parsed.rows.iter().map(|row| serde_json::to_value(row).unwrap()).collect()
    }
    let values = match set {
        SetKind::Preferences => rows::<PairRow>(name, bytes),
        SetKind::Golden => rows::<GoldenRow>(name, bytes),
        SetKind::Sft => rows::<DemonstrationRow>(name, bytes),
        SetKind::Prompts => rows::<PromptRow>(name, bytes),
    };
    let row = |value: &Value| {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        AnyRow {
            prompt: serde_json::from_value(value["prompt"].clone()).unwrap(),
            answers: match set {
                SetKind::Preferences => Answers::Pair {
                    chosen: text("chosen"),
                    rejected: text("rejected"),
                    margin: value["margin"].as_f64(),
                },
                SetKind::Golden => Answers::Golden(text("golden")),
                SetKind::Sft => Answers::Demonstration(text("answer")),
                SetKind::Prompts => Answers::None,
            },
        }
    };
    values.iter().map(row).collect()
}

#[test]
fn a_conversion_without_rows_names_its_files() {
    let mut empty = conversion("empty.jsonl", Vec::new(), None, None);
    let told = |empty: &Conversion| empty.for_each(&mut |_, _| Ok(())).unwrap_err().to_string();
    assert_eq!(told(&empty), "empty.jsonl: no row is left to write, of 0 read");
    empty.files.push(empty.files[0].clone());
    assert!(told(&empty).starts_with("empty.jsonl and 1 more: "), "{}", told(&empty));
}

#[test]
fn every_shape_in_every_format_gives_the_rows_back() {
    let dir = tempfile::tempdir().unwrap();
    let seed: u64 = rand::rng().random();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let names = ["x.jsonl", "x.json.gz", "x.csv", "x.tsv.zst", "x.parquet", "x.arrow"];
    for (_, set) in SetKind::ALL {
        let bytes = lines(&records(set, &mut rng));
        let wanted = read(set, "in.jsonl", &bytes);
        for (shape_name, shape) in Shape::ALL {
            for name in names {
                let context = format!("seed {seed}, {shape_name}, {}, {name}", set.name());
                let path = dir.path().join(name);
                let written =
                    conversion("in.jsonl", bytes.clone(), Some(shape), Some(set)).write(&path, true);
                let holds_pairs_alone = matches!(shape, Shape::Hh | Shape::Dsp | Shape::Apo);
                let is_held = match set {
                    SetKind::Preferences => true,
                    SetKind::Golden | SetKind::Sft => !holds_pairs_alone,
                    SetKind::Prompts => !holds_pairs_alone && shape != Shape::Kto,
                };
                if !is_held {
                    let error = written.unwrap_err().to_string();
                    assert!(error.contains(&format!("the shape {shape_name} holds ")), "{context}: {error}");
                    continue;
                }
                let is_flat = matches!(shape, Shape::Trl | Shape::Kto | Shape::Hh);
                if !is_flat && (name.contains("csv") || name.contains("tsv")) {
                    let error = written.map(|_| String::new()).unwrap_or_else(|error| error.to_string());
                    assert!(error.is_empty() || error.contains("which"), "{context}: {error}");
                    continue;
                }
                let (_, report) = written.unwrap_or_else(|error| panic!("{context}: {error}"));
                let bytes = fs::read(&path).unwrap();
                if (shape, set) == (Shape::Kto, SetKind::Preferences) {
                    assert_eq!(report.written, 80, "{context}");
                    let good = read(SetKind::Golden, name, &bytes);
                    let answers: Vec<_> = wanted
                        .iter()
                        .map(|row| match &row.answers {
                            Answers::Pair { chosen, .. } => Answers::Golden(chosen.clone()),
                            other => other.clone(),
                        })
                        .collect();
                    assert_eq!(
                        good.into_iter().map(|row| row.answers).collect::<Vec<_>>(),
                        answers,
                        "{context}"
                    );
                    continue;
                }
                assert_eq!(report.written, 40, "{context}");
                let found = read(set, name, &bytes);
                assert_eq!(found.len(), wanted.len(), "{context}");
                for (found, wanted) in found.iter().zip(&wanted) {
                    assert!(found.is(wanted), "{context}\n{found:?}\n{wanted:?}");
                }
            }
        }
    }
}

#[test]
fn without_a_shape_every_column_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        json!({ "id": 1, "prompt": "q", "meta": { "tags": ["a", "b"], "score": 1 }, "flag": true, "none": null }),
        json!({ "id": 2, "prompt": "p", "meta": { "tags": [], "score": 0.5 }, "flag": null, "none": null }),
        json!({ "id": 3, "prompt": "r", "meta": null, "flag": false, "none": null, "late": "x" }),
    ];
    let mut bytes = lines(&rows);
    let mut last = "in.jsonl".to_owned();
    for name in ["a.parquet", "b.arrow", "c.json.zst", "d.jsonl.gz"] {
        let path = dir.path().join(name);
        conversion(&last, bytes, None, None).write(&path, false).unwrap();
        bytes = fs::read(&path).unwrap();
        last = name.to_owned();
    }
    let mut stream = RecordStream::open(
        &last,
        &Content::from(bytes::Bytes::from(bytes)),
        &ColumnNames::default().with_all(),
    )
    .unwrap();
    for row in rows {
        let found = stream.next_record().unwrap().unwrap().value.unwrap();
        // In a table, a column that a row lacks is null, and so is every field of a missing object.
        for (name, value) in row.as_object().unwrap() {
            let same = match (&found[name], value) {
                (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
                (Value::Object(one), Value::Object(other)) => {
                    one["tags"] == other["tags"] && one["score"].as_f64() == other["score"].as_f64()
                }
                (one, other) => one == other,
            };
            assert!(same, "{name}: {} and {value}", found[name]);
        }
    }
    assert!(stream.next_record().unwrap().is_none());
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.jsonl");
    let good = conversion("in", b"{\"prompt\":\"q\"}\n".to_vec(), None, None);
    good.write(&path, false).unwrap();
    let before = fs::read(&path).unwrap();
    let error = good.write(&path, false).unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    let broken = conversion("in", b"{\"prompt\":\"p\"}\n{\"prompt\":\n".to_vec(), None, None);
    let error = broken.write(&path, true).unwrap_err().to_string();
    assert!(error.contains("1 of 2 rows") && error.contains("in:2"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    let lenient = Conversion { max_bad_fraction: 0.5, ..broken };
    let (_, report) = lenient.write(&path, true).unwrap();
    assert_eq!((report.read, report.written, report.bad_rows), (2, 1, 1));
    assert_eq!(fs::read(&path).unwrap(), b"{\"prompt\":\"p\"}\n");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["out.jsonl"]);
}

#[test]
fn faults_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let fault = |name: &str, text: &str, shape: Option<Shape>| {
        let written = conversion("in.jsonl", text.as_bytes().to_vec(), shape, None);
        written.write(&dir.path().join(name), false).unwrap_err().to_string()
    };
    let row = "{\"prompt\":\"q\"}\n";
    for (name, what) in [
        ("out", "does not tell a format"),
        ("out.txt", ".parquet"),
        ("out.parquet.gz", "not compressed as a whole"),
        ("none/out.jsonl", "No such file"),
    ] {
        let error = fault(name, row, None);
        assert!(error.contains(what) && error.contains(name), "{error}");
    }
    let mixed = fault("out.parquet", "{\"a\": {\"b\": 1}}\n{\"a\": {\"b\": [1]}}\n", None);
    assert!(
        mixed.starts_with("in.jsonl:2: a: b: a list here, and a whole number in a row before"),
        "{mixed}"
    );
    let nested = fault("out.csv", "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n", None);
    assert!(
        nested.contains("the column messages holds a list") && nested.contains("--format trl"),
        "{nested}"
    );
    let pairs = "{\"prompt\":\"\\n\\nHuman: a\",\"chosen\":\"x\",\"rejected\":\"y\"}\n";
    assert!(fault("out.jsonl", row, Some(Shape::Hh)).contains("the shape hh holds pairs alone"));
    // A user's text that looks like a dialogue would be read as one.
    let told = pairs.replace("\\n\\nHuman: a", "x");
    let told = told.replace("\"x\",\"chosen\"", "[{\"role\":\"user\",\"content\":\"Human: a\"}],\"chosen\"");
    let error = fault("out.jsonl", &told, Some(Shape::Trl));
    assert!(error.contains("is read as another one") && error.contains("conversational"), "{error}");
}

#[test]
fn the_reference_code_s_comparisons_convert_both_ways() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/formats");
    let dir = tempfile::tempdir().unwrap();
    for (file, back) in [("dsp.helpful.test.json.gz", Shape::Dsp), ("dsp.webgpt.test.json.gz", Shape::Apo)] {
        let Ok(bytes) = fs::read(shared.join(file)) else {
            eprintln!("skipped: {file} is missing");
            continue;
        };
        let wanted = parse::<PairRow>(file, &bytes).unwrap().rows;
        let there = dir.path().join(format!("{}.parquet", back.name()));
        let lenient = |bytes, shape| Conversion {
            max_bad_fraction: 0.1,
            ..conversion(file, bytes, Some(shape), Some(SetKind::Preferences))
        };
        lenient(bytes, Shape::Conversational).write(&there, false).unwrap();
        let again = dir.path().join(format!("{}.json", back.name()));
        let (_, report) = lenient(fs::read(&there).unwrap(), back).write(&again, false).unwrap();
        let found = parse::<PairRow>("x.json", &fs::read(&again).unwrap()).unwrap().rows;
        assert!(report.bad_rows * 50 <= report.read, "{file}: {:?}", report.bad);
        let trimmed = |rows: &[PairRow]| {
            let text = |row: &PairRow| (row.prompt.last_text().to_owned(), row.chosen.trim().to_owned());
            rows.iter().map(text).collect::<std::collections::HashSet<_>>()
        };
        let (found, wanted) = (trimmed(&found), trimmed(&wanted));
        assert!(
            found.is_subset(&wanted) && found.len() * 50 >= wanted.len() * 49,
            "{file}: {} of {}",
            found.len(),
            wanted.len()
        );
    }
}
