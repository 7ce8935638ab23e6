//! Parquet and Arrow files, compared with what pyarrow reads from them (scripts/fixtures/data_files.py).

use super::packed::{expected, fixture};
use super::*;
use arrow_array::builder::{ListBuilder, StringBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel};
use parquet::file::properties::WriterProperties;
use rand::{Rng, SeedableRng};
use serde_json::Map;
use std::sync::Arc;

/// The records of a file, and their faults.
fn records(file: &str, bytes: &[u8]) -> Result<Vec<Result<Value, String>>, ParseError> {
    let mut records = records::Records::open(file, &memory(bytes), &ColumnNames::default())?;
    let mut found = Vec::new();
    while let Some(record) = records.next()? {
        found.push(record.value);
    }
    Ok(found)
}

/// The known columns of the rows that Python read.
fn rows_of_python(file: &str) -> Vec<Value> {
    let text = String::from_utf8(expected(file)).unwrap();
    let known = |line: &str| {
        let row: Map<String, Value> = serde_json::from_str(line).unwrap();
        Value::Object(row.into_iter().filter(|(name, _)| columns::find(name).is_some()).collect())
    };
    text.lines().map(known).collect()
}

fn compare_records(files: &[&str]) {
    for file in files {
        let found = records(file, &fixture(file)).unwrap_or_else(|error| panic!("{error}"));
        let found: Vec<Value> = found.into_iter().map(|record| record.unwrap()).collect();
        let wanted = rows_of_python(file);
        assert_eq!(found.len(), wanted.len(), "{file}");
        for (row, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert!(found == wanted, "{file}, row {row}\n{found}\n{wanted}");
        }
    }
}

/// Checks that a file's rows equal those of the JSON lines that Python wrote for it, and that none is bad.
fn compare_rows<T: Wanted + PartialEq + std::fmt::Debug>(file: &str, count: usize) {
    let found = parse::<T>(file, &fixture(file)).unwrap_or_else(|error| panic!("{error}"));
    let wanted = parse::<T>(file, &expected(file)).unwrap();
    assert_eq!((found.rows.len(), found.bad_rows), (count, 0), "{file}: {:?}", found.bad);
    assert_eq!(found.rows, wanted.rows, "{file}");
    assert_eq!(
        (found.records, found.skipped, found.ignored.keys().collect::<Vec<_>>()),
        (wanted.records, wanted.skipped, wanted.ignored.keys().filter(|name| !name.contains('[')).collect()),
        "{file}"
    );
}

const PARQUET: [&str; 9] = [
    "ultrafeedback.parquet",
    "hh.parquet",
    "kto.parquet",
    "sharegpt.parquet",
    "shp.parquet",
    "nectar.parquet",
    "gsm8k.parquet",
    "orca.parquet",
    "types.parquet",
];

const ARROW: [&str; 5] = ["chat.arrow", "kto.arrow", "ultrafeedback.arrow", "types.arrow", "orca.feather"];

#[test]
fn arrow_of_every_codec_and_type_is_read_as_pyarrow_reads_it() {
    compare_records(&ARROW);
}

#[test]
fn public_sets_in_arrow_give_their_rows() {
    compare_rows::<PairRow>("ultrafeedback.arrow", 9);
    compare_rows::<PairRow>("orca.feather", 9);
    compare_rows::<DemonstrationRow>("kto.arrow", 6);
    compare_rows::<DemonstrationRow>("chat.arrow", 9);
    let parsed =
        parse::<PairRow>("x.zst", &zstd::encode_all(&fixture("orca.feather")[..], 3).unwrap()).unwrap();
    assert_eq!((parsed.rows.len(), parsed.files[0].format.as_str()), (9, "Arrow, zstd"));
}

#[test]
fn parquet_of_every_codec_and_type_is_read_as_pyarrow_reads_it() {
    compare_records(&PARQUET);
}

#[test]
fn public_sets_in_parquet_give_their_rows() {
    compare_rows::<PairRow>("ultrafeedback.parquet", 9);
    compare_rows::<PairRow>("hh.parquet", 7);
    compare_rows::<PairRow>("sharegpt.parquet", 9);
    compare_rows::<PairRow>("shp.parquet", 9);
    compare_rows::<PairRow>("orca.parquet", 9);
    compare_rows::<DemonstrationRow>("gsm8k.parquet", 6);
    compare_rows::<DemonstrationRow>("kto.parquet", 6);
    compare_rows::<PromptRow>("ultrafeedback.parquet", 9);
    let nectar = parse::<PairRow>("nectar.parquet", &fixture("nectar.parquet")).unwrap();
    assert_eq!((nectar.rows.len(), nectar.bad_rows), (15, 0), "three pairs of every row");
}

#[test]
fn a_bad_row_is_named_by_its_number() {
    let files = ["bad-rows.parquet", "bad-rows.arrow"];
    for file in files {
        let parsed = parse::<PairRow>(file, &fixture(file)).unwrap();
        let bad: Vec<_> = parsed.bad.iter().map(ToString::to_string).collect();
        let wanted = [
            "row 1: rejected: the response is empty",
            "row 2: found an object with prompt, chosen (null)",
            "row 3: margin: found NaN",
        ];
        assert_eq!((parsed.rows.len(), parsed.records, bad.len()), (2, 6, 3), "{bad:?}");
        for (bad, wanted) in bad.iter().zip(wanted) {
            assert!(bad.starts_with(&format!("{file}: {wanted}")), "{bad}");
        }
        assert_eq!(parsed.skipped.duplicates, 1);
        let places: Vec<_> =
            parsed.rows.iter().map(|row| parsed.places.of(row.id).unwrap().to_string()).collect();
        assert_eq!(places, [format!("{file}: row 0"), format!("{file}: row 4")]);
        assert!(parsed.require("data.preferences", 0.4).is_err());
        parsed.require("data.preferences", 0.5).unwrap();
    }
}

#[test]
fn columns_that_hold_no_text_are_refused_by_name() {
    let ignored = parse::<PairRow>("x", &fixture("foreign-ignored.parquet")).unwrap();
    assert_eq!((ignored.rows.len(), ignored.bad_rows), (2, 0), "{:?}", ignored.bad);
    let names: Vec<_> = ignored.ignored.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(names, [("created", 2), ("embedding", 2), ("raw", 2)]);
    for (file, what) in [
        ("foreign-timestamp.parquet", "the column margin of type Timestamp"),
        ("foreign-binary.parquet", "the column prompt of type Binary"),
        ("foreign-nested.parquet", "content of type Binary"),
        ("foreign-columns.parquet", "no column that rows are read by, but a, b"),
        ("brotli.parquet", "compressed by BROTLI"),
    ] {
        let error = parse::<PairRow>(file, &fixture(file)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{file}: ")) && error.contains(what), "{error}");
    }
    // Images are refused only if a row has one.
    let images = parse::<PairRow>("x", &fixture("foreign-images.parquet")).unwrap();
    assert_eq!((images.rows.len(), images.bad_rows), (1, 1));
    assert!(
        images.bad[0].to_string().starts_with("x: row 1: images: found a list of 1; only text"),
        "{}",
        images.bad[0]
    );
}

#[test]
fn a_format_is_told_by_content_and_not_by_name() {
    let bytes = fixture("orca.parquet");
    for name in ["x.jsonl", "x.csv", "x.json.gz"] {
        assert_eq!(parse::<PairRow>(name, &bytes).unwrap().rows.len(), 9);
    }
    for packed in [gzip(&bytes), zstd::encode_all(&bytes[..], 3).unwrap()] {
        let error = parse::<PairRow>("x.parquet.gz", &packed).unwrap_err().to_string();
        assert!(error.contains("Parquet file that was compressed as a whole"), "{error}");
    }
    let error = parse::<PairRow>("x.parquet", b"PK\x03\x04").unwrap_err().to_string();
    assert!(error.contains("zip archive"), "{error}");
}

#[test]
fn tables_that_are_cut_short_are_refused() {
    let bytes = fixture("orca.parquet");
    for cut in (4..bytes.len()).step_by(7) {
        let error = parse::<PairRow>("x", &bytes[..cut]).unwrap_err().to_string();
        assert!(error.contains("broken Parquet data"), "{cut}: {error}");
    }
    for name in ARROW {
        let bytes = fixture(name);
        let is_file = bytes.starts_with(b"ARROW1");
        // The end of a stream may be where the file ends; that of a file comes before its footer.
        for cut in (8..bytes.len() - 8).step_by(13) {
            match records(name, &bytes[..cut]) {
                Err(error) => {
                    assert!(error.to_string().contains("broken Arrow data"), "{name}, {cut}: {error}");
                }
                Ok(found) => assert!(is_file || found.len() < rows_of_python(name).len(), "{name}, {cut}"),
            }
        }
    }
    // Without its start, which holds the data.
    let cut = [&bytes[..4], &bytes[200..]].concat();
    assert!(matches!(parse::<PairRow>("x", &cut), Err(ParseError::Format { .. })));
}

#[test]
fn broken_tables_give_an_answer() {
    let mut random = rand_chacha::ChaCha8Rng::from_seed(rand::random());
    for file in PARQUET.into_iter().chain(ARROW) {
        let bytes = fixture(file);
        for _ in 0..40 {
            let mut broken = bytes.clone();
            for _ in 0..random.random_range(1..4) {
                // Put half of the faults in the footer, which locates everything else.
                let from = if random.random() { bytes.len() / 2 } else { 0 };
                let at = random.random_range(from..bytes.len());
                broken[at] = [0, 0x7f, 0xff, random.random()][random.random_range(0..4)];
            }
            never_panics(&broken);
        }
    }
}

fn parquet(column: &str, array: ArrayRef, properties: WriterProperties) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter([(column, array)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn properties(compression: Compression) -> WriterProperties {
    WriterProperties::builder()
        .set_compression(compression)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .build()
}

#[test]
fn texts_that_stand_for_many_are_not_copied() {
    // A text of 4 MiB, 400 times by its number in a dictionary.
    let mut texts = StringDictionaryBuilder::<Int32Type>::new();
    let text = "x".repeat(4 << 20);
    for _ in 0..400 {
        texts.append_value(&text);
    }
    let bytes = parquet("prompt", Arc::new(texts.finish()), properties(Compression::SNAPPY));
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    let parsed = parse::<PromptRow>("x", &bytes).unwrap();
    assert_eq!((parsed.rows.len(), parsed.skipped.duplicates, parsed.bad_rows), (1, 399, 0));
}

#[test]
fn a_row_of_millions_of_values_is_a_bad_one() {
    let mut list = ListBuilder::new(StringBuilder::new());
    for count in [3_000_000, 2] {
        (0..count).for_each(|_| list.values().append_value("x"));
        list.append(true);
    }
    let bytes = parquet("text", Arc::new(list.finish()), properties(Compression::SNAPPY));
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    let parsed = parse::<PairRow>("x", &bytes).unwrap();
    assert!(parsed.bad[0].what.contains("more than 200000 values"), "{}", parsed.bad[0]);
    assert_eq!(parsed.records, 2);
}

/// A number as Thrift stores it.
fn varint(number: u64) -> Vec<u8> {
    let mut rest = number << 1;
    let mut bytes = Vec::new();
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

#[test]
fn a_page_is_bounded_whatever_its_header_says() {
    const LONG: usize = 140 << 20;
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(LONG)]));
    let properties = |codec| {
        let plain = properties(codec);
        plain.into_builder().set_dictionary_enabled(false).build()
    };
    let honest = parquet("prompt", text.clone(), properties(Compression::GZIP(GzipLevel::default())));
    assert!(honest.len() < 1 << 18, "{}", honest.len());
    let error = parse::<PromptRow>("x", &honest).unwrap_err().to_string();
    assert!(error.contains("a page of more than 128 MiB in the column prompt"), "{error}");
    // The header's length covers the text, the text's length field and its levels.
    let stored = |size: usize| {
        let number = varint(size as u64);
        let at = honest[..64].windows(number.len()).position(|window| window == number)?;
        Some(at..at + number.len())
    };
    let range = (LONG..LONG + 64).find_map(stored).unwrap();
    let smaller = varint(128 << 20);
    let mut liar = honest.clone();
    assert_eq!(range.len(), smaller.len());
    liar[range].copy_from_slice(&smaller);
    let error = parse::<PromptRow>("x", &liar).unwrap_err().to_string();
    assert!(error.contains("a page of more than 128 MiB in the column prompt"), "{error}");
}

#[test]
fn the_first_message_of_an_arrow_file_may_be_aligned_to_64_bytes() {
    let column =
        |name: &str, text: &str| (name.to_owned(), Arc::new(StringArray::from(vec![text])) as ArrayRef);
    let columns = [column("prompt", "q"), column("chosen", "a"), column("rejected", "b")];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    // Its default.
    let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let bytes = writer.into_inner().unwrap();
    assert!(bytes[8..64].iter().all(|byte| *byte == 0), "it is aligned to 8 bytes");
    let row = only(&parse::<PairRow>("x.arrow", &bytes).unwrap());
    assert_eq!((row.prompt, row.chosen.as_str()), (Prompt::user("q"), "a"));
}
