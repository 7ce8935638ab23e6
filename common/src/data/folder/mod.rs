//! Hugging Face dataset folders: the files of their splits.
//!
//! A path in the job file may be a file, or a folder in the layout of the Hub or `datasets`: `path`,
//! `path#split`, `path#config` or `path#config/split`. The splits are those that `datasets.load_dataset` and
//! `load_from_disk` find: those named in the folder's `README.md`, or else derived from folder and file
//! names.

mod card;
mod saved;
mod splits;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::input_file;
use glob::MatchOptions;

/// Maximum number of files of a folder.
const FILE_LIMIT: usize = 100_000;
/// Maximum depth of folders within a folder.
const DEPTH_LIMIT: usize = 16;
/// Maximum size of a file that describes a folder.
const DESCRIPTION_LIMIT: u64 = 4 << 20;
/// Maximum number of names in a message.
const NAMED: usize = 12;

/// Endings of data files, without the compression's.
const ENDINGS: [&str; 8] = ["parquet", "jsonl", "json", "ndjson", "arrow", "feather", "csv", "tsv"];

/// A folder whose files cannot be determined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {found}; {advice}", path.display())]
pub struct FolderError {
    pub path: PathBuf,
    found: String,
    advice: String,
}

/// A named part of a data set, with its splits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Config {
    name: String,
    is_default: bool,
    splits: Vec<Split>,
}

/// The files of a split in the order in which they are read, relative to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Split {
    name: String,
    files: Vec<PathBuf>,
}

/// The files that a path of a job file names, in the order in which they are read: those of a folder's split,
/// or those that match a pattern (`*`, `?`, `[…]`, `**`), sorted. Any other path is one file, whether it
/// exists or not.
///
/// # Errors
/// The folder, its split or its configuration cannot be determined, in which case the message names the
/// existing ones, or no file matches the pattern.
pub fn files(path: &str) -> Result<Vec<PathBuf>, FolderError> {
    let whole = Path::new(path);
    if whole.is_dir() {
        return Folder { path: whole }.choose(None);
    }
    if path.contains(['*', '?', '[']) && !whole.exists() {
        return matches(path);
    }
    match path.rsplit_once('#') {
        Some((folder, wanted)) if !whole.exists() => {
            let folder = Folder { path: Path::new(folder) };
            if folder.path.is_dir() {
                return folder.choose(Some(wanted).filter(|wanted| !wanted.is_empty()));
            }
            match folder.path.exists() {
                true => Err(folder.error(
                    format!("is a file, which has no split {wanted:?}"),
                    "remove `#` and what follows",
                )),
                false => Ok(vec![whole.to_owned()]),
            }
        }
        _ => Ok(vec![whole.to_owned()]),
    }
}

/// The files that match a pattern, sorted.
fn matches(pattern: &str) -> Result<Vec<PathBuf>, FolderError> {
    let error =
        |found: String, advice: &str| FolderError { path: pattern.into(), found, advice: advice.to_owned() };
    let options = MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..MatchOptions::default()
    };
    let found = glob::glob_with(pattern, options).map_err(|fault| {
        error(format!("is no pattern ({fault})"), "correct it; `[*]` stands for the character itself")
    })?;
    let mut files = Vec::new();
    for path in found.take(FILE_LIMIT + 1) {
        let path =
            path.map_err(|fault| error(format!("cannot be followed ({fault})"), "check the folders"))?;
        if !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    match files.len() {
        0 => Err(error("fits no file".to_owned(), "correct the pattern")),
        count if count > FILE_LIMIT => {
            Err(error(format!("fits more than {FILE_LIMIT} files"), "give a narrower pattern"))
        }
        _ => Ok(files),
    }
}

/// A folder that holds a data set.
#[derive(Clone, Copy)]
struct Folder<'a> {
    path: &'a Path,
}

impl Folder<'_> {
    fn error(self, found: impl Into<String>, advice: impl Into<String>) -> FolderError {
        FolderError { path: self.path.to_owned(), found: found.into(), advice: advice.into() }
    }

    fn choose(self, wanted: Option<&str>) -> Result<Vec<PathBuf>, FolderError> {
        let configs = self.configs()?;
        let split = self.split(&configs, wanted)?;
        let endings: Vec<_> = split.files.iter().filter_map(|file| ending(file)).collect();
        if let Some(other) = endings.iter().find(|ending| **ending != endings[0]) {
            let found = format!(
                "has files of several formats in the split {}: .{} and .{other}",
                split.name, endings[0]
            );
            return Err(
                self.error(found, "name the files themselves, or describe the splits in its README.md")
            );
        }
        Ok(split.files.iter().map(|file| self.path.join(file)).collect())
    }

    /// The split of this name: `split`, `config` or `config/split`.
    fn split<'c>(self, configs: &'c [Config], wanted: Option<&str>) -> Result<&'c Split, FolderError> {
        let default = configs.iter().find(|config| config.is_default).or(match configs {
            [only] => Some(only),
            _ => configs.iter().find(|config| config.name == "default"),
        });
        let config = |name: &str| configs.iter().find(|config| config.name == name);
        let of = |config: &'c Config, name: &str| config.splits.iter().find(|split| split.name == name);
        let only = |config: &'c Config| match &config.splits[..] {
            [only] => Some(only),
            _ => None,
        };
        let found = match wanted {
            None => default.and_then(only),
            Some(name) => match name.split_once('/') {
                Some((part, name)) => config(part).and_then(|config| of(config, name)),
                None => default.and_then(|config| of(config, name)).or_else(|| config(name).and_then(only)),
            },
        };
        found.ok_or_else(|| {
            let qualified = default.is_none() || configs.len() > 1;
            let names = configs.iter().flat_map(|config| {
                let name = |split: &Split| match qualified {
                    true => format!("{}/{}", config.name, split.name),
                    false => split.name.clone(),
                };
                config.splits.iter().map(name).collect::<Vec<_>>()
            });
            let names: Vec<_> = names.collect();
            let listed = listed(&names);
            let example = names.first().map_or("train", String::as_str);
            match wanted {
                Some(wanted) => {
                    self.error(format!("has no split {wanted:?}, but {listed}"), "correct what follows `#`")
                }
                None => self.error(
                    format!("is a data set with several splits: {listed}"),
                    format!("name one, as {}#{example}", self.path.display()),
                ),
            }
        })
    }

    /// The data set's configurations, each with at least one split.
    fn configs(self) -> Result<Vec<Config>, FolderError> {
        if let Some(config) = saved::read(self)? {
            return Ok(vec![config]);
        }
        let files = self.data_files()?;
        if let Some(configs) = card::read(self, &files)? {
            return Ok(configs);
        }
        let splits = splits::infer(&files);
        if splits.is_empty() {
            let endings = ENDINGS.map(|ending| format!(".{ending}")).join(", ");
            return Err(self.error(
                format!("holds no data files ({endings})"),
                "name a folder that has some, or a file",
            ));
        }
        Ok(vec![Config { name: "default".to_owned(), is_default: true, splits }])
    }

    /// All data files of the folder, sorted by their paths relative to it.
    fn data_files(self) -> Result<Vec<PathBuf>, FolderError> {
        let mut files = Vec::new();
        let mut folders = vec![(PathBuf::new(), 0)];
        let mut seen = 0;
        while let Some((folder, depth)) = folders.pop() {
            let fail = |error: io::Error| {
                self.error(format!("cannot be read ({}: {error})", folder.display()), "check the folder")
            };
            for entry in fs::read_dir(self.path.join(&folder)).map_err(fail)? {
                let entry = entry.map_err(fail)?;
                seen += 1;
                if seen > FILE_LIMIT {
                    return Err(self.error(
                        format!("holds more than {FILE_LIMIT} files"),
                        "name the data files themselves",
                    ));
                }
                let name = entry.file_name();
                // Caches and repositories, which `datasets` skips too.
                if name.to_string_lossy().starts_with(['.', '_']) {
                    continue;
                }
                let path = folder.join(name);
                // A link counts as its target: caches of the Hub consist of links.
                let is_folder = self.path.join(&path).is_dir();
                if is_folder && depth < DEPTH_LIMIT {
                    folders.push((path, depth + 1));
                } else if !is_folder && ending(&path).is_some() && !is_description(&path) {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// The text of a file that describes the folder; `None` if there is none.
    fn description(self, name: &str) -> Result<Option<String>, FolderError> {
        match input_file::read_text(&self.path.join(name), DESCRIPTION_LIMIT) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(self.error(format!("has a {name} that cannot be read: {error}"), "repair or remove it"))
            }
        }
    }

    /// The path of a file that a description names, if it stays within the folder.
    fn inner(self, description: &str, name: &str) -> Result<PathBuf, FolderError> {
        let path: PathBuf = Path::new(name).components().filter(|part| *part != Component::CurDir).collect();
        match path.components().all(|part| matches!(part, Component::Normal(_))) {
            true => Ok(path),
            false => Err(self.error(
                format!("has a {description} that names {name:?}, which lies outside of it"),
                "name files within the folder",
            )),
        }
    }
}

/// The format that a file's name indicates, without its compression.
fn ending(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    let name = [".gz", ".zst"].iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(name);
    let (_, found) = name.rsplit_once('.')?;
    ENDINGS.into_iter().find(|ending| found.eq_ignore_ascii_case(ending))
}

/// Whether a file describes a data set, and so is not part of its data.
fn is_description(path: &Path) -> bool {
    const NAMES: [&str; 5] =
        ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| NAMES.contains(&name))
}

fn listed(names: &[String]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(NAMED)].join(", "))
}
