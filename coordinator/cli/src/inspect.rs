//! `foil inspect`: a job's data as the models will read it.

use anyhow::{Context, Result};
use foil_common::data::rows::{Prompt, Row};
use foil_common::spec;
use foil_common::text::inspect::{self, Reader};
use foil_common::text::{Encoder, Limits, TextError};
use serde_json::{Map, Value, json};

use super::args::InspectArgs;
use super::{output, stdout, submit};
use foil_coordinator::resolve::local::{self, LocalInputs, LocalSet, Rows};

pub(crate) async fn inspect(args: &InspectArgs) -> Result<()> {
    let job = submit::load(&args.job.file, &args.job.settings)?;
    let (rows, scan) = (args.rows, args.scan_weights);
    let reading = tokio::task::spawn_blocking(move || describe(&job, rows, scan));
    let inspection = reading.await.context("reading the inputs was aborted")??;
    for warning in &inspection.warnings {
        stdout::note(&format!("warning: {warning}"));
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

/// A job's data as text and as JSON, and the warnings of submission.
struct Inspection {
    text: String,
    value: Value,
    warnings: Vec<String>,
}

fn describe(job: &spec::Job, rows: usize, scan: bool) -> Result<Inspection> {
    let local = local::local(job)?;
    let scanned = if scan { scan_weights(&local)? } else { Vec::new() };
    let sampled = Limits::new(job.text.max_length, job.sampling.max_new_tokens);
    let shared = Limits::shared(job.text.max_length);
    let mut lines = vec![model("policy", &job.policy.model.name(), &local.policy)];
    let mut models = vec![model_value("policy", &job.policy.model.name(), &local.policy)];
    if let (Some(encoder), Some(reference)) = (&local.reward, &job.reward.model) {
        lines.push(model("reward", &reference.name(), encoder));
        models.push(model_value("reward", &reference.name(), encoder));
    }
    lines.extend(scanned);
    lines.push(format!(
        "template {}; at most {} tokens, of which {} are kept for a completion",
        job.text.template, shared.total, sampled.response
    ));
    let mut sets = Vec::new();
    for set in &local.sets {
        lines.push(String::new());
        lines.push(heading(&local, set));
        lines.extend(ignored_columns(&local, set));
        let limits = match set.rows {
            Rows::Demonstrations(_) | Rows::Pairs(_) => shared,
            Rows::Golden(_) | Rows::Prompts(_) => sampled,
        };
        let mut value = set_value(&local, set);
        let mut report = Report { limits, rows, lines: &mut lines, lengths: Map::new(), shown: Vec::new() };
        report.set(&local, set)?;
        (value["lengths"], value["shown"]) = (Value::Object(report.lengths), Value::Array(report.shown));
        sets.push(value);
    }
    let value = json!({
        "name": job.name.to_string(),
        "models": models,
        "template": job.text.template.to_string(),
        "max_length": shared.total,
        "completion_tokens": sampled.response,
        "sets": sets,
        "warnings": local.warnings,
    });
    Ok(Inspection { text: lines.join("\n"), value, warnings: local.warnings })
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
    json!({
        "name": set.name,
        "rows": set.rows.len(),
        "bad_rows": summary.map_or(0, |summary| summary.bad_rows),
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

fn model(role: &str, name: &str, encoder: &Encoder) -> String {
    let token = |id: Option<u32>| match id {
        None => "none".to_owned(),
        Some(id) => format!("{id} {:?}", encoder.token(id).unwrap_or_default()),
    };
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
    match bad {
        0 => format!("{}: {} rows", set.name, set.rows.len()),
        bad => format!("{}: {} rows, {bad} bad rows dropped", set.name, set.rows.len()),
    }
}

/// Ignored columns of the files.
fn ignored_columns(local: &LocalInputs, set: &LocalSet) -> Option<String> {
    let summary = local.summaries.iter().find(|summary| summary.name == set.name)?;
    (!summary.ignored_columns.is_empty())
        .then(|| format!("  ignored columns: {}", summary.ignored_columns.join(", ")))
}

struct Report<'a> {
    limits: Limits,
    rows: usize,
    lines: &'a mut Vec<String>,
    /// The same for programs.
    lengths: Map<String, Value>,
    shown: Vec<Value>,
}

impl Report<'_> {
    fn set(&mut self, local: &LocalInputs, set: &LocalSet) -> Result<(), TextError> {
        let reward = local.reward.as_ref().unwrap_or(&local.policy);
        match &set.rows {
            Rows::Demonstrations(rows) => {
                let encoder = &local.policy;
                self.prompts(encoder, rows)?;
                let answers = rows.iter().map(|row| (&row.prompt, row.answer.as_str()));
                self.note("answers", inspect::response_lengths(encoder, answers, self.limits)?);
                self.each(encoder, Reader::Policy, rows, |row| vec![("answer", row.answer.as_str())])
            }
            Rows::Pairs(rows) => {
                self.prompts(reward, rows)?;
                let chosen = rows.iter().map(|row| (&row.prompt, row.chosen.as_str()));
                self.note("chosen", inspect::response_lengths(reward, chosen, self.limits)?);
                let rejected = rows.iter().map(|row| (&row.prompt, row.rejected.as_str()));
                self.note("rejected", inspect::response_lengths(reward, rejected, self.limits)?);
                let accuracy = inspect::length_accuracy(reward, rows, self.limits)?;
                self.lengths.insert("accuracy_of_length".to_owned(), json!(accuracy));
                self.lines.push(format!("  {accuracy}"));
                self.each(reward, Reader::Reward, rows, |row| {
                    vec![("chosen", &row.chosen), ("rejected", &row.rejected)]
                })
            }
            Rows::Golden(rows) => {
                self.prompts(reward, rows)?;
                self.note("golden answers", inspect::golden_lengths(reward, rows, self.limits)?);
                self.each(reward, Reader::Reward, rows, |row| vec![("golden", &row.golden)])
            }
            Rows::Prompts(rows) => {
                self.prompts(&local.policy, rows)?;
                self.each(&local.policy, Reader::Policy, rows, |_| Vec::new())
            }
        }
    }

    fn note(&mut self, what: &str, lengths: inspect::Lengths) {
        self.lines.push(format!("  {what}: {lengths}"));
        self.lengths.insert(what.replace(' ', "_"), json!(lengths));
    }

    fn prompts<T: Row>(&mut self, encoder: &Encoder, rows: &[T]) -> Result<(), TextError> {
        let lengths = inspect::prompt_lengths(encoder, rows.iter().map(Row::prompt), self.limits)?;
        self.note("prompts", lengths);
        Ok(())
    }

    /// The first rows token by token, once with each response.
    fn each<T: Row>(
        &mut self,
        encoder: &Encoder,
        reader: Reader,
        rows: &[T],
        answers: impl Fn(&T) -> Vec<(&'static str, &str)>,
    ) -> Result<(), TextError> {
        for row in rows.iter().take(self.rows) {
            let answers = answers(row);
            if answers.is_empty() {
                self.row(encoder, &format!("row {}", row.id()), row.prompt(), None)?;
            }
            for (name, answer) in answers {
                self.row(
                    encoder,
                    &format!("row {}, {name}", row.id()),
                    row.prompt(),
                    Some((reader, answer)),
                )?;
            }
        }
        Ok(())
    }

    fn row(
        &mut self,
        encoder: &Encoder,
        title: &str,
        prompt: &Prompt,
        answer: Option<(Reader, &str)>,
    ) -> Result<(), TextError> {
        let view = inspect::row(encoder, prompt, answer, self.limits)?;
        self.lines.push(format!("  {title}:\n{view}"));
        self.shown.push(json!({ "title": title, "view": view }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foil_common::spec::file;
    use std::fs;
    use std::path::Path;

    /// A job on the letters model with the given data lines.
    fn job(dir: &Path, golden: &str) -> spec::Job {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/jobs/letters");
        let pairs = ["abcde", "bcdef", "cdefg"].map(|prompt| {
            format!("{{\"prompt\":\"{prompt}\",\"chosen\":\"{prompt}!!\",\"rejected\":\"w\"}}\n")
        });
        fs::write(dir.join("pairs.jsonl"), pairs.concat()).unwrap();
        fs::write(dir.join("golden.jsonl"), golden).unwrap();
        let text = format!(
            "name: look\npolicy: {{ model: {} }}\ntext: {{ max_length: 32 }}\nsampling: {{ max_new_tokens: 16 }}\n\
             data: {{ preferences: [pairs.jsonl], golden: [golden.jsonl], prompts: [pairs.jsonl], max_bad_fraction: 0.5 }}\n",
            model.display()
        );
        fs::write(dir.join("job.yaml"), text).unwrap();
        spec::Job::try_from(file::load(&dir.join("job.yaml"), &[]).unwrap()).unwrap()
    }

    #[test]
    fn a_report_shows_every_set_with_tokens_and_lengths() {
        let dir = tempfile::tempdir().unwrap();
        let golden = "{\"prompt\":\"efgha\",\"golden\":\"efgha!!\"}\n{\"prompt\":\"abcdh\",\"golden\":\"h!!dcba\"}\n{}\n";
        let Inspection { text: report, value, warnings } =
            describe(&job(dir.path(), golden), 1, false).unwrap();
        for expected in [
            "17 token ids; BOS 1 \"<s>\"; EOS 3 \"</s>\"; pad 0 \"<pad>\"",
            "template auto; at most 32 tokens, of which 16 are kept for a completion",
            "preferences: 2 rows\n",
            "evaluation_preferences: 1 rows\n",
            "length alone (the longer response) predicts 100.0 ± 0.0 % of 2 pairs",
            "golden: 1 rows, 1 bad rows dropped\n",
            "golden answers: 1 of 1 fit 16 tokens",
            "chosen:\n    0       1 \"<s>\"\n",
            "\"</s>\"                   reward\n      15 tokens: prompt 7, response 8 with EOS",
            "7 tokens: prompt 7, response 0",
        ] {
            assert!(report.contains(expected), "{expected}\n\n{report}");
        }
        assert!(warnings.iter().any(|warning| warning.contains("golden.jsonl:3")), "{warnings:?}");
        let set =
            |name: &str| value["sets"].as_array().unwrap().iter().find(|set| set["name"] == name).unwrap();
        let golden = set("golden");
        assert_eq!((&golden["rows"], &golden["bad_rows"]), (&json!(1), &json!(1)));
        assert_eq!(
            (&golden["lengths"]["golden_answers"]["fit"], &value["models"][0]["bos"]),
            (&json!(1), &json!(1))
        );
        let shown = &set("preferences")["shown"][0]["view"];
        assert_eq!((&shown["tokens"][0]["text"], &shown["response_start"]), (&json!("<s>"), &json!(7)));
        assert_eq!(shown["tokens"][14]["read"], "reward");
    }

    #[test]
    fn unreadable_inputs_are_named_by_their_fields() {
        let dir = tempfile::tempdir().unwrap();
        let job = job(dir.path(), "{}");
        let error = describe(&job, 1, true).err().unwrap().to_string();
        assert!(error.starts_with("data.golden: ") && error.contains("golden.jsonl:1"), "{error}");
        fs::remove_file(dir.path().join("golden.jsonl")).unwrap();
        let error = describe(&job, 1, true).err().unwrap().to_string();
        assert!(error.starts_with("data.golden: ") && error.contains("cannot be read"), "{error}");
    }
}
