//! Names of a job's data sets, as the coordinator writes them and ranks read them.

pub const SFT: &str = "sft";
pub const PREFERENCES: &str = "preferences";
pub const GOLDEN: &str = "golden";
pub const GOLDEN_HOLDOUT: &str = "golden_holdout";
pub const PROMPTS: &str = "prompts";
pub const EVALUATION_PREFERENCES: &str = "evaluation_preferences";
pub const EVALUATION_PROMPTS: &str = "evaluation_prompts";
/// Prompts whose two completions the gold reward ranks into training pairs.
pub const GOLD_PREFERENCE_PROMPTS: &str = "gold_preference_prompts";
pub const GOLD_PREFERENCE_EVALUATION_PROMPTS: &str = "gold_preference_evaluation_prompts";
