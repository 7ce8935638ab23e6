//! Hints for the author of an unknown field: a setting of another block, a name that another tool has for a
//! field, or a misspelling.

use super::check::{nearest, one_of, path};
use super::contract::{self, JOB_SPEC, Kind, short};

/// Fields by their names in TRL, Transformers, PEFT, torch, OpenRLHF and verl, and by earlier names; paths
/// start at the block. Without a block, a name counts wherever the field exists.
const SYNONYMS: [(&str, &str, &str); 48] = [
    ("", "adam_beta1", "betas"),
    ("", "adam_beta2", "betas"),
    ("", "lora_config", "lora"),
    ("", "lr", "learning_rate"),
    ("", "max_completion_length", "max_new_tokens"),
    ("", "max_tokens", "max_new_tokens"),
    ("", "min_tokens", "min_new_tokens"),
    ("", "peft_config", "lora"),
    ("", "warmup", "warmup_steps"),
    ("JobSpec", "beta", "policy_step.dpo.beta or policy_step.grpo.beta"),
    ("JobSpec", "bf16", "resources.precision"),
    ("JobSpec", "lr", "reward_step.learning_rate or policy_step.learning_rate"),
    ("JobSpec", "model_name_or_path", "policy.model"),
    ("JobSpec", "num_train_epochs", "sft_step.epochs or reward_step.epochs or policy_step.epochs"),
    ("JobSpec", "per_device_train_batch_size", "reward_step.batch_pairs or policy_step.batch_sequences"),
    ("GenerationSpec", "slots", "max_num_seqs"),
    ("OptimizerSpec", "adam_epsilon", "eps"),
    ("OptimizerSpec", "epsilon", "eps"),
    ("OptimizerSpec", "clip_grad", "max_grad_norm"),
    ("OptimizerSpec", "clip_norm", "max_grad_norm"),
    ("ScheduleSpec", "final_ratio", "min_lr_ratio"),
    ("ScheduleSpec", "lr_scheduler_type", "kind"),
    ("ScheduleSpec", "min_lr_rate", "min_lr_ratio"),
    ("ScheduleSpec", "num_warmup_steps", "warmup_steps"),
    ("SftStepSpec", "num_train_epochs", "epochs"),
    ("SftStepSpec", "train_batch_size", "batch_sequences"),
    ("RewardStepSpec", "centring", "bradley_terry.center_rewards_coefficient"),
    ("RewardStepSpec", "normalisation", "normalization"),
    ("RewardStepSpec", "num_train_epochs", "epochs"),
    ("RewardStepSpec", "train_batch_size", "batch_pairs"),
    ("PolicyStepSpec", "clip_ratio", "grpo.epsilon or rloo.epsilon"),
    ("PolicyStepSpec", "kl_coef", "grpo.beta or rloo.beta"),
    ("PolicyStepSpec", "kl_weight", "grpo.beta or rloo.beta"),
    ("PolicyStepSpec", "num_generations", "samples"),
    ("PolicyStepSpec", "num_train_epochs", "epochs"),
    ("PolicyStepSpec", "rank_weight", "rrhf.ranking_weight"),
    ("PolicyStepSpec", "train_batch_size", "batch_sequences"),
    ("LoraSpec", "lora_alpha", "alpha"),
    ("LoraSpec", "r", "rank"),
    ("LoraSpec", "targets", "target_modules"),
    ("EvaluationSpec", "best_by", "metric_for_best_model"),
    ("ResourceSpec", "activation_checkpoint", "activation_checkpointing"),
    ("ResourceSpec", "gradient_checkpointing", "activation_checkpointing"),
    ("ResourceSpec", "save_steps", "checkpoint_steps"),
    ("TrackerSpec", "experiment_name", "experiment"),
    ("TrackerSpec", "log_completions", "num_completions"),
    ("TrackerSpec", "num_completions_to_print", "num_completions"),
    ("TrackerSpec", "project", "experiment"),
];

/// What there is instead of other tools' settings that Foil has in no block.
const ABSENT: [(&str, &str); 12] = [
    ("deepspeed", "resources.sharding shards the optimizer (zero1) or the whole model (fsdp)"),
    (
        "gradient_accumulation_steps",
        "batch_pairs and batch_sequences count over all ranks, and optimizer.micro_batch_tokens bounds the memory of each step",
    ),
    ("logging_dir", "trackers.report_to: tensorboard writes event files"),
    ("loss_type", "policy_step.method names the loss, such as dpo or ipo; grpo has a loss_type of its own"),
    ("max_prompt_length", "prompts get text.max_length less sampling.max_new_tokens tokens"),
    ("max_steps", "epochs of a step and rounds of the job bound training"),
    ("output_dir", "`foil run --out DIR` chooses the directory"),
    ("ref_model", "the reference is the policy itself, as policy_step.dpo.reference says"),
    ("seed_offset", "seed is the only seed; each round, prompt and sample derives its own"),
    ("train", "the training sets are data.preferences, data.golden, data.prompts and data.sft"),
    ("train_dataset", "the training sets are data.preferences, data.golden, data.prompts and data.sft"),
    ("warmup_ratio", "schedule.warmup_steps counts steps"),
];

/// Advice to the author of `field` in `message`, which has no such field.
pub(super) fn hint(message: &str, field: &str) -> Option<String> {
    if let Some(meant) = synonym(message, field) {
        return Some(format!("it is called {meant}"));
    }
    if let Some((_, instead)) = ABSENT.iter().find(|(name, _)| *name == field) {
        return Some((*instead).to_owned());
    }
    // First in the blocks of this one, then anywhere in the job file.
    for (outer, depth) in [(message, 2), (JOB_SPEC, MAX_DEPTH)] {
        let mut found = Vec::new();
        places(outer, "", field, depth, &mut found);
        if (1..=MAX_PLACES).contains(&found.len()) {
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            return Some(format!("it is a setting of another block: {}", one_of(&found)));
        }
    }
    let names = contract::fields(message).iter().map(|field| field.name.as_str());
    nearest(field, names).map(|name| format!("did you mean {name}?"))
}

/// Depth of the job file's blocks.
const MAX_DEPTH: usize = 4;
/// Number of places of a setting above which naming them is no help.
const MAX_PLACES: usize = 4;

/// The paths, from `message` on, of the fields below it that have this name or others call so.
fn places(message: &str, at: &str, field: &str, depth: usize, found: &mut Vec<String>) {
    if !at.is_empty() {
        let own = contract::kind(message, field).map(|_| field);
        let names = own.or_else(|| synonym(message, field)).unwrap_or_default();
        found.extend(names.split(" or ").filter(|name| !name.is_empty()).map(|name| path(at, name)));
    }
    if depth > 1 {
        for known in contract::fields(message) {
            if let Kind::Message(inner) = &known.kind {
                places(inner, &path(at, &known.name), field, depth - 1, found);
            }
        }
    }
}

/// Foil's name of a field that others call `field`.
fn synonym(message: &str, field: &str) -> Option<&'static str> {
    let block = short(message);
    let exists = |meant: &str| contract::kind(message, meant.split('.').next().unwrap_or(meant)).is_some();
    let counts = |at: &str, meant: &str| at == block || (at.is_empty() && exists(meant));
    SYNONYMS.iter().find(|(at, name, meant)| *name == field && counts(at, meant)).map(|(.., meant)| *meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_synonym_leads_to_a_field() {
        for (block, name, meant) in SYNONYMS {
            if block.is_empty() {
                let mut found = Vec::new();
                places(JOB_SPEC, "", name, MAX_DEPTH, &mut found);
                assert!(!found.is_empty(), "{name} is called {meant} nowhere");
                continue;
            }
            let message = format!(".foil.v1.{block}");
            assert!(contract::kind(&message, name).is_none(), "{block}.{name} is a field");
            for meant in meant.split(" or ") {
                let mut at = Some(message.as_str());
                for step in meant.split('.') {
                    let kind = at.and_then(|at| contract::kind(at, step));
                    assert!(kind.is_some(), "{block}.{meant}");
                    at = kind.and_then(|kind| match kind {
                        Kind::Message(inner) => Some(inner.as_str()),
                        _ => None,
                    });
                }
            }
        }
    }

    #[test]
    fn what_was_meant_is_told() {
        let hint = |message: &str, field| hint(&format!(".foil.v1.{message}"), field).unwrap_or_default();
        assert_eq!(hint("OptimizerSpec", "clip_norm"), "it is called max_grad_norm");
        let smoothing = hint("PolicyStepSpec", "label_smoothing");
        assert_eq!(smoothing, "it is a setting of another block: dpo.label_smoothing");
        let clip = hint("RewardStepSpec", "clip_norm");
        assert_eq!(clip, "it is a setting of another block: optimizer.max_grad_norm");
        assert_eq!(hint("JobSpec", "bf16"), "it is called resources.precision");
        assert_eq!(hint("SftStepSpec", "lr"), "it is called learning_rate");
        assert_eq!(hint("SamplingSpec", "max_tokens"), "it is called max_new_tokens");
        let lora = hint("PolicySpec", "lora");
        assert!(lora.contains("reward_step.lora") && lora.contains("policy_step.lora"), "{lora}");
        assert_eq!(hint("PolicyStepSpec", "max_length"), "it is a setting of another block: text.max_length");
        assert!(hint("SftStepSpec", "gradient_accumulation_steps").contains("optimizer.micro_batch_tokens"));
        assert!(hint("DpoSpec", "loss_type").contains("policy_step.method"));
        let kl = "it is a setting of another block: policy_step.grpo.beta or policy_step.rloo.beta";
        assert_eq!(hint("JobSpec", "kl_coef"), kl);
        assert_eq!(hint("JobSpec", "round"), "did you mean rounds?");
        assert_eq!(hint("JobSpec", "zzz"), "");
    }

    #[test]
    fn what_is_absent_is_absent() {
        for (name, instead) in ABSENT {
            let mut found = Vec::new();
            places(JOB_SPEC, "", name, MAX_DEPTH, &mut found);
            let is_told =
                |place: &String| place.split('.').any(|block| instead.contains(&format!("{block} has")));
            assert!(found.iter().all(is_told), "{name}: {found:?}");
            assert!(contract::kind(JOB_SPEC, name).is_none(), "{name}");
        }
    }
}
