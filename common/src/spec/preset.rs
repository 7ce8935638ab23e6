//! Published settings that a job file can start from.

use foil_proto::v1;
use serde_json::{Value, json};

use super::SpecError;
use super::check::unknown_choice;
use super::choice::choices;

choices! {
    /// A published setting; the job's own fields win over it.
    Preset:
    /// The paper's game with rejection sampling.
    #[default]
    PaperRjs = "paper-rjs",
    /// The paper's game with RRHF, its terms weighted as in the published code of RRHF.
    PaperRrhf = "paper-rrhf",
    /// The paper's game with DPO.
    PaperDpo = "paper-dpo",
    /// A reward model trained on human pairs once.
    StaticRm = "static-rm",
    /// One adversarial reward model from round 1, never refreshed.
    FrozenApo = "frozen-apo",
    /// A reward model trained anew each round, on human pairs only.
    HumanOnlyRefresh = "human-only-refresh",
    /// A discriminator between golden answers and samples, without human pairs.
    Gail = "gail",
}

impl Preset {
    pub(crate) fn parse_optional(text: &str) -> Result<Option<Self>, SpecError> {
        match text {
            "" => Ok(None),
            name => Self::parse("", "preset", name)
                .map(Some)
                .map_err(|_| unknown_choice("", "preset", name, Self::NAMES)),
        }
    }

    /// The fields it sets, in the JSON mapping of `JobSpec`.
    fn fields(self) -> Value {
        match self {
            Self::PaperRjs => paper(json!({ "method": "rejection" })),
            // github.com/GanjinZero/RRHF: 100 · ranking + token mean of −log p.
            Self::PaperRrhf => paper(json!({ "method": "rrhf", "rank_weight": 100.0, "nll": "mean" })),
            Self::PaperDpo => paper(json!({ "method": "dpo" })),
            Self::StaticRm => json!({ "reward_step": { "apo_weight": 0.0, "refresh": "first_round" } }),
            Self::FrozenApo => json!({ "reward_step": { "apo_weight": 1.0, "refresh": "first_round" } }),
            Self::HumanOnlyRefresh => {
                json!({ "reward_step": { "apo_weight": 0.0, "refresh": "every_round" } })
            }
            Self::Gail => json!({ "reward_step": { "loss": "gail" } }),
        }
    }
}

/// Cheng et al. 2024, section 4 and appendix; warm-up and batch as in the reference code. `method` is what its three
/// policy methods differ in.
fn paper(method: Value) -> Value {
    let mut fields = json!({
        "rounds": 3,
        "text": { "max_length": 512, "truncation_side": "left" },
        "sampling": { "temperature": 1.2, "top_p": 1.0, "max_new_tokens": 256 },
        "reward_step": {
            "loss": "bradley_terry", "apo_weight": 1.0, "human_weight": 1.0, "samples": 4, "start": "base",
            "refresh": "every_round", "learning_rate": 1e-6, "epochs": 1, "batch_pairs": 64,
            "schedule": { "warmup_steps": 100 }
        },
        "policy_step": {
            "samples": 4, "learning_rate": [5e-6, 2e-6, 9e-7], "epochs": 1, "batch_sequences": 64
        },
        "evaluation": {
            "sampling": { "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05 }
        }
    });
    merge(&mut fields["policy_step"], method);
    fields
}

/// Lays the job's fields over those of its preset. A second application changes nothing.
pub(crate) fn apply(wire: v1::JobSpec) -> Result<v1::JobSpec, SpecError> {
    let Some(preset) = Preset::parse_optional(&wire.preset)? else { return Ok(wire) };
    let syntax = |error: serde_json::Error| SpecError::Syntax(error.to_string());
    let mut merged = preset.fields();
    merge(&mut merged, serde_json::to_value(&wire).map_err(syntax)?);
    serde_json::from_value(merged).map_err(syntax)
}

/// Lays `over` over `base`: objects field by field, anything else as a whole.
pub(crate) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                merge(base.entry(name).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}
