//! Every metric in the sources is described in `/metrics` and in deploy/README.md, even if no test records
//! it.

use std::collections::BTreeMap;
use std::fmt::Write;
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

/// The text of each source file without its tests.
fn texts() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for part in ["common/src", "coordinator/src", "worker/src"] {
        sources(&root().join(part), &mut files);
    }
    let text = |file: PathBuf| {
        let text = fs::read_to_string(&file).expect("a source file");
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        (file, text)
    };
    files.into_iter().map(text).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_metric_has_its_help() {
    let known: Vec<&str> = exposition::described().map(|(name, ..)| name).collect();
    let mut seen = 0;
    for (file, text) in texts() {
        for name in named(&text) {
            seen += 1;
            assert!(known.contains(&name), "{}: {name} has no help", file.display());
        }
    }
    assert!(seen > 20, "only {seen} names were found");
}

/// Name and help of gauges that are set as whole families.
fn families(text: &str) -> Vec<(String, String)> {
    let family = |(at, start): (usize, &str)| {
        let mut strings = text[at + start.len()..].split('"');
        Some((strings.nth(1)?.to_owned(), strings.nth(1)?.to_owned()))
    };
    text.match_indices("Family::new(").filter_map(family).collect()
}

/// Writes the reference again when set.
const BLESS: &str = "FOIL_BLESS_REFERENCE";
const BEGIN: &str = "<!-- metrics reference: made from the sources -->\n";
const END: &str = "<!-- end of the reference -->\n";

#[test]
fn the_reference_lists_every_metric() {
    let mut rows: BTreeMap<String, (&str, String)> = BTreeMap::new();
    rows.extend(exposition::described().map(|(name, kind, help)| (name.to_owned(), (kind, help.to_owned()))));
    let families = texts().iter().flat_map(|(_, text)| families(text)).collect::<Vec<_>>();
    assert!(families.len() >= 5, "{families:?}");
    rows.extend(families.into_iter().map(|(name, help)| (name, ("gauge", help))));
    let mut expected = "\n| metric | type | |\n|---|---|---|\n".to_owned();
    for (name, (kind, help)) in rows {
        writeln!(expected, "| `{name}` | {kind} | {help} |").expect("a string");
    }
    expected.push('\n');

    let path = root().join("deploy/README.md");
    let readme = fs::read_to_string(&path).expect("deploy/README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("the mark where the reference begins");
    let (found, after) = rest.split_once(END).expect("the mark where it ends");
    if std::env::var_os(BLESS).is_some() {
        fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).expect("written");
        return;
    }
    assert_eq!(found, expected, "run this test with {BLESS}=1 and look at the difference");
}
