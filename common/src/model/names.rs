//! Names of files and tensors in a Hugging Face model directory.

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const SCORE: &str = "score.weight";
pub const LM_HEAD: &str = "lm_head.weight";
pub const EMBEDDINGS: &str = "model.embed_tokens.weight";
