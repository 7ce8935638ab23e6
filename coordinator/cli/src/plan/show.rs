//! A plan as text and as JSON.

use foil_common::memory::{Head, ModelShape};
use foil_common::spec::{self, Sharding};
use serde_json::{Map, Value, json};

use super::Planned;
use super::memory::Kind;
use super::phases::Phases;
use crate::report;
use foil_common::plural::{counted, grouped};

/// Labels of the parts of an estimate.
const LABELS: [(&str, &str); 10] = [
    ("weights", "weights"),
    ("copies", "copies for products"),
    ("gradients", "gradients, fp32"),
    ("optimizer", "AdamW state"),
    ("activations", "activations"),
    ("logits", "logits"),
    ("kv_cache", "KV cache"),
    ("working", "working memory"),
    ("snapshot", "checkpoint"),
    ("reserve", "CUDA, NCCL"),
];

/// The unit of bytes of a table.
#[derive(Clone, Copy)]
struct Unit {
    name: &'static str,
    bytes: f64,
}

impl Unit {
    fn of(largest: u64) -> Self {
        match largest >= 1 << 30 {
            true => Self { name: "GiB", bytes: f64::from(1 << 30) },
            false => Self { name: "MiB", bytes: f64::from(1 << 20) },
        }
    }

    fn number(self, bytes: u64) -> String {
        format!("{:.2}", bytes as f64 / self.bytes)
    }

    fn amount(self, bytes: u64) -> String {
        format!("{} {}", self.number(bytes), self.name)
    }
}

pub(super) fn text(planned: &Planned, device: Option<u64>) -> String {
    let kinds = &planned.memory.kinds;
    let unit = Unit::of(kinds.iter().map(|kind| kind.estimate.total()).max().unwrap_or(0));
    let mut parts = vec![phases(&planned.phases), models(planned), table(kinds, unit, device)];
    parts.extend(pinned(kinds, unit));
    parts.extend(other_checkpointing(&planned.job, kinds, unit));
    parts.extend(device.map(|size| verdict(planned, unit, size)));
    parts.join("\n\n")
}

fn phases(phases: &Phases) -> String {
    let mut rows = vec![["PHASE", "KIND", "WORK"].map(str::to_owned).to_vec()];
    rows.extend(
        phases
            .list
            .iter()
            .map(|phase| vec![phase.id.to_string(), phase.work.kind().to_owned(), phases.work(phase)]),
    );
    report::align(&rows)
}

fn models(planned: &Planned) -> String {
    let (job, resources) = (&planned.job, &planned.job.resources);
    let model = |role: &str, shape: &ModelShape, head| {
        format!("{role}: {} parameters", grouped(shape.parameters(head)))
    };
    let checkpointing = if resources.activation_checkpointing { ", activation checkpointing" } else { "" };
    [
        model("policy", &planned.memory.policy, Head::Language),
        model("reward model", &planned.memory.reward, Head::Reward),
        format!(
            "{} on {}, {}, {}{checkpointing}; micro-batches of {} tokens (reward epoch) and {} (policy epoch)",
            counted(resources.ranks, "rank"),
            resources.device,
            resources.precision,
            resources.sharding,
            job.reward_step.optimizer.micro_batch_tokens,
            job.policy_step.optimizer.micro_batch_tokens
        ),
    ]
    .join("\n")
}

fn table(kinds: &[Kind], unit: Unit, device: Option<u64>) -> String {
    let mut rows = vec![line(&format!("{} PER RANK", unit.name), kinds, |kind| kind.name.to_owned())];
    for (part, label) in LABELS {
        let of = |kind: &Kind| {
            kind.estimate.parts().into_iter().find(|(name, _)| *name == part).map_or(0, |(_, b)| b)
        };
        if kinds.iter().any(|kind| of(kind) > 0) {
            rows.push(line(label, kinds, |kind| match of(kind) {
                0 => "-".to_owned(),
                bytes => unit.number(bytes),
            }));
        }
    }
    rows.push(line("total", kinds, |kind| unit.number(kind.estimate.total())));
    if let Some(size) = device {
        let percent = |kind: &Kind| format!("{:.0} %", 100.0 * kind.estimate.total() as f64 / size as f64);
        rows.push(line(&format!("of {}", unit.amount(size)), kinds, percent));
    }
    right_aligned(&rows)
}

fn line(label: &str, kinds: &[Kind], cell: impl Fn(&Kind) -> String) -> Vec<String> {
    std::iter::once(label.to_owned()).chain(kinds.iter().map(cell)).collect()
}

/// Columns of equal width, the first left-aligned and the numbers right-aligned.
fn right_aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let cell = |(index, (cell, width)): (usize, (&String, &usize))| match index {
        0 => format!("{cell:<width$}"),
        _ => format!("{cell:>width$}"),
    };
    let lines =
        rows.iter().map(|row| row.iter().zip(&widths).enumerate().map(cell).collect::<Vec<_>>().join("  "));
    lines.collect::<Vec<_>>().join("\n")
}

/// A rank's pinned host memory.
fn pinned(kinds: &[Kind], unit: Unit) -> Option<String> {
    let of = |kind: &Kind| {
        (kind.estimate.pinned > 0).then(|| format!("{} {}", kind.name, unit.amount(kind.estimate.pinned)))
    };
    let parts: Vec<String> = kinds.iter().filter_map(of).collect();
    (!parts.is_empty()).then(|| format!("host memory of a rank for its checkpoints: {}", parts.join(", ")))
}

/// Activations with the other setting of checkpointing.
fn other_checkpointing(job: &spec::Job, kinds: &[Kind], unit: Unit) -> Option<String> {
    let other = if job.resources.activation_checkpointing { "without" } else { "with" };
    let of = |kind: &Kind| Some(format!("{} {}", kind.name, unit.amount(kind.other_activations?)));
    let parts: Vec<String> = kinds.iter().filter_map(of).collect();
    (!parts.is_empty()).then(|| format!("activations {other} activation_checkpointing: {}", parts.join(", ")))
}

fn verdict(planned: &Planned, unit: Unit, size: u64) -> String {
    let (job, kinds) = (&planned.job, &planned.memory.kinds);
    let over: Vec<&Kind> = kinds.iter().filter(|kind| kind.estimate.total() > size).collect();
    if over.is_empty() {
        let largest = kinds.iter().max_by_key(|kind| kind.estimate.total());
        let largest = largest.map_or(String::new(), |kind| format!("; the largest phase is {}", kind.name));
        return format!("fits {}{largest}", unit.amount(size));
    }
    let names: Vec<&str> = over.iter().map(|kind| kind.name).collect();
    let needs = needs(planned, &over, unit, size).into_iter();
    let advice: Vec<String> = needs.chain(advice(job, &over).into_iter().map(str::to_owned)).collect();
    format!("does not fit {}: {}; {}", unit.amount(size), names.join(", "), advice.join("; "))
}

/// What the phases that exceed the device's size need, if everything is sharded already.
fn needs(planned: &Planned, over: &[&Kind], unit: Unit, size: u64) -> Vec<String> {
    /// More ranks than anyone has.
    const MOST: u32 = 4096;
    let job = &planned.job;
    if job.resources.sharding != Sharding::Fsdp {
        return Vec::new();
    }
    let (training, whole): (Vec<&Kind>, Vec<&Kind>) =
        over.iter().copied().partition(|kind| kind.other_activations.is_some());
    let mut needs = Vec::new();
    if !training.is_empty() {
        let fits = |ranks: &u32| {
            let mut job = job.clone();
            job.resources.ranks = *ranks;
            let kinds = planned.memory.again(&job, &planned.phases.list).kinds;
            kinds.iter().all(|kind| kind.other_activations.is_none() || kind.estimate.total() <= size)
        };
        needs.push(match (job.resources.ranks + 1..=MOST).find(fits) {
            Some(ranks) => format!("training fits with resources.ranks: {ranks}"),
            None => format!("training does not fit with {MOST} ranks either"),
        });
    }
    let largest = whole.iter().map(|kind| kind.estimate.total()).max();
    needs.extend(largest.map(|bytes| {
        let precision = job.resources.precision;
        format!(
            "phases that do not train hold a whole model in {precision} on each device: {} at most",
            unit.amount(bytes)
        )
    }));
    needs
}

/// Settings that would reduce memory and are not set yet.
fn advice(job: &spec::Job, over: &[&Kind]) -> Vec<&'static str> {
    let resources = &job.resources;
    let trains = over.iter().any(|kind| kind.other_activations.is_some());
    let named = |name: &str| over.iter().any(|kind| kind.name == name);
    let without_adapters = job.policy_step.lora.is_none() || job.reward_step.lora.is_none();
    let all = [
        (
            trains && resources.ranks > 1 && resources.sharding == Sharding::Ddp,
            "set resources.sharding: zero1 or fsdp",
        ),
        (resources.ranks > 1 && resources.sharding == Sharding::Zero1, "set resources.sharding: fsdp"),
        (trains && !resources.activation_checkpointing, "set resources.activation_checkpointing: true"),
        (trains, "lower optimizer.micro_batch_tokens"),
        (trains && without_adapters, "train adapters (lora)"),
        (named("evaluate") && job.evaluation.kl_prompts > 0, "set evaluation.kl_prompts: 0"),
        (named("generate") || named("evaluate"), "lower generation.max_num_seqs"),
        (true, "or take a smaller model or a larger device"),
    ];
    all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, text)| text).collect()
}

pub(super) fn json(planned: &Planned, device: Option<u64>) -> Value {
    let known = planned.phases.unknown.is_none();
    let phases = planned.phases.list.iter().map(|phase| {
        json!({
            "id": phase.id.as_str(),
            "kind": phase.work.kind(),
            "chunks": (known && phase.chunks > 0).then_some(phase.chunks),
            "steps": (known && phase.steps > 0).then_some(phase.steps),
        })
    });
    let memory = planned.memory.kinds.iter().map(|kind| {
        let bytes: Map<String, Value> =
            kind.estimate.parts().into_iter().map(|(name, bytes)| (name.to_owned(), json!(bytes))).collect();
        let total = kind.estimate.total();
        json!({
            "phase": kind.name,
            "bytes": bytes,
            "total": total,
            "pinned_host_bytes": kind.estimate.pinned,
            "activations_otherwise": kind.other_activations,
            "fits": device.map(|size| total <= size),
        })
    });
    let largest = planned.memory.kinds.iter().map(|kind| kind.estimate.total()).max().unwrap_or(0);
    json!({
        "name": planned.job.name.to_string(),
        "parameters": {
            "policy": planned.memory.policy.parameters(Head::Language),
            "reward": planned.memory.reward.parameters(Head::Reward),
        },
        "activation_checkpointing": planned.job.resources.activation_checkpointing,
        "phases": phases.collect::<Vec<_>>(),
        "memory": memory.collect::<Vec<_>>(),
        "device_memory": device,
        "fits": device.map(|size| largest <= size),
        "notes": planned.notes,
    })
}
