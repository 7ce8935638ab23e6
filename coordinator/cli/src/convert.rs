//! `foil convert`: converts data files to other formats and shapes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use foil_common::data::convert::{Container, Conversion, Report, SetKind, Shape};
use foil_common::data::folder;
use foil_common::data::parse::ColumnNames;
use foil_common::input_file;
use foil_common::plural::counted;
use foil_common::spec;
use serde_json::json;

use super::output::{self, OutputArgs};
use super::stdout;

const AFTER_HELP: &str = "\
Examples:
  foil convert hh.jsonl.gz hh.parquet                        the same rows and columns
  foil convert 'ultrafeedback#train_prefs' pairs.jsonl.zst   a split of a dataset folder
  foil convert hh.jsonl.gz trl.jsonl --format conversational
  foil convert rows.csv apo.json --format apo --columns prompt=question --columns chosen=good";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ConvertArgs {
    /// A file, a pattern ('data/*.parquet') or a split of a dataset folder (path#split).
    #[arg(value_name = "IN")]
    input: String,
    /// The file to write. Its extension selects the format: .jsonl, .json, .csv, .tsv, .parquet or .arrow,
    /// the first four optionally followed by .gz or .zst.
    #[arg(value_name = "OUT")]
    to: PathBuf,
    /// Read the rows as a job reads them, and write them in this shape. By default every column is written
    /// as it is.
    #[arg(long, value_name = "SHAPE", value_parser = PossibleValuesParser::new(Shape::ALL.map(|(name, _)| name)))]
    format: Option<String>,
    /// With --format: the kind of rows to read: pairs (preferences), answers (golden or sft) or prompts.
    /// Default: the kind of the first row
    #[arg(
        long = "as",
        value_name = "SET",
        requires = "format",
        value_parser = PossibleValuesParser::new(SetKind::ALL.map(|(name, _)| name))
    )]
    set: Option<String>,
    /// With --format: a column that has another name in IN, such as prompt=question.
    #[arg(long, value_name = "NAME=COLUMN")]
    columns: Vec<String>,
    /// Leave out rows that cannot be converted, up to this fraction of all rows.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    max_bad_fraction: f64,
    /// Replace OUT if it exists.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn convert(args: &ConvertArgs) -> Result<()> {
    if !(0.0..=1.0).contains(&args.max_bad_fraction) {
        bail!("--max-bad-fraction: found {}, expected a number from 0 to 1", args.max_bad_fraction);
    }
    let conversion = conversion(args)?;
    let (to, force) = (args.to.clone(), args.force);
    let work = move || conversion.write(&to, force);
    let (container, report) =
        tokio::task::spawn_blocking(work).await.context("the conversion was aborted")??;
    for bad in &report.bad {
        stdout::note(&format!("left out: {bad}"));
    }
    let value = || Ok(value(&args.to, container, &report));
    if output::structured(args.output.format, value, || [args.to.display().to_string()])? {
        stdout::line(&summary(&args.to, container, &report))?;
    }
    Ok(())
}

fn conversion(args: &ConvertArgs) -> Result<Conversion> {
    let files = folder::files(&args.input)?;
    let open = |path: &PathBuf| {
        let file = input_file::open(path).with_context(|| path.display().to_string())?;
        Ok((path.display().to_string(), file.into()))
    };
    let shape = args.format.as_ref().and_then(|name| find(&Shape::ALL, name));
    if let (None, Some(given)) = (shape, args.columns.first()) {
        bail!(
            "--columns {given}: without --format every column is written as it is named in IN; give --format, or leave \
             out --columns"
        );
    }
    Ok(Conversion {
        files: files.iter().map(open).collect::<Result<_>>()?,
        names: ColumnNames::new(&columns(&args.columns)?),
        shape,
        set: args.set.as_ref().and_then(|name| find(&SetKind::ALL, name)),
        max_bad_fraction: args.max_bad_fraction,
    })
}

fn find<T: Copy>(all: &[(&str, T)], name: &str) -> Option<T> {
    all.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

fn columns(given: &[String]) -> Result<BTreeMap<String, String>> {
    let mut columns = BTreeMap::new();
    for text in given {
        let (own, theirs) = text
            .split_once('=')
            .filter(|(own, theirs)| !own.is_empty() && !theirs.is_empty())
            .ok_or_else(|| anyhow!("--columns {text}: expected NAME=COLUMN, for example prompt=question"))?;
        if let Some(advice) = spec::column_advice(own) {
            bail!("--columns {text}: {own} is no column that Foil reads; {advice}");
        }
        if columns.insert(own.to_owned(), theirs.to_owned()).is_some() {
            bail!("--columns {text}: {own} is given twice");
        }
    }
    Ok(columns)
}

fn value(to: &Path, container: Container, report: &Report) -> serde_json::Value {
    json!({
        "file": to, "format": container.name(), "from": report.from, "set": report.set.map(SetKind::name),
        "rows_read": report.read, "rows_written": report.written, "bad_rows": report.bad_rows,
        "skipped": report.skipped,
        "first_bad": report.bad.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// "pairs.parquet: Parquet, 3,327 rows of preferences, from JSON lines, gzip; 2 bad rows left out".
fn summary(to: &Path, container: Container, report: &Report) -> String {
    let set = report.set.map(|set| format!(" of {}", set.name())).unwrap_or_default();
    let mut text = format!("{}: {}, {}{set}", to.display(), container.name(), counted(report.written, "row"));
    let mut from = report.from.clone();
    from.dedup();
    text = format!("{text}, from {} ({})", counted(report.from.len() as u64, "file"), from.join("; "));
    if report.bad_rows > 0 {
        text = format!("{text}; {} left out", counted(report.bad_rows, "bad row"));
    }
    if report.skipped > 0 {
        text =
            format!("{text}; {} left out as ties or answers labeled as bad", counted(report.skipped, "row"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_pairs_of_names() {
        let read = |given: &[&str]| columns(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(read(&["prompt=a=b"]).unwrap()["prompt"], "a=b");
        for wrong in [&["prompt"][..], &["=a"], &["prompt="], &["prompt=a", "prompt=b"]] {
            assert!(read(wrong).unwrap_err().to_string().starts_with("--columns "), "{wrong:?}");
        }
        let unknown = read(&["promt=prompt"]).unwrap_err().to_string();
        assert!(unknown.ends_with("promt is no column that Foil reads; did you mean prompt?"), "{unknown}");
    }

    #[test]
    fn columns_are_named_for_a_shape_alone() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: ConvertArgs,
        }
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("rows.jsonl");
        std::fs::write(&input, "{\"q\":\"a\"}\n").unwrap();
        let read = |more: &[&str]| {
            let input = input.display().to_string();
            let line = ["convert", input.as_str(), "out.jsonl", "--columns", "prompt=q"]
                .into_iter()
                .chain(more.iter().copied());
            conversion(&<Line as clap::Parser>::parse_from(line).args)
        };
        let refused = read(&[]).err().unwrap().to_string();
        assert!(refused.contains("give --format, or leave out --columns"), "{refused}");
        assert!(read(&["--format", "conversational"]).is_ok());
    }
}
