//! Every metric that the sources name is described, also one that no test makes appear.

use std::fs;
use std::path::{Path, PathBuf};

use foil_common::exposition;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
}

/// The names given to macros of the `metrics` crate.
fn named(text: &str) -> impl Iterator<Item = &str> {
    ["counter!(", "gauge!(", "histogram!("].into_iter().flat_map(move |kind| {
        text.match_indices(kind).filter_map(move |(at, _)| {
            let argument = text[at + kind.len()..].trim_start().strip_prefix('"')?;
            argument.split('"').next()
        })
    })
}

#[test]
fn every_metric_has_its_help() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for part in ["common/src", "coordinator/src", "worker/src"] {
        sources(&root.join(part), &mut files);
    }
    let mut seen = 0;
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        // Modules of tests name what they please.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for name in named(text) {
            seen += 1;
            assert!(exposition::is_described(name), "{}: {name} has no help", file.display());
        }
    }
    assert!(seen > 20, "only {seen} names were found, so this proves nothing");
}
