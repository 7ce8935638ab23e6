//! `foil inspect`: a job's data as the models will read it.

mod histogram;
mod measure;
mod page;
mod pieces;
mod rows;

use std::path::PathBuf;

use anyhow::{Context, Result};
use foil_common::plural::counted;
use foil_common::spec::{self, Side};
use foil_common::text::inspect::{LengthAccuracy, RowView};
use foil_common::text::{Encoder, Limits};
use foil_proto::v1;
use serde_json::{Map, Value, json};

use self::measure::{Measured, Overlap, Repetitions};
use self::pieces::Piece;
use self::rows::Report;
use super::args::InspectArgs;
use super::local_file::write_atomic;
use super::output::Output;
use super::progress::Progress;
use super::{output, remote, report, stdout, submit};
use foil_coordinator::resolve::local::{self, LocalInputs, LocalSet, Rows};

pub(crate) async fn inspect(args: &InspectArgs) -> Result<()> {
    let mut job = submit::load_existing(&args.job.file, &args.job.settings)?;
    let _downloads = remote::fetch(&mut job, &Progress::new(true)).await?;
    let (rows, scan) = (args.rows, args.scan_weights);
    let reading = tokio::task::spawn_blocking(move || describe(&job, rows, scan));
    let inspection = reading.await.context("reading the inputs was aborted")??;
    for warning in &inspection.warnings {
        stdout::note(&format!("warning: {warning}"));
    }
    let written = write(args, &inspection)?;
    if !written.is_empty() && args.output.format == Output::Table {
        for path in written {
            stdout::line(&path.display().to_string())?;
        }
        return Ok(());
    }
    let names = || {
        let sets = inspection.value["sets"].as_array().into_iter().flatten();
        sets.filter_map(|set| set["name"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    if output::structured(args.output.format, || Ok(inspection.value.clone()), names)? {
        stdout::line(&inspection.text)?;
    }
    Ok(())
}

/// Writes the files that were asked for; returns their paths.
fn write(args: &InspectArgs, inspection: &Inspection) -> Result<Vec<PathBuf>> {
    let in_out = args.out.as_ref().map(|out| out.join("inspect.html"));
    let pages: Vec<PathBuf> = args.html.iter().cloned().chain(in_out).collect();
    if pages.is_empty() {
        return Ok(pages);
    }
    let page = page::page(inspection)?;
    for path in &pages {
        write_atomic(path, page.as_bytes())?;
    }
    let mut written = pages;
    if let Some(out) = &args.out {
        let path = out.join("inspect.json");
        write_atomic(&path, format!("{:#}\n", inspection.value).as_bytes())?;
        written.push(path);
    }
    Ok(written)
}

/// A job's data as text, as JSON and as page content, and the warnings of submission.
struct Inspection {
    text: String,
    value: Value,
    warnings: Vec<String>,
    name: String,
    /// The template and the limits, in one line.
    outline: String,
    /// The side on which a prompt is cut.
    side: Side,
    models: Vec<ModelReport>,
    sets: Vec<SetReport>,
    overlaps: Vec<Overlap>,
}

/// A model's tokens.
struct ModelReport {
    role: &'static str,
    name: String,
    vocabulary: usize,
    /// BOS, EOS and pad.
    tokens: [String; 3],
}

/// A data set's section of the page.
struct SetReport {
    name: &'static str,
    rows: usize,
    bad_rows: u64,
    files: Vec<String>,
    ignored: Option<String>,
    repetitions: Repetitions,
    measured: Vec<Measured>,
    length_accuracy: Option<LengthAccuracy>,
    examples: Vec<Example>,
}

/// A row as the models read it.
struct Example {
    title: String,
    view: RowView,
    pieces: Vec<Piece>,
}

fn describe(job: &spec::Job, rows: usize, scan: bool) -> Result<Inspection> {
    let local = local::local(job)?;
    let scanned = if scan { scan_weights(&local)? } else { Vec::new() };
    let sampled = Limits::new(job.text.max_length, job.sampling.max_new_tokens);
    let shared = Limits::shared(job.text.max_length);
    let mut named = vec![("policy", job.policy.model.name(), &local.policy)];
    if let (Some(encoder), Some(reference)) = (&local.reward, &job.reward.model) {
        named.push(("reward", reference.name(), encoder));
    }
    let mut lines: Vec<String> =
        named.iter().map(|(role, name, encoder)| model(role, name, encoder)).collect();
    let models: Vec<Value> =
        named.iter().map(|(role, name, encoder)| model_value(role, name, encoder)).collect();
    lines.extend(scanned);
    let outline = format!(
        "template {}; at most {} tokens, of which {} are kept for a completion",
        job.text.template, shared.total, sampled.response
    );
    lines.push(outline.clone());
    let (mut sets, mut reports) = (Vec::new(), Vec::new());
    for set in &local.sets {
        lines.push(String::new());
        lines.push(heading(&local, set));
        lines.extend(files(&local, set));
        lines.extend(sources(&local, set));
        lines.extend(ignored_columns(&local, set));
        let limits = match set.rows {
            Rows::Demonstrations(_) | Rows::Pairs(_) => shared,
            Rows::Golden(_) | Rows::Prompts(_) => sampled,
        };
        let mut value = set_value(&local, set);
        let mut report = Report {
            limits,
            rows,
            lines: &mut lines,
            lengths: Map::new(),
            shown: Vec::new(),
            set: set_report(&local, set)?,
        };
        report.set(&local, set)?;
        (value["lengths"], value["shown"]) = (Value::Object(report.lengths), Value::Array(report.shown));
        let histogram = |measured: &Measured| (measured.what.replace(' ', "_"), json!(measured.histogram));
        value["histograms"] = Value::Object(report.set.measured.iter().map(histogram).collect());
        value["repetitions"] = json!(report.set.repetitions);
        reports.push(report.set);
        sets.push(value);
    }
    let overlaps = measure::overlaps(&local.sets);
    let value = json!({
        "name": job.name.to_string(),
        "models": models,
        "template": job.text.template.to_string(),
        "max_length": shared.total,
        "completion_tokens": sampled.response,
        "sets": sets,
        "overlaps": overlaps,
        "warnings": local.warnings,
    });
    let models = named.iter().map(|&(role, ref name, encoder)| model_report(role, name, encoder)).collect();
    Ok(Inspection {
        text: lines.join("\n"),
        value,
        name: job.name.to_string(),
        outline,
        side: job.text.truncation_side,
        models,
        sets: reports,
        overlaps,
        warnings: local.warnings,
    })
}

fn model_report(role: &'static str, name: &str, encoder: &Encoder) -> ModelReport {
    let ids = [encoder.bos_id(), Some(encoder.eos_id()), encoder.pad_id().ok()];
    // A local path means nothing on other machines.
    let name = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name).to_owned();
    ModelReport {
        role,
        name,
        vocabulary: encoder.vocabulary(),
        tokens: ids.map(|id| named_token(encoder, id)),
    }
}

fn set_report(local: &LocalInputs, set: &LocalSet) -> Result<SetReport> {
    let summary = local.summaries.iter().find(|summary| summary.name == set.name);
    Ok(SetReport {
        name: set.name,
        rows: set.rows.len(),
        bad_rows: summary.map_or(0, |summary| summary.bad_rows),
        files: [files(local, set), sources(local, set)].concat(),
        ignored: ignored_columns(local, set),
        repetitions: measure::repetitions(set)?,
        measured: Vec::new(),
        length_accuracy: None,
        examples: Vec::new(),
    })
}

fn model_value(role: &str, name: &str, encoder: &Encoder) -> Value {
    json!({
        "role": role,
        "name": name,
        "token_ids": encoder.vocabulary(),
        "bos": encoder.bos_id(),
        "eos": encoder.eos_id(),
        "pad": encoder.pad_id().ok(),
    })
}

fn set_value(local: &LocalInputs, set: &LocalSet) -> Value {
    let summary = local.summaries.iter().find(|summary| summary.name == set.name);
    let file = |file: &v1::DataFileSummary| json!({ "name": file.name, "format": file.format, "rows": file.rows, "bad_rows": file.bad_rows });
    let files: Vec<_> = summary.into_iter().flat_map(|summary| &summary.files).map(file).collect();
    let sources = summary.map(|summary| summary.sources.clone()).unwrap_or_default();
    json!({
        "name": set.name,
        "rows": set.rows.len(),
        "bad_rows": summary.map_or(0, |summary| summary.bad_rows),
        "files": files,
        "sources": sources,
        "ignored_columns": summary.map(|summary| summary.ignored_columns.clone()).unwrap_or_default(),
    })
}

/// Scans the local weights for NaN and infinity.
fn scan_weights(local: &LocalInputs) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (field, weights) in &local.weights {
        let mut bytes = 0;
        weights.scan(&mut |moved| bytes += moved).with_context(|| (*field).to_owned())?;
        lines.push(format!(
            "{field}: all numbers of {:.1} MiB of weights are finite",
            bytes as f64 / 1048576.0
        ));
    }
    Ok(lines)
}

fn named_token(encoder: &Encoder, id: Option<u32>) -> String {
    match id {
        None => "none".to_owned(),
        Some(id) => format!("{id} {:?}", encoder.token(id).unwrap_or_default()),
    }
}

fn model(role: &str, name: &str, encoder: &Encoder) -> String {
    let token = |id| named_token(encoder, id);
    format!(
        "{role} {name}: {} token ids; BOS {}; EOS {}; pad {}",
        encoder.vocabulary(),
        token(encoder.bos_id()),
        token(Some(encoder.eos_id())),
        token(encoder.pad_id().ok())
    )
}

fn heading(local: &LocalInputs, set: &LocalSet) -> String {
    let bad =
        local.summaries.iter().find(|summary| summary.name == set.name).map_or(0, |found| found.bad_rows);
    let rows = counted(set.rows.len(), "row");
    match bad {
        0 => format!("{}: {rows}", set.name),
        bad => format!("{}: {rows}, {} dropped", set.name, counted(bad, "bad row")),
    }
}

/// The files that the set was read from; none for a set that was held out of another.
fn files(local: &LocalInputs, set: &LocalSet) -> Vec<String> {
    let summary = local.summaries.iter().find(|summary| summary.name == set.name);
    let files = summary.into_iter().flat_map(|summary| &summary.files);
    files
        .map(|file| {
            let bad =
                if file.bad_rows > 0 { format!(", {} of them bad", file.bad_rows) } else { String::new() };
            format!("  {}: {}, {}{bad}", file.name, file.format, counted(file.rows, "row"))
        })
        .collect()
}

/// How many of the set's rows come from each source, if its files do not already show that.
fn sources(local: &LocalInputs, set: &LocalSet) -> Vec<String> {
    let summary = local.summaries.iter().find(|summary| summary.name == set.name);
    let sources = summary.map(|summary| summary.sources.as_slice()).unwrap_or_default();
    let told = sources.len() > 1 || sources.iter().any(|source| !source.dropped.is_empty());
    sources
        .iter()
        .filter(|_| told)
        .map(|source| format!("  {}", report::source(source, set.rows.len())))
        .collect()
}

/// Ignored columns of the files.
fn ignored_columns(local: &LocalInputs, set: &LocalSet) -> Option<String> {
    let summary = local.summaries.iter().find(|summary| summary.name == set.name)?;
    (!summary.ignored_columns.is_empty())
        .then(|| format!("  ignored columns: {}", summary.ignored_columns.join(", ")))
}

#[cfg(test)]
mod tests;
