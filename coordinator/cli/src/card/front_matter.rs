//! The metadata of a model card, as the Hugging Face Hub reads it: YAML between two lines of dashes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use foil_common::plural::counted;
use foil_common::spec;

use super::escape::yaml;
use super::names::{data_set, repository};
use super::provenance::data_files;
use super::{Card, evaluation};

/// Placeholder that the user has to fill in.
const LICENSE: &str = "\
# TODO before you publish: the license. Foil does not know it: it follows from those of the base model and of the data.
# Write for example `license: apache-2.0`, or `license: other` with `license_name` and `license_link`.
# license:
";

/// The whole block.
pub(super) fn block(card: &Card<'_>) -> String {
    let made = card.made;
    let (is_reward, job) = (made.is_reward(), made.spec());
    let mut text = format!("---\n{LICENSE}");
    let relation = if card.adapter.is_some() { "adapter" } else { "finetune" };
    match card.base_repository() {
        Some(base) if base.contains('/') => {
            let _ = write!(text, "base_model: {}\nbase_model_relation: {relation}\n", yaml(&base));
        }
        Some(base) => {
            let _ = write!(
                text,
                "# TODO before you publish: the base model's name on the Hub, with its owner.\n\
                 # base_model: OWNER/{base}\n# base_model_relation: {relation}\n"
            );
        }
        None => {}
    }
    // A name without an owner is a local folder or file; on the Hub it might belong to anyone.
    let sets: BTreeSet<String> = job
        .iter()
        .flat_map(data_files)
        .filter_map(|file| repository(data_set(&file.name)))
        .filter(|name| name.contains('/'))
        .collect();
    list(&mut text, "datasets", sets.iter().map(|name| yaml(name)));
    text += if card.adapter.is_some() { "library_name: peft\n" } else { "library_name: transformers\n" };
    text += if is_reward { "pipeline_tag: text-classification\n" } else { "pipeline_tag: text-generation\n" };
    list(&mut text, "tags", tags(card, job.as_ref()).into_iter().map(|tag| yaml(&tag)));
    if is_reward {
        list(&mut text, "metrics", ["accuracy".to_owned()]);
    }
    text += &model_index(card);
    text += "---\n";
    text
}

fn list(text: &mut String, name: &str, items: impl IntoIterator<Item = String>) {
    let items: String = items.into_iter().map(|item| format!("- {item}\n")).collect();
    if !items.is_empty() {
        let _ = write!(text, "{name}:\n{items}");
    }
}

fn tags(card: &Card<'_>, job: Option<&spec::Job>) -> Vec<String> {
    let mut tags = vec!["foil".to_owned(), "adversarial-preference-optimization".to_owned()];
    match (card.made.is_reward(), job) {
        (true, Some(job)) => {
            tags.extend(["reward-model".to_owned(), job.reward_step.loss.name().replace('_', "-")]);
        }
        (true, None) => tags.push("reward-model".to_owned()),
        (false, Some(job)) => tags.push(job.policy_step.method.name().replace('_', "-")),
        (false, None) => {}
    }
    if card.adapter.is_some() {
        tags.push("lora".to_owned());
    }
    tags.push("arxiv:2311.08045".to_owned());
    tags
}

/// The figures in the form that the Hub's result tables read. An error is a separate figure, named after the
/// one it belongs to.
fn model_index(card: &Card<'_>) -> String {
    let made = card.made;
    let figures = evaluation::of_model(made);
    let sets = evaluation::measured_on(made);
    if figures.is_empty() || sets.is_empty() {
        return String::new();
    }
    let task = if made.is_reward() { "text-classification" } else { "text-generation" };
    let names: Vec<&str> = sets.iter().map(|(name, _)| name.as_str()).collect();
    let rows: Vec<String> =
        sets.iter().map(|(name, rows)| format!("{name}, {}", counted(*rows, "row"))).collect();
    let mut text = format!(
        "model-index:\n- name: {}\n  results:\n  - task:\n      type: {task}\n    dataset:\n      type: {}\n      name: {}\n    metrics:\n",
        yaml(&card.title()),
        yaml(&names.join("+")),
        yaml(&format!("{} of job {}", rows.join("; "), made.job.name)),
    );
    for figure in figures {
        let mut metric = |suffix: &str, what: &str, value: f64| {
            let _ = write!(
                text,
                "    - type: {}\n      name: {}\n      value: {value}\n",
                yaml(&format!("{}{suffix}", figure.metric)),
                yaml(&format!("{}{what}", figure.what)),
            );
        };
        metric("", "", figure.value);
        if let Some(se) = figure.se {
            metric("_stderr", ", standard error", se);
        }
        if let Some((low, high)) = figure.interval {
            metric("_ci95_low", ", 95 % interval from", low);
            metric("_ci95_high", ", 95 % interval to", high);
        }
    }
    text
}
