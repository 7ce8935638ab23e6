//! Columns whose names differ from Foil's, and several sources.

use super::packed::fixture;
use super::*;
use std::collections::BTreeMap;

fn names(pairs: &[(&str, &str)]) -> ColumnNames {
    let columns: BTreeMap<_, _> =
        pairs.iter().map(|(own, theirs)| ((*own).into(), (*theirs).into())).collect();
    ColumnNames::new(&columns)
}

fn read<T: Wanted>(file: &str, bytes: &[u8], names: &ColumnNames) -> Result<Parsed<Vec<T>>, ParseError> {
    let source = SourceFiles { files: vec![(file, memory(bytes))], names };
    Ok(parse_sources([source], &mut Budget::default(), &mut Everything)?.in_memory()?)
}

#[test]
fn renamed_columns_are_read_in_every_format() {
    let renames =
        names(&[("prompt", "q"), ("chosen", "good"), ("rejected", "rejected"), ("margin", "by how much")]);
    let lines = concat!(
        r#"{"q": "why?", "good": "so", "rejected": "no", "prompt": "another", "by how much": 2, "chosen": 7}"#,
        "\n",
        r#"{"q": "who?", "good": "me", "rejected": "you"}"#,
    );
    let array = format!("[{}]", lines.replace('\n', ",\n"));
    let table = "q,good,prompt,rejected,by how much,chosen\nwhy?,so,another,no,2,7\nwho?,me,,you,,\n";
    for (file, text) in [("x.jsonl", lines), ("x.json", array.as_str()), ("x.csv", table)] {
        let parsed = read::<PairRow>(file, text.as_bytes(), &renames).unwrap();
        assert_eq!((parsed.rows.len(), parsed.bad_rows), (2, 0), "{file}: {:?}", parsed.bad);
        let row = &parsed.rows[0];
        assert_eq!(
            (row.prompt.last_text(), row.chosen.as_str(), row.margin),
            ("why?", "so", Some(2.0)),
            "{file}"
        );
        // Columns that are replaced by others are listed as ignored.
        let ignored: Vec<_> = parsed.ignored.keys().map(String::as_str).collect();
        assert_eq!(ignored, ["chosen", "prompt"], "{file}");
    }
    let swapped = names(&[("chosen", "rejected"), ("rejected", "chosen")]);
    for file in ["orca.parquet", "orca.csv"] {
        let plain = parse::<PairRow>(file, &fixture(file)).unwrap();
        let parsed = read::<PairRow>(file, &fixture(file), &swapped).unwrap();
        assert_eq!(parsed.rows.len(), plain.rows.len());
        for (row, plain) in parsed.rows.iter().zip(&plain.rows) {
            assert_eq!(
                (&row.chosen, &row.rejected, &row.prompt),
                (&plain.rejected, &plain.chosen, &plain.prompt)
            );
        }
    }
}

#[test]
fn a_missing_column_is_told_with_those_that_there_are() {
    let renames = names(&[("prompt", "questoin")]);
    let lines = "{\"question\": \"q\", \"golden\": \"a\"}\n{\"other\": 1}\n";
    for (file, bytes, has) in [
        ("x.jsonl", lines.as_bytes().to_vec(), "golden, other, question"),
        ("x.csv", b"question,golden\nq,a\n".to_vec(), "question, golden"),
        ("orca.parquet", fixture("orca.parquet"), "question"),
    ] {
        let error = read::<GoldenRow>(file, &bytes, &renames).unwrap_err().to_string();
        let start =
            format!("{file}: has no column questoin, which `columns` gives for prompt; its columns are ");
        assert!(error.starts_with(&start) && error.contains(has), "{error}");
    }
    let many: String = (0..500).map(|n| format!("\"{n}{}\": 1, ", "x".repeat(500))).collect();
    let error = read::<GoldenRow>("x", format!("{{{many} \"a\": 1}}").as_bytes(), &renames).unwrap_err();
    assert!(error.to_string().len() < 8000, "{}", error.to_string().len());
}

#[test]
fn what_sources_give_is_counted_for_each() {
    let none = ColumnNames::default();
    let renamed = names(&[("golden", "gold")]);
    let file = |text: &str| memory(text.as_bytes());
    let one =
        "{\"prompt\": \"a\", \"golden\": \"1\"}\n{\"prompt\": \"a\", \"golden\": \"1\"}\n{\"prompt\": 7}\n";
    let two = "{\"prompt\": \"a\", \"gold\": \"1\"}\n{\"prompt\": \"b\", \"gold\": [\"2\", \"3\"]}\n";
    let sources = [
        SourceFiles {
            files: vec![("one", file(one)), ("more", file("{\"prompt\": \"c\", \"golden\": \"4\"}"))],
            names: &none,
        },
        SourceFiles { files: vec![("two", file(two))], names: &renamed },
    ];
    let parsed = parse_sources::<GoldenRow>(sources, &mut Budget::default(), &mut Everything).unwrap();
    let parsed = parsed.in_memory().unwrap();
    let skipped = |duplicates, spare_answers| Skipped { duplicates, spare_answers, ..Skipped::default() };
    let source = |first: &str, files, bad_rows, skipped, admitted| ReadSource {
        first_file: first.into(),
        files,
        bad_rows,
        skipped,
        admitted,
    };
    assert_eq!(
        parsed.sources,
        [source("one", 2, 1, skipped(1, 0), 2), source("two", 1, 0, skipped(1, 1), 1)]
    );
    let from: Vec<_> =
        parsed.rows.iter().map(|row| (row.golden.as_str(), parsed.places.source(row.id))).collect();
    assert_eq!(from, [("1", Some(0)), ("4", Some(0)), ("2", Some(1))]);
    assert_eq!(parsed.places.source(1), None);
}
