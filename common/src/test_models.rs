//! Real models and data for tests, which are not part of the repository. tests/README.md describes them.

use std::path::{Path, PathBuf};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A path in the folder that `FOIL_TEST_MODELS` names, by default `shared` next to the repository. Prints
/// that the test is skipped and returns `None` if there is nothing at that path.
pub fn path(path: &str) -> Option<PathBuf> {
    let path = folder().join(path);
    existing(&path, "set FOIL_TEST_MODELS as tests/README.md says")
}

/// The content of a file at [`path`].
pub fn read(file: &str) -> Option<Vec<u8>> {
    path(file).and_then(|path| std::fs::read(path).ok())
}

/// Any real language model: the smallest of the test models, else what scripts/fetch-model fetches.
pub fn language_model() -> Option<PathBuf> {
    let stories = folder().join("models/stories260K");
    if stories.exists() {
        return Some(stories);
    }
    let fetched = Path::new(REPOSITORY).join("models/stories15m");
    existing(&fetched, "run scripts/fetch-model stories15m models/stories15m")
}

fn folder() -> PathBuf {
    std::env::var_os("FOIL_TEST_MODELS")
        .map_or_else(|| Path::new(REPOSITORY).join("../shared"), PathBuf::from)
}

#[expect(clippy::print_stdout, reason = "tests print why they are skipped")]
fn existing(path: &Path, remedy: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path.to_owned());
    }
    println!("skipped: {} is absent ({remedy})", path.display());
    None
}
