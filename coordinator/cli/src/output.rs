//! Output formats of the commands that read (`--output`).

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::stdout;

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Format of the output.
    #[arg(id = "output", short = 'o', long = "output", value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
    pub(crate) format: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people, within 80 columns if names are short.
    Table,
    /// A table with all its columns.
    Wide,
    /// One JSON object.
    Json,
    /// The same object as YAML.
    Yaml,
    /// Ids or names alone, one per line.
    Name,
}

/// Prints in a format for programs: `value`, or the names in it. Returns whether the caller still has to
/// print a table.
pub(crate) fn structured<I: IntoIterator<Item = String>>(
    output: Output,
    value: impl FnOnce() -> serde_json::Result<Value>,
    names: impl FnOnce() -> I,
) -> Result<bool> {
    match output {
        Output::Table | Output::Wide => return Ok(true),
        Output::Json => stdout::json(&value()?)?,
        Output::Yaml => stdout::line(serde_norway::to_string(&value()?)?.trim_end())?,
        Output::Name => {
            for name in names() {
                stdout::line(&name)?;
            }
        }
    }
    Ok(false)
}

/// A duration in its largest unit: 42s, 17m, 5h, 12d.
pub(crate) fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        let ages = [-3, 0, 119, 120, 7199, 7200, 172_799, 172_800, 8_640_000].map(age);
        assert_eq!(ages, ["0s", "0s", "119s", "2m", "119m", "2h", "47h", "2d", "100d"]);
    }
}
