//! Hints for the author of an unknown field: a setting of another block, a name that another tool has for a
//! field, or a misspelling.

use super::check::{nearest, one_of};
use super::contract::{self, Kind, short};

/// Fields by their names in TRL, Transformers, PEFT, torch, OpenRLHF and verl, and by earlier names; paths
/// start at the block.
const SYNONYMS: [(&str, &str, &str); 39] = [
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

/// Advice to the author of `field` in `message`, which has no such field.
pub(super) fn hint(message: &str, field: &str) -> Option<String> {
    if let Some(meant) = synonym(message, field) {
        return Some(format!("it is called {meant}"));
    }
    let inner = contract::fields(message).iter().filter_map(|known| match &known.kind {
        Kind::Message(inner) if contract::kind(inner, field).is_some() => {
            Some(format!("{}.{field}", known.name))
        }
        _ => None,
    });
    let inner: Vec<String> = inner.collect();
    if !inner.is_empty() {
        let inner: Vec<&str> = inner.iter().map(String::as_str).collect();
        return Some(format!("it is a setting of another block: {}", one_of(&inner)));
    }
    let renamed = contract::fields(message).iter().find_map(|known| match &known.kind {
        Kind::Message(inner) => Some((known.name.as_str(), synonym(inner, field)?)),
        _ => None,
    });
    if let Some((block, meant)) = renamed {
        return Some(format!("it is a setting of another block: {block}.{meant}"));
    }
    let names = contract::fields(message).iter().map(|field| field.name.as_str());
    nearest(field, names).map(|name| format!("did you mean {name}?"))
}

/// Foil's name of a field that others call `field`.
fn synonym(message: &str, field: &str) -> Option<&'static str> {
    let block = short(message);
    SYNONYMS.iter().find(|(at, name, _)| *at == block && *name == field).map(|(.., meant)| *meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_synonym_leads_to_a_field() {
        for (block, name, meant) in SYNONYMS {
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
        assert_eq!(hint("JobSpec", "round"), "did you mean rounds?");
        assert_eq!(hint("JobSpec", "zzz"), "");
    }
}
