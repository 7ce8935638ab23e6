//! Names of the formats of data files, in reports and messages. `common/README.md` lists each in a row.

pub(super) const LINES: &str = "JSON lines";
pub(super) const ARRAY: &str = "JSON array";
pub(super) const PARQUET: &str = "Parquet";
pub(super) const ARROW: &str = "Arrow";
pub(super) const CSV: &str = "CSV";
pub(super) const TSV: &str = "TSV";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_every_format() {
        let readme = include_str!("../../../../README.md");
        for name in [LINES, ARRAY, PARQUET, ARROW, CSV, TSV] {
            assert!(readme.contains(&format!("\n| {name} | ")), "common/README.md has no row for {name}");
        }
    }
}
