//! Folders written by `Dataset.save_to_disk` and `DatasetDict.save_to_disk` of `datasets`.

use serde::Deserialize;
use std::path::{Path, PathBuf};

use super::{Config, Folder, FolderError, Split};

const DICT: &str = "dataset_dict.json";
const STATE: &str = "state.json";

#[derive(Deserialize)]
struct Dict {
    splits: Vec<String>,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
    #[serde(rename = "_split")]
    split: Option<String>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

/// The splits of a saved data set; `None` if the folder is not one.
pub(super) fn read(folder: Folder<'_>) -> Result<Option<Config>, FolderError> {
    let splits = match folder.description(DICT)? {
        Some(text) => {
            let dict: Dict = parse(folder, DICT, &text)?;
            let split = |name: &String| {
                let within = folder.inner(DICT, name)?;
                let state = state(folder, &within)?.ok_or_else(|| {
                    folder.error(
                        format!("has no {name}/{STATE}, though its {DICT} names {name}"),
                        "save it again",
                    )
                })?;
                Ok(Split { name: name.clone(), files: files(folder, &within, &state)? })
            };
            dict.splits.iter().map(split).collect::<Result<_, _>>()?
        }
        None => match state(folder, Path::new(""))? {
            Some(state) => {
                let files = files(folder, Path::new(""), &state)?;
                vec![Split { name: state.split.unwrap_or_else(|| "train".to_owned()), files }]
            }
            None => return Ok(None),
        },
    };
    Ok(Some(Config { name: "default".to_owned(), is_default: true, splits }))
}

fn state(folder: Folder<'_>, within: &Path) -> Result<Option<State>, FolderError> {
    let name = within.join(STATE).to_string_lossy().into_owned();
    let text = folder.description(&name)?;
    text.map(|text| parse(folder, &name, &text)).transpose()
}

fn files(folder: Folder<'_>, within: &Path, state: &State) -> Result<Vec<PathBuf>, FolderError> {
    state.data_files.iter().map(|file| Ok(within.join(folder.inner(STATE, &file.filename)?))).collect()
}

fn parse<'t, T: Deserialize<'t>>(folder: Folder<'_>, name: &str, text: &'t str) -> Result<T, FolderError> {
    serde_json::from_str(text).map_err(|error| {
        folder.error(format!("has a {name} of another form ({error})"), "save it again by save_to_disk")
    })
}
