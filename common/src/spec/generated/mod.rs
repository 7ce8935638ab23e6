//! Keeps the files generated from the wire contract up to date: the job file's reference in proto/README.md
//! and its JSON Schema.

mod reference;

use std::fs;
use std::path::{Path, PathBuf};

use super::json_schema;

/// Rewrites the files when set.
const BLESS: &str = "FOIL_BLESS_REFERENCE";
const BEGIN: &str = "<!-- job file reference: made from foil/v1/jobs.proto -->\n";
const END: &str = "<!-- end of the reference -->\n";

fn proto(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto").join(file)
}

/// Compares a file with its expected content, or writes that when blessing.
fn hold(path: &Path, expected: &str) {
    if std::env::var_os(BLESS).is_some() {
        fs::write(path, expected).unwrap();
        return;
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    let path = path.display();
    assert!(
        found == expected,
        "{path} is out of date; run this test with {BLESS}=1 and look at the difference"
    );
}

#[test]
fn the_job_file_is_described_field_by_field() {
    let path = proto("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the mark where the reference begins");
    let (_, after) = rest.split_once(END).expect("the mark where it ends");
    hold(&path, &format!("{before}{BEGIN}\n{}{END}{after}", reference::markdown()));
}

#[test]
fn the_job_file_has_a_schema() {
    hold(&proto("job.schema.json"), &format!("{:#}\n", json_schema()));
}
