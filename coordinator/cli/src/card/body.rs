//! The text of a model card below its metadata.

use std::fmt::Write as _;

use foil_common::plural::counted;
use foil_common::spec;
use foil_coordinator::job::alarms;
use foil_proto::v1;

use super::escape::{fenced, markdown, name};
use super::names::Base;
use super::provenance::data_files;
use super::{Card, evaluation};
use crate::report;
use crate::throughput::duration;

/// Everything below the metadata, one section after the other.
pub(super) fn text(card: &Card<'_>) -> String {
    let job = card.made.spec();
    let mut text = format!("\n# {}\n\n{}\n", markdown(&card.title()), lead(card, job.as_ref()));
    let sections = [
        ("How to use it", usage(card)),
        ("Evaluation", results(card)),
        ("How it was made", making(card, job.as_ref())),
        ("Limits", limits(card, job.as_ref())),
        ("Settings", settings(card)),
        ("Files", files(card)),
    ];
    for (heading, section) in sections {
        if !section.is_empty() {
            let _ = write!(text, "\n## {heading}\n\n{}\n", section.trim_end());
        }
    }
    text
}

fn lead(card: &Card<'_>, job: Option<&spec::Job>) -> String {
    let made = card.made;
    let (round, rounds) = (made.artifact.round, job.map_or(0, |job| job.rounds));
    let of = match round {
        0 => "before round 1, after its supervised fine-tuning".to_owned(),
        round => format!("in round {round} of {rounds}"),
    };
    let best = match round > 0 && round == made.job.best_round && !made.is_reward() {
        true => ", its best by the evaluation",
        false => "",
    };
    let what = if made.is_reward() { "A reward model" } else { "A language model" };
    let form = if card.adapter.is_some() { " This folder holds the low-rank adapter alone." } else { "" };
    format!(
        "{what} that the job {} trained by Adversarial Preference Optimization \
         ([arXiv 2311.08045](https://arxiv.org/abs/2311.08045)) {of}{best}. A reward model and a language model are trained \
         against each other, so that the reward model keeps up with what the language model now says.{form}",
        name(&made.job.name)
    )
}

const POLICY_CODE: &str = r#"from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or the repository that it is uploaded to
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
"#;

const REWARD_CODE: &str = r#"import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder, or the repository that it is uploaded to
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
"#;

const GENERATE: &str = r#"
messages = [{"role": "user", "content": "…"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, do_sample=True, {temperature}max_new_tokens=LENGTH)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"#;

const SCORE: &str = r#"
messages = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
with torch.no_grad():
    reward = model(**inputs).logits[0, 0]  # the higher, the better
"#;

fn usage(card: &Card<'_>) -> String {
    let is_reward = card.made.is_reward();
    let job = card.made.spec();
    let load = match &card.adapter {
        None if is_reward => REWARD_CODE.to_owned(),
        None => POLICY_CODE.to_owned(),
        Some(base) => adapter_code(is_reward, &base.name),
    };
    let temperature = job.as_ref().map(|job| job.sampling.temperature).filter(|value| *value > 0.0);
    let temperature = temperature.map(|value| format!("temperature={value}, ")).unwrap_or_default();
    let length = job.as_ref().map_or(128, |job| job.sampling.max_new_tokens).to_string();
    let use_it = match is_reward {
        true => SCORE.to_owned(),
        false => GENERATE.replace("{temperature}", &temperature).replace("LENGTH", &length),
    };
    let mut text = fenced("python", &format!("{load}{use_it}"));
    text += "\n\nThe tokenizer's chat template renders the tokens of training.";
    if is_reward {
        text += " A reward has no unit and no zero of its own: only differences between answers to the same prompt mean something.";
    }
    text
}

fn adapter_code(is_reward: bool, base: &str) -> String {
    let class = if is_reward { "AutoModelForSequenceClassification" } else { "AutoModelForCausalLM" };
    let (torch, labels) = if is_reward { ("import torch\n", ", num_labels=1") } else { ("", "") };
    let base = serde_json::Value::from(base);
    format!(
        "{torch}from peft import PeftModel\nfrom transformers import {class}, AutoTokenizer\n\n\
         folder = \".\"  # this folder, or the repository that it is uploaded to\n\
         tokenizer = AutoTokenizer.from_pretrained(folder)\n\
         base = {class}.from_pretrained({base}{labels})\n\
         model = PeftModel.from_pretrained(base, folder)\n"
    )
}

fn results(card: &Card<'_>) -> String {
    let made = card.made;
    let mut text = evaluation::table(made);
    text += &measured(card);
    if !made.is_reward()
        && let Some(best) = report::best(&made.job).filter(|best| best.round == made.artifact.round)
    {
        let _ = write!(text, "\nThis round was selected {}.\n", best.text());
    }
    let cells = report::cells(&made.job, " ± ");
    if made.job.rounds.len() > 1 {
        text += "\nAll rounds, with standard errors; `*` is the best one:\n\n";
        text += &markdown_table(&cells);
    }
    text
}

/// The rows that the figures were measured on, and what is known about their prompts.
fn measured(card: &Card<'_>) -> String {
    let (made, job) = (card.made, card.made.spec());
    let sets = evaluation::measured_on(made);
    if sets.is_empty() {
        return String::new();
    }
    let of = |(set, rows): &(String, u64)| {
        let kl = evaluation::kl_rows(made, job.as_ref()).filter(|kl| kl < rows);
        let kl = kl.map(|kl| format!("; KL: the first {kl}")).unwrap_or_default();
        format!("{} ({}{kl})", name(set), counted(*rows, "row"))
    };
    let apart = |(set, _): &(String, u64)| {
        let origin = evaluation::held_out_of(set, job.as_ref()?)?;
        Some(format!(" No prompt of {} is in {}.", name(set), name(origin)))
    };
    let apart: Vec<String> = sets.iter().filter_map(apart).collect();
    // A set that the job names may contain training rows, too.
    let rows = if apart.len() == sets.len() {
        "whose rows were held out of training"
    } else {
        "kept for evaluation"
    };
    let other = if apart.is_empty() { "" } else { "other " };
    let found: Vec<String> =
        warnings(made, |warning| evaluation::is_about(warning, &sets)).map(|line| line + "\n").collect();
    let shared = match found.is_empty() {
        true => format!(" Their prompts may be in {other}training sets too."),
        false => String::new(),
    };
    let mut text = format!(
        "\nMeasured on {}, {rows}.{}{shared} Intervals are the mean ± 1.96 standard errors, for rates Wilson's; rows of one \
         prompt are one cluster.\n",
        sets.iter().map(of).collect::<Vec<_>>().join(", "),
        apart.concat(),
    );
    if !found.is_empty() {
        let _ = write!(text, "\nThe submission of the job found about them:\n\n{}", found.concat());
    }
    text
}

/// The submission's warnings that satisfy `wanted`, as list items.
fn warnings(made: &super::Provenance, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = String> {
    let wanted = made.job.warnings.iter().filter(move |warning| wanted(warning));
    wanted.map(|warning| format!("- {}", markdown(warning)))
}

fn markdown_table(cells: &[Vec<String>]) -> String {
    let mut lines = Vec::new();
    for (index, row) in cells.iter().enumerate() {
        let row: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|").replace('*', "\\*")).collect();
        lines.push(format!("| {} |", row.join(" | ")));
        if index == 0 {
            lines.push(format!("|{}", "---|".repeat(row.len())));
        }
    }
    lines.join("\n") + "\n"
}

fn making(card: &Card<'_>, job: Option<&spec::Job>) -> String {
    let made = card.made;
    let mut rows: Vec<(&str, String)> = Vec::new();
    if let Some(base) = made.base() {
        rows.push(("started from", base_text(&base, card)));
    }
    if let Some(job) = job {
        rows.push((
            "policy method",
            format!(
                "{}, {} a prompt",
                name(job.policy_step.method.name()),
                counted(job.policy_step.samples, "sample")
            ),
        ));
        rows.push((
            "reward loss",
            format!(
                "{}, {} a golden answer",
                name(job.reward_step.loss.name()),
                counted(job.reward_step.samples, "sample")
            ),
        ));
        rows.push(("rounds", format!("{} of {}", made.artifact.round, job.rounds)));
        rows.push(("seed", job.seed.to_string()));
        let lora = if made.is_reward() { &job.reward_step.lora } else { &job.policy_step.lora };
        if let Some(lora) = lora {
            let targets: Vec<String> = lora.target_modules.iter().map(ToString::to_string).collect();
            rows.push((
                "LoRA",
                format!("rank {} a round, alpha {}, on {}", lora.rank, lora.alpha, targets.join(", ")),
            ));
        }
        rows.push(("ran on", hardware(card, job)));
    }
    if let Some(seconds) = seconds(&made.job) {
        rows.push(("took", format!("{} for all rounds", duration(seconds))));
    }
    rows.push(("job", format!("{}, id {}", name(&made.job.name), name(&made.job.id))));
    rows.push(("artifact", name(&made.artifact.name)));
    if !made.job.spec_blake3.is_empty() {
        rows.push(("BLAKE3 of its settings", name(&made.job.spec_blake3)));
    }
    let build = if made.build.is_empty() { String::new() } else { format!(", build {}", name(&made.build)) };
    rows.push(("made with", format!("Foil {}{build}", name(&made.version))));
    let mut text = String::from("| | |\n|---|---|\n");
    for (what, value) in rows {
        let _ = writeln!(text, "| {what} | {value} |");
    }
    text + &data(made, job)
}

fn base_text(base: &Base, card: &Card<'_>) -> String {
    let is_reward = card.made.is_reward();
    let head = if is_reward { "; the reward model's head is its own" } else { "" };
    let sft = if card.made.has_sft { ", fine-tuned on demonstrations before round 1" } else { "" };
    match base {
        Base::Model(model) => format!("{}{sft}{head}", name(model)),
        Base::Artifact { job, artifact } => format!("{} of the job {}{sft}{head}", name(artifact), name(job)),
        Base::Random(model) => {
            format!("weights drawn from the seed, in the shape of {}{sft}{head}", name(model))
        }
    }
}

fn hardware(card: &Card<'_>, job: &spec::Job) -> String {
    let resources = &job.resources;
    let mut text = format!(
        "{} on {}, {} matrix products",
        counted(resources.ranks, "rank"),
        resources.device,
        resources.precision
    );
    for device in &card.made.hardware {
        let _ = write!(text, "; {}", markdown(device));
    }
    text
}

fn seconds(job: &v1::Job) -> Option<f64> {
    let (from, to) = (job.started_at.as_ref()?, job.ended_at.as_ref()?);
    Some((to.seconds - from.seconds).max(0) as f64)
}

/// The data, by set and file.
fn data(made: &super::Provenance, job: Option<&spec::Job>) -> String {
    let mut text = String::from("\n### Data\n\n");
    let sets = made.job.plan.iter().flat_map(|plan| &plan.datasets);
    let rows: Vec<String> = sets.map(|set| format!("| {} | {} |\n", name(&set.name), set.rows)).collect();
    if rows.is_empty() {
        return String::new();
    }
    text += "| set | rows |\n|---|---:|\n";
    text += &rows.concat();
    if let Some(generator) = job.and_then(|job| job.data.generator.as_ref()) {
        let _ = write!(
            text,
            "\nThe sets are generated from the seed (`{}`), not read from files.\n",
            generator.name
        );
    }
    let files = job.map(data_files).unwrap_or_default();
    if !files.is_empty() {
        text += "\n| field | file | BLAKE3 |\n|---|---|---|\n";
        for file in files {
            let hash = file.blake3.map_or_else(|| "–".to_owned(), |hash| name(&hash));
            let _ = writeln!(text, "| `data.{}` | {} | {hash} |", file.set, name(&file.name));
        }
    }
    let measured = evaluation::measured_on(made);
    let found: Vec<String> = warnings(made, |warning| !evaluation::is_about(warning, &measured)).collect();
    if !found.is_empty() {
        let _ = write!(text, "\nThe submission of the job warned of this:\n\n{}\n", found.join("\n"));
    }
    text
}

fn limits(card: &Card<'_>, job: Option<&spec::Job>) -> String {
    let made = card.made;
    let mut limits = vec![
        "Its figures are of the sets above. They say nothing about other prompts, and nothing about truth, safety or bias, \
         which were not measured."
            .to_owned(),
    ];
    if !made.is_reward() {
        limits.push(
            "It was trained to please a reward model, and its rewards are by such a model: a policy can learn to fool it. Only a \
             gold reward or people's judgment of its answers can tell. Rewards of different rounds are not comparable."
                .to_owned(),
        );
    } else {
        limits.push(
            "It was trained on answers of this job's policies and on this job's pairs; on answers of other models its rewards \
             are extrapolation."
                .to_owned(),
        );
    }
    if let Some(job) = job {
        limits.push(format!(
            "Texts of more than {} tokens were cut in training, on the {} of the prompt.",
            job.text.max_length, job.text.truncation_side
        ));
        if job.controls.swap_preferences {
            limits.push(
                "It is a negative control: its reward models were trained with preferences exchanged."
                    .to_owned(),
            );
        }
        if job.controls.select_worst {
            limits.push(
                "It is a negative control: its policies were trained on the worst completions.".to_owned(),
            );
        }
    }
    let round = format!("round {}: ", made.artifact.round);
    let warned = alarms(&made.job).into_iter().filter(|alarm| alarm.starts_with(&round));
    limits.extend(warned.map(|alarm| format!("Warning of the evaluation: {}.", markdown(&alarm))));
    limits.push(
        "The license is that of the base model and of the data, and is for whoever publishes it to state."
            .to_owned(),
    );
    limits.iter().map(|limit| format!("- {limit}\n")).collect()
}

fn settings(card: &Card<'_>) -> String {
    let Some(spec) = &card.made.job.spec else { return String::new() };
    let Ok(yaml) = serde_norway::to_string(spec) else { return String::new() };
    format!(
        "All settings of the job, with every default filled in. Inputs are named by their BLAKE3. The same job on the same \
         version of Foil and kind of device gives the same weights, bit by bit, on CPUs and with `resources.deterministic` on \
         GPUs.\n\n{}\n",
        fenced("yaml", &yaml)
    )
}

fn files(card: &Card<'_>) -> String {
    if card.files.is_empty() {
        return String::new();
    }
    let mut text = String::from("| file | bytes | BLAKE3 |\n|---|---:|---|\n");
    for file in &card.files {
        let _ = writeln!(text, "| {} | {} | {} |", name(&file.name), file.size, name(&file.blake3));
    }
    text
}
