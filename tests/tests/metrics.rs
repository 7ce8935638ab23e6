//! Checks that every metric in the sources is described in `/metrics` and in deploy/README.md, even if no
//! test records it.

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

/// The names passed to macros of the `metrics` crate, with their labels.
fn named(text: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    ["counter!(", "gauge!(", "histogram!("].into_iter().flat_map(move |kind| {
        text.match_indices(kind).filter_map(move |(at, _)| {
            let arguments = text[at + kind.len()..].trim_start().strip_prefix('"')?;
            let arguments = arguments.split(';').next()?;
            let labels =
                arguments.match_indices("\" =>").filter_map(|(end, _)| arguments[..end].rsplit('"').next());
            Some((arguments.split('"').next()?, labels.collect()))
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
    let known: BTreeMap<&str, &[&str]> =
        exposition::described().map(|metric| (metric.name, metric.labels)).collect();
    let (mut seen, mut labeled) = (0, 0);
    for (file, text) in texts() {
        for (name, labels) in named(&text) {
            seen += 1;
            let described =
                known.get(name).unwrap_or_else(|| panic!("{}: {name} has no help", file.display()));
            labeled += labels.len();
            let unknown: Vec<_> = labels.iter().filter(|label| !described.contains(label)).collect();
            assert!(unknown.is_empty(), "{}: {name} is described without {unknown:?}", file.display());
        }
    }
    assert!(seen > 20 && labeled > 15, "only {seen} names with {labeled} labels were found");
}

/// Name, help and labels of gauges that are set as whole families.
fn families(text: &str) -> Vec<(String, String, Vec<String>)> {
    let family = |text: &str| {
        let mut strings = text.split('"');
        let (name, help) = (strings.nth(1)?.to_owned(), strings.nth(1)?.to_owned());
        // `.with(&[("kind", kind), ("state", state)], 1.0)` follows before the next family.
        let pairs =
            text.split_once(".with(&[").map_or("", |(_, rest)| rest.split(']').next().unwrap_or_default());
        let labels = pairs.split("(\"").skip(1).filter_map(|pair| pair.split('"').next());
        Some((name, help, labels.map(str::to_owned).collect()))
    };
    text.split("Family::new(").skip(1).filter_map(family).collect()
}

/// If set, the reference is rewritten.
const BLESS: &str = "FOIL_BLESS_REFERENCE";
const BEGIN: &str = "<!-- metrics reference: made from the sources -->\n";
const END: &str = "<!-- end of the reference -->\n";

#[test]
fn the_reference_lists_every_metric() {
    let mut rows: BTreeMap<String, (&str, Vec<String>, String)> = BTreeMap::new();
    rows.extend(exposition::described().map(|metric| {
        let labels = metric.labels.iter().map(|label| (*label).to_owned()).collect();
        (metric.name.to_owned(), (metric.kind, labels, metric.help.to_owned()))
    }));
    let families = texts().iter().flat_map(|(_, text)| families(text)).collect::<Vec<_>>();
    assert!(families.len() >= 5, "{families:?}");
    rows.extend(families.into_iter().map(|(name, help, labels)| (name, ("gauge", labels, help))));
    let mut expected = "\n| metric | type | labels | |\n|---|---|---|---|\n".to_owned();
    for (name, (kind, labels, help)) in rows {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        writeln!(expected, "| `{name}` | {kind} | {labels} | {help} |").expect("a string");
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
