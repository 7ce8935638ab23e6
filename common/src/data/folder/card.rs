//! The front matter of a data set's `README.md`, in which `configs` name files of splits by patterns
//! (<https://huggingface.co/docs/hub/datasets-manual-configuration>).

use glob::{MatchOptions, Pattern};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Config, Folder, FolderError, Split, splits};

const CARD: &str = "README.md";

/// Maximum number of brackets of front matter: the YAML parser takes time quadratic in the open ones.
const BRACKET_LIMIT: usize = 10_000;

#[derive(Deserialize, Default)]
struct Card {
    #[serde(default)]
    configs: Vec<CardConfig>,
}

#[derive(Deserialize)]
struct CardConfig {
    config_name: String,
    #[serde(default)]
    default: bool,
    data_dir: Option<String>,
    data_files: Option<DataFiles>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    Patterns(Patterns),
    Splits(Vec<CardSplit>),
    /// `datasets` also accepts a mapping of splits, whose order YAML does not define.
    Named(BTreeMap<String, Patterns>),
}

#[derive(Deserialize)]
struct CardSplit {
    split: String,
    path: Patterns,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Several(Vec<String>),
}

/// The configurations that the card names, with files of `all`; `None` if it names none.
pub(super) fn read(folder: Folder<'_>, all: &[PathBuf]) -> Result<Option<Vec<Config>>, FolderError> {
    let Some(text) = folder.description(CARD)? else { return Ok(None) };
    let Some(matter) = front_matter(&text) else { return Ok(None) };
    let refuse = |what: String| {
        folder
            .error(format!("has a {CARD} whose front matter cannot be read ({what})"), "repair its `configs`")
    };
    if matter.bytes().filter(|byte| b"[{".contains(byte)).count() > BRACKET_LIMIT {
        return Err(refuse("it has too many brackets".to_owned()));
    }
    let card: Option<Card> = serde_norway::from_str(matter).map_err(|error| refuse(error.to_string()))?;
    let configs: Vec<_> = card.unwrap_or_default().configs;
    let configs = configs.iter().map(|config| config.read(folder, all)).collect::<Result<Vec<_>, _>>()?;
    Ok((!configs.is_empty()).then_some(configs))
}

/// The text between the lines `---` at the start of a file.
fn front_matter(text: &str) -> Option<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rest = text.strip_prefix("---")?.trim_start_matches([' ', '\r']).strip_prefix('\n')?;
    let end = rest.match_indices("---").find(|(at, _)| *at == 0 || rest.as_bytes()[at - 1] == b'\n')?;
    Some(&rest[..end.0])
}

impl CardConfig {
    fn read(&self, folder: Folder<'_>, all: &[PathBuf]) -> Result<Config, FolderError> {
        let base = match self.data_dir.as_deref() {
            Some(dir) => folder.inner(CARD, dir)?,
            None => PathBuf::new(),
        };
        let find = |name: &str, patterns: &Patterns| {
            let files = patterns.files(folder, &base, all)?;
            match files.is_empty() {
                false => Ok(Split { name: name.to_owned(), files }),
                true => Err(folder.error(
                    format!(
                        "has no data file for the split {name} of {}, which its {CARD} gives as {}",
                        self.config_name,
                        patterns.list().join(", ")
                    ),
                    "fetch all files of the data set, or correct the pattern",
                )),
            }
        };
        let found = match &self.data_files {
            Some(DataFiles::Patterns(patterns)) => vec![find("train", patterns)?],
            Some(DataFiles::Splits(list)) => {
                list.iter().map(|entry| find(&entry.split, &entry.path)).collect::<Result<_, _>>()?
            }
            Some(DataFiles::Named(map)) => {
                map.iter().map(|(name, patterns)| find(name, patterns)).collect::<Result<_, _>>()?
            }
            None => {
                let within: Vec<_> =
                    all.iter().filter_map(|file| Some(file.strip_prefix(&base).ok()?.to_owned())).collect();
                let mut found = splits::infer(&within);
                for file in found.iter_mut().flat_map(|split| &mut split.files) {
                    *file = base.join(&*file);
                }
                found
            }
        };
        if found.is_empty() {
            let found = format!("has no data files for {}, which its {CARD} names", self.config_name);
            return Err(folder.error(found, "fetch all files of the data set"));
        }
        Ok(Config { name: self.config_name.clone(), is_default: self.default, splits: found })
    }
}

impl Patterns {
    fn list(&self) -> &[String] {
        match self {
            Patterns::One(pattern) => std::slice::from_ref(pattern),
            Patterns::Several(list) => list,
        }
    }

    /// The files of each pattern, sorted, in the order of the patterns.
    fn files(&self, folder: Folder<'_>, base: &Path, all: &[PathBuf]) -> Result<Vec<PathBuf>, FolderError> {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
        let mut files: Vec<PathBuf> = Vec::new();
        for text in self.list() {
            if text.contains("://") {
                let found = format!("has a {CARD} that names {text:?}, which is not in it");
                return Err(folder.error(found, "fetch the file, and name it here"));
            }
            let inner = base.join(folder.inner(CARD, text)?);
            let pattern = Pattern::new(&inner.to_string_lossy()).map_err(|error| {
                folder.error(
                    format!("has a {CARD} with a pattern {text:?} that is none ({error})"),
                    "correct it",
                )
            })?;
            let found = all.iter().filter(|file| pattern.matches_path_with(file, options));
            let new: Vec<_> = found.filter(|file| !files.contains(file)).cloned().collect();
            files.extend(new);
        }
        Ok(files)
    }
}
