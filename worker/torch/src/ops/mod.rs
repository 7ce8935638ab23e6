//! Fused operations of a decoder layer between its matrix products: on CPUs by loops of this crate, elsewhere
//! by ATen.
//!
//! All are differentiable unless their documentation says otherwise. Activations are `[tokens, …]`, tokens of
//! all sequences end to end, and fp32 or bf16; arithmetic is fp32.

mod adamw;
mod attention;
mod linear;
mod logits;
mod norm;

pub use adamw::{AdamWState, fused_adamw};
pub use attention::{LayerCache, RotaryAngles, attention, decode_attention, gather_rows, rotary};
pub use linear::{PackedWeight, linear_by_output};
pub use logits::{log_prob_gradient, sample_tokens, target_log_probs};
pub use norm::{add_rms_norm, rms_norm, swiglu};
