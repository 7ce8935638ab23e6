//! Splits of folders, compared with those that `datasets` finds (scripts/fixtures/data_files.py).

use super::*;
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    files: Vec<String>,
    card: Option<String>,
    /// File names in reading order, for each split of each configuration.
    configs: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/data")
}

/// A folder with these files.
fn folder(files: &[impl AsRef<Path>], card: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
    }
    if let Some(card) = card {
        fs::write(dir.path().join("README.md"), card).unwrap();
    }
    dir
}

/// The files that a reference selects, relative to the folder.
fn named(dir: &Path, reference: &str) -> Result<Vec<String>, String> {
    let found = files(&format!("{}{reference}", dir.display())).map_err(|error| error.to_string())?;
    Ok(found.iter().map(|file| file.strip_prefix(dir).unwrap().display().to_string()).collect())
}

#[test]
fn splits_are_those_that_datasets_finds() {
    let cases: Vec<Case> =
        serde_json::from_slice(&fs::read(fixtures().join("folders.json")).unwrap()).unwrap();
    assert!(cases.len() >= 8);
    for case in cases {
        let dir = folder(&case.files, case.card.as_deref());
        let found =
            Folder { path: dir.path() }.configs().unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let found: BTreeMap<_, BTreeMap<_, _>> = found
            .into_iter()
            .map(|config| {
                let files =
                    |split: Split| split.files.iter().map(|file| file.display().to_string()).collect();
                (
                    config.name,
                    config.splits.into_iter().map(|split| (split.name.clone(), files(split))).collect(),
                )
            })
            .collect();
        assert_eq!(found, case.configs, "{}", case.name);
        for (config, splits) in &case.configs {
            for (split, files) in splits {
                assert_eq!(
                    named(dir.path(), &format!("#{config}/{split}")).as_ref(),
                    Ok(files),
                    "{}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn a_reference_names_a_split_of_the_default_configuration() {
    let card = "---\nconfigs:\n- config_name: small\n  data_files: s/*\n- config_name: big\n  default: true\n  data_files:\n  \
                - {split: train, path: b/train.jsonl}\n  - {split: test, path: b/test.jsonl}\n---\n";
    let dir = folder(&["s/one.jsonl", "b/train.jsonl", "b/test.jsonl"], Some(card));
    assert_eq!(named(dir.path(), "#test"), Ok(vec!["b/test.jsonl".to_owned()]));
    assert_eq!(named(dir.path(), "#small"), Ok(vec!["s/one.jsonl".to_owned()]));
    assert_eq!(named(dir.path(), "#small/train"), Ok(vec!["s/one.jsonl".to_owned()]));
    for (reference, what) in [
        ("", "several splits: small/train, big/train, big/test; name one, as "),
        ("#", "several splits"),
        ("#validation", "has no split \"validation\", but small/train, big/train, big/test"),
        ("#small/test", "has no split \"small/test\""),
    ] {
        let error = named(dir.path(), reference).unwrap_err();
        assert!(error.contains(what), "{reference}: {error}");
    }
    let shards = folder(&["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], None);
    let error = named(shards.path(), "").unwrap_err();
    assert!(
        error.contains("several splits: test, train; name one, as ") && error.ends_with("#test"),
        "{error}"
    );
}

#[test]
fn folders_of_save_to_disk_are_read_in_the_order_of_their_state() {
    let saved = fixtures().join("saved");
    assert_eq!(
        named(&saved, "#train_prefs").unwrap(),
        ["train_prefs/data-00000-of-00002.arrow", "train_prefs/data-00001-of-00002.arrow"]
    );
    assert_eq!(named(&saved.join("test"), "").unwrap(), ["data-00000-of-00001.arrow"]);
    assert!(named(&saved, "#dev").unwrap_err().contains("but train_prefs, test"));
}

#[test]
fn what_is_no_folder_is_one_file() {
    let dir = folder(&["a#b.jsonl", "a.jsonl"], None);
    assert_eq!(named(dir.path(), "/a#b.jsonl").unwrap(), ["a#b.jsonl"]);
    assert_eq!(named(dir.path(), "/a.jsonl").unwrap(), ["a.jsonl"]);
    assert_eq!(named(dir.path(), "/none.jsonl").unwrap(), ["none.jsonl"]);
    assert_eq!(named(dir.path(), "/none#train").unwrap(), ["none#train"]);
    let error = named(dir.path(), "/a.jsonl#train").unwrap_err();
    assert!(error.contains("is a file, which has no split \"train\""), "{error}");
}

#[test]
fn faults_of_folders_are_named() {
    let error = |files: &[&str], card: Option<&str>| named(folder(files, card).path(), "").unwrap_err();
    assert!(error(&["notes.txt"], None).contains("holds no data files (.parquet, .jsonl"));
    let mixed = error(&["a.jsonl", "b.parquet"], None);
    assert!(mixed.contains("several formats in the split train: .jsonl and .parquet"), "{mixed}");
    let card = |files: &str| format!("---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n");
    for (files, what) in [
        ("\"x/*\"", "no data file for the split train of default, which its README.md gives as x/*"),
        ("\"../x\"", "names \"../x\", which lies outside of it"),
        ("\"/etc/*\"", "lies outside"),
        ("\"https://h/x.jsonl\"", "which is not in it"),
        ("\"a[\"", "a pattern \"a[\" that is none"),
        ("7", "front matter cannot be read"),
        (&"[".repeat(20_000), "too many brackets"),
    ] {
        let error = error(&["a.jsonl"], Some(&card(files)));
        assert!(error.contains(what), "{files:.20}: {error}");
    }
    let outside = folder(&["a.jsonl"], None);
    fs::write(outside.path().join("state.json"), r#"{"_data_files": [{"filename": "../x"}]}"#).unwrap();
    assert!(named(outside.path(), "").unwrap_err().contains("outside"));
    fs::write(outside.path().join("state.json"), "[").unwrap();
    assert!(named(outside.path(), "").unwrap_err().contains("has a state.json of another form"));
}

#[test]
fn links_are_followed_and_circles_end() {
    let dir = folder(&["blobs/0abc"], None);
    fs::create_dir_all(dir.path().join("snapshots/data")).unwrap();
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, dir.path().join(at)).unwrap();
    link("../../blobs/0abc", "snapshots/data/train-00000-of-00001.parquet");
    link("..", "snapshots/data/circle");
    assert_eq!(named(&dir.path().join("snapshots"), "").unwrap(), ["data/train-00000-of-00001.parquet"]);
}

#[test]
fn patterns_name_their_files_in_order() {
    let dir = folder(
        &["b/2.jsonl", "b/1.jsonl", "a.jsonl", "a.txt", ".a.jsonl", "b/c/3.jsonl", "x[1].jsonl"],
        None,
    );
    assert_eq!(named(dir.path(), "/*.jsonl").unwrap(), ["a.jsonl", "x[1].jsonl"]);
    assert_eq!(named(dir.path(), "/b/[0-9].jsonl").unwrap(), ["b/1.jsonl", "b/2.jsonl"]);
    assert_eq!(named(dir.path(), "/b/**/*.jsonl").unwrap(), ["b/1.jsonl", "b/2.jsonl", "b/c/3.jsonl"]);
    // An existing file whose name looks like a pattern is taken literally.
    assert_eq!(named(dir.path(), "/x[1].jsonl").unwrap(), ["x[1].jsonl"]);
    assert!(named(dir.path(), "/*.parquet").unwrap_err().contains("fits no file"));
    assert!(named(dir.path(), "/[").unwrap_err().contains("is no pattern"));
}
