//! Compressed files. Those of zstandard, Python's binding of zstd, are made by
//! scripts/fixtures/data_files.py.

use super::*;
use std::path::Path;

/// A file of tests/fixtures/data.
pub(super) fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/data").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows that Python read from a fixture.
pub(super) fn expected(name: &str) -> Vec<u8> {
    fixture(&format!("{name}.rows.jsonl"))
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn error(file: &str, bytes: &[u8]) -> String {
    parse::<PromptRow>(file, bytes).unwrap_err().to_string()
}

#[test]
fn zstd_files_of_python_are_read() {
    for name in ["ultrafeedback.jsonl.zst", "frames.jsonl.zst"] {
        let parsed = parse::<PairRow>(name, &fixture(name)).unwrap();
        let plain = parse::<PairRow>(name, &expected(name)).unwrap();
        assert_eq!((parsed.rows.len(), parsed.bad_rows), (9, 0), "{:?}", parsed.bad);
        assert_eq!((parsed.files[0].format.as_str(), parsed.files[0].records), ("JSON lines, zstd", 9));
        // The skipped frame does not count as a line.
        assert_eq!((parsed.rows, parsed.places), (plain.rows, plain.places));
    }
}

#[test]
fn a_window_is_bounded() {
    let error = error("long.jsonl.zst", &fixture("long.jsonl.zst"));
    assert!(error.contains("more than 128 MiB") && error.contains("without --long"), "{error}");
}

#[test]
fn compression_is_told_by_content_and_not_by_name() {
    let row = br#"{"prompt": "q"}"#;
    for (file, bytes) in
        [("x.gz", zstd(row)), ("x.zst", gzip(row)), ("x.jsonl", zstd(row)), ("x.zst", row.to_vec())]
    {
        assert_eq!(parse::<PromptRow>(file, &bytes).unwrap().rows.len(), 1, "{file}");
    }
    for bytes in [zstd(&gzip(row)), gzip(&zstd(row)), gzip(&gzip(row))] {
        assert!(error("x", &bytes).contains("compressed twice"), "{}", error("x", &bytes));
    }
    for bytes in [zstd(b"PK\x03\x04"), gzip(b"version https://git-lfs.github.com/spec/v1\n")] {
        assert!(matches!(parse::<PromptRow>("x", &bytes), Err(ParseError::Format { .. })));
    }
}

#[test]
fn a_broken_archive_is_named_by_its_compression() {
    let packed = zstd("{\"prompt\": \"q\"}\n".repeat(1000).as_bytes());
    for cut in [5, packed.len() / 2, packed.len() - 1] {
        let error = error("x.zst", &packed[..cut]);
        assert!(error.contains("broken zstd data") && error.contains("cut short"), "{cut}: {error}");
    }
    let mut turned = packed.clone();
    turned[8] ^= 0xff;
    assert!(error("x", &turned).contains("broken zstd data"), "{}", error("x", &turned));
    assert!(error("x", b"\x1f\x8bbroken").contains("broken gzip data"));
}

#[test]
fn a_bomb_is_one_row_that_is_too_long() {
    let mut packer = zstd::Encoder::new(Vec::new(), 3).unwrap();
    for _ in 0..256 {
        packer.write_all(&vec![b'x'; 1 << 20]).unwrap();
    }
    let bomb = packer.finish().unwrap();
    assert!(bomb.len() < 1 << 16, "{}", bomb.len());
    let parsed = parse::<PromptRow>("x", &bomb).unwrap();
    assert_eq!((parsed.records, parsed.bad_rows), (1, 1));
    assert!(parsed.bad[0].what.contains("longer than 8 MiB"), "{}", parsed.bad[0]);
}
