//! CSV and TSV, compared with what pandas reads from them (scripts/fixtures/data_files.py).

use super::packed::{expected, fixture};
use super::*;

#[test]
fn tables_of_python_are_read_as_pandas_reads_them() {
    for file in ["orca.csv", "orca.tsv", "excel.csv"] {
        let found = parse::<PairRow>(file, &fixture(file)).unwrap();
        let wanted = parse::<PairRow>(file, &expected(file)).unwrap();
        assert_eq!((found.rows.len(), found.bad_rows), (9, 0), "{file}: {:?}", found.bad);
        assert_eq!(found.rows, wanted.rows, "{file}");
    }
    let found = parse::<DemonstrationRow>("gsm8k.csv.gz", &fixture("gsm8k.csv.gz")).unwrap();
    let wanted = parse::<DemonstrationRow>("x", &expected("gsm8k.csv.gz")).unwrap();
    assert_eq!((found.rows.len(), &found.rows), (6, &wanted.rows));
    // Line ends within quotes are part of the text, as are those of Windows.
    let texts: Vec<_> = parse::<PairRow>("excel.csv", &fixture("excel.csv")).unwrap().rows;
    assert!(texts.iter().any(|row| row.chosen.contains("Windows\r\nlines")));
    assert!(texts.iter().any(|row| row.chosen.contains("two\nlines")));
}

fn table(text: &str) -> Parsed<Vec<PairRow>> {
    parse("x.csv", text.as_bytes()).unwrap()
}

fn error(file: &str, text: &[u8]) -> String {
    parse::<PairRow>(file, text).unwrap_err().to_string()
}

#[test]
fn quotes_blank_lines_and_marks_are_read_as_spreadsheets_write_them() {
    for text in [
        "prompt,chosen,rejected\nq,a,b\n",
        "\u{feff}\"prompt\",\"chosen\",\"rejected\"\r\n\"q\",\"a\",\"b\"\r\n\r\n",
        "\n\nprompt,id,chosen,rejected\n\nq,7,a,b",
        "prompt,chosen,rejected\rq,a,b\r",
        "rejected, prompt ,chosen\nb,q,a\n",
    ] {
        let row = only(&table(text));
        assert_eq!(
            (row.prompt, row.chosen.as_str(), row.rejected.as_str()),
            (Prompt::user("q"), "a", "b"),
            "{text:?}"
        );
    }
    let row = only(&table("prompt,chosen,rejected\n\"say \"\"hi\"\", twice\",\" a\n\",b\n"));
    assert_eq!((row.prompt.last_text(), row.chosen.as_str()), ("say \"hi\", twice", " a\n"));
}

#[test]
fn values_are_texts_but_for_labels_and_numbers_and_an_empty_one_is_absent() {
    let parsed =
        table("prompt,chosen,rejected,margin\nq,a,b,\nq2,1,true,0.5\nq3,,b,\nq4,a,b,much\nq5,a,b,-1\n");
    let bad: Vec<_> = parsed.bad.iter().map(ToString::to_string).collect();
    let read: Vec<_> =
        parsed.rows.iter().map(|row| (row.chosen.as_str(), row.rejected.as_str(), row.margin)).collect();
    assert_eq!(read, [("a", "b", None), ("1", "true", Some(0.5))]);
    for (bad, wanted) in bad.iter().zip([
        "x.csv:4: found an object with prompt, chosen (null)",
        "x.csv:5: margin: found the string \"much\"",
        "x.csv:6: margin: found the number -1",
    ]) {
        assert!(bad.starts_with(wanted), "{bad}");
    }
    assert_eq!(bad.len(), 3);
    let scores = table("prompt,chosen,rejected,score_chosen,score_rejected\nq,a,b,7.5,5\nq2,a,b,1e1, 4\n");
    let margins: Vec<_> = scores.rows.iter().map(|row| row.margin).collect();
    assert_eq!(margins, [Some(2.5), Some(6.0)]);
    let messages = "messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"q\"\"}]\"\n";
    let found = parse::<PromptRow>("x.csv", messages.as_bytes()).unwrap();
    assert_eq!((found.rows.len(), found.bad_rows), (0, 1), "{:?}", found.rows);
}

#[test]
fn labels_are_read_as_spreadsheets_and_python_write_them() {
    let text = "prompt,completion,label\nq1,a,True\nq2,b,FALSE\nq3,c,1\nq4,d,0\nq5,e,true\nq6,f,1.0\nq7,g,\nq8,h,yes\n";
    let parsed = parse::<GoldenRow>("x.csv", text.as_bytes()).unwrap();
    let good: Vec<_> = parsed.rows.iter().map(|row| row.golden.as_str()).collect();
    assert_eq!((good.as_slice(), parsed.skipped.undesirable), (&["a", "c", "e", "f"][..], 2));
    let bad: Vec<_> = parsed.bad.iter().map(ToString::to_string).collect();
    assert!(bad[0].starts_with("x.csv:8: label: found null"), "{bad:?}");
    assert!(bad[1].starts_with("x.csv:9: label: found the string \"yes\""), "{bad:?}");
    let shp = "history,human_ref_A,human_ref_B,labels\nq,a,b,1\nq2,a,b,0\n";
    let chosen: Vec<_> = table(shp).rows.into_iter().map(|row| row.chosen).collect();
    assert_eq!(chosen, ["a", "b"]);
}

#[test]
fn a_bad_row_is_named_by_its_line() {
    let text =
        b"prompt,chosen,rejected\nq1,\"a\nb\",c\n\nq2,a\nq3,a,b,c\nq4,\xff,b\nq5,a,b\n\"q6,a,b\nq7,a,b\n";
    let parsed = parse::<PairRow>("x.csv", text).unwrap();
    let bad: Vec<_> = parsed.bad.iter().map(ToString::to_string).collect();
    assert_eq!((parsed.rows.len(), bad.len()), (2, 4), "{bad:?}");
    for (bad, wanted) in bad.iter().zip([
        "x.csv:5: found 2 values, the first line names 3 columns",
        "x.csv:6: found 4 values",
        "x.csv:7: not UTF-8: byte 3",
        "x.csv:9: a quote is not closed",
    ]) {
        assert!(bad.starts_with(wanted), "{bad}");
    }
    let places: Vec<_> =
        parsed.rows.iter().map(|row| parsed.places.of(row.id).unwrap().to_string()).collect();
    assert_eq!(places, ["x.csv:2", "x.csv:8"]);
}

#[test]
fn the_first_line_must_name_columns() {
    for (file, text, what) in [
        ("x.csv", "a;b;c\nq;a;b\n", "names no column that rows are read by: a;b;c"),
        ("x.csv", "a,b,c\nq,a,b\n", "by `columns`, such as columns: { prompt: question, chosen: good }"),
        ("x.csv", "prompt;chosen;rejected\nq;a;b\n", "separated by commas"),
        ("x.tsv", "prompt,chosen,rejected\nq,a,b\n", "separated by tabs"),
        ("x.csv", "prompt,chosen,prompt\nq,a,b\n", "the column \"prompt\" twice"),
        ("x.csv", "prompt,chosen,rejected\n", "preference pairs are expected, one a row below the header"),
        ("x.csv", "\"prompt\n", "a broken first line (a quote is not closed"),
    ] {
        let error = error(file, text.as_bytes());
        assert!(error.starts_with(&format!("{file}: ")) && error.contains(what), "{error}");
    }
    assert!(error("x.csv", b"prompt,\xff\n").contains("a broken first line (not UTF-8"));
    assert!(matches!(
        parse::<PairRow>("x.csv", b"\n\n"),
        Err(ParseError::Empty { .. } | ParseError::Format { .. })
    ));
    // The content overrides a name that does not match it.
    assert_eq!(parse::<PairRow>("x.csv", &fixture("orca.parquet")).unwrap().rows.len(), 9);
}

#[test]
fn a_row_is_bounded() {
    let long = format!("prompt,chosen,rejected\nq,{},b\nq2,a,b\n", "x".repeat(records::RECORD_LIMIT + 1));
    let many = format!("prompt,chosen,rejected\nq,a{}\nq2,a,b\n", ",".repeat(300_000));
    for (text, what) in [(long, "longer than 8 MiB"), (many, "more than 200000 values")] {
        let parsed = table(&text);
        assert_eq!((parsed.rows.len(), parsed.bad_rows), (1, 1));
        assert!(
            parsed.bad[0].to_string().starts_with("x.csv:2: the row ") && parsed.bad[0].what.contains(what)
        );
        assert_eq!(parsed.places.of(parsed.rows[0].id).unwrap().to_string(), "x.csv:3");
    }
}
