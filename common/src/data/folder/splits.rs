//! Splits inferred from folder and file names, by the rules of `datasets`
//! (<https://huggingface.co/docs/datasets/repository_structure>).

use super::Split;
use std::path::{Path, PathBuf};

/// The splits, and the words that stand for each in names.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The splits of files that are sorted. The first rule that matches any file decides:
/// `data/NAME-00000-of-00001.*`, a keyword in the name of a folder, one in the name of a file; otherwise all
/// files belong to `train`.
pub(super) fn infer(files: &[PathBuf]) -> Vec<Split> {
    let sharded = by_name(files, |file| shard(file).map(str::to_owned));
    if !sharded.is_empty() {
        return sharded;
    }
    let keyword = |is_in: fn(&Path, &str) -> bool| {
        let of = |words: &[&str]| {
            let has = |file: &&PathBuf| words.iter().any(|word| is_in(file, word));
            files.iter().filter(has).cloned().collect::<Vec<_>>()
        };
        let splits = KEYWORDS.map(|(name, words)| Split { name: name.to_owned(), files: of(words) });
        splits.into_iter().filter(|split| !split.files.is_empty()).collect::<Vec<_>>()
    };
    for is_in in [is_in_folder, is_in_file] {
        let splits = keyword(is_in);
        if !splits.is_empty() {
            return splits;
        }
    }
    by_name(files, |_| Some("train".to_owned()))
}

fn by_name(files: &[PathBuf], name: impl Fn(&Path) -> Option<String>) -> Vec<Split> {
    let mut splits: Vec<Split> = Vec::new();
    for file in files {
        let Some(name) = name(file) else { continue };
        match splits.iter_mut().find(|split| split.name == name) {
            Some(split) => split.files.push(file.clone()),
            None => splits.push(Split { name, files: vec![file.clone()] }),
        }
    }
    splits
}

/// The split of a file `data/NAME-00000-of-00001*.*`.
fn shard(file: &Path) -> Option<&str> {
    let name = file.strip_prefix("data").ok()?.to_str().filter(|name| !name.contains('/'))?;
    let (name, rest) = name.split_once("-of-").map(|(start, rest)| (start.rsplit_once('-'), rest))?;
    let (name, number) = name?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_shard = is_number(number) && rest.get(..5).is_some_and(is_number) && rest[5..].contains('.');
    (is_shard && !name.is_empty()).then_some(name)
}

fn is_in_folder(file: &Path, word: &str) -> bool {
    let mut folders = file.components().rev().skip(1);
    folders.any(|part| part.as_os_str().to_str().is_some_and(|name| holds(name, word, true)))
}

fn is_in_file(file: &Path, word: &str) -> bool {
    file.file_name().and_then(|name| name.to_str()).is_some_and(|name| holds(name, word, false))
}

/// Whether a word stands in a name between separators, the name's start or, if `at_end`, its end.
fn holds(name: &str, word: &str, at_end: bool) -> bool {
    let is_separator = |byte: u8| byte.is_ascii_digit() || b"-._ ".contains(&byte);
    name.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|at| name.as_bytes()[at]);
        let after = name.as_bytes().get(at + word.len()).copied();
        before.is_none_or(is_separator) && after.map_or(at_end, is_separator)
    })
}
