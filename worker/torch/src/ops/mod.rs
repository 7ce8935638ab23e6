//! Fused operations of a decoder layer between its matrix products, implemented by this crate's loops on CPUs
//! and by ATen elsewhere.
//!
//! All are differentiable unless their documentation says otherwise. Activations are `[tokens, …]`, with the
//! tokens of all sequences concatenated, in fp32 or bf16; arithmetic is fp32.

mod adamw;
mod attention;
mod embedding;
mod linear;
mod logits;
mod norm;

pub use adamw::{AdamWState, fused_adamw, global_norm, scale};
pub use attention::{
    DecodeIndex, FlashSlots, LayerCache, RotaryAngles, Segments, attention, decode_attention,
    decode_by_flash, gather_rows, rotary,
};
pub use embedding::embedding;
pub use linear::{PackedWeight, linear_by_output};
pub use logits::{exponential_race, log_prob_gradient, sample_tokens, target_log_probs};
pub use norm::{add_rms_norm, rms_norm, swiglu};
