//! The shared test material beside the workspace, which is not part of it.

use std::path::PathBuf;

/// A path under `FOIL_SHARED`, else under the workspace's sibling `shared`; says so and gives `None` where it is absent.
pub(crate) fn path(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("FOIL_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent (set FOIL_SHARED)", path.display());
    None
}

pub(crate) fn read(file: &str) -> Option<Vec<u8>> {
    path(file).and_then(|path| std::fs::read(path).ok())
}
