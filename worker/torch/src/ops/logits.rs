//! What is read off logits: log-probabilities of given tokens with their gradient, and sampled tokens.

use tch::Tensor;

use crate::error::{During, Result};
use crate::ffi::{self, SampledToken, native, owned};

/// One token for each row, drawn from softmax(logits / temperature) by Gumbel-max in fp64, or the first of the greatest at
/// temperature 0; with it what its log-probability at temperature 1 is made of, from the same pass over the logits.
///
/// `logits`: `[vocab, rows]` (transposed: the draws of all rows then go through memory once), fp32 or bf16, contiguous, on the
/// CPU. `keys[row]` is the state of that row's stream of noise: 1 − u of token t is
/// (⌊mix(key + (t + 1)·γ) / 2¹¹⌋ + ½) / 2⁵³ with SplitMix64's mix and γ.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn sample_tokens(logits: &Tensor, keys: &[u64], temperature: f64) -> Result<Vec<SampledToken>> {
    ffi::sample_tokens(native(logits), keys, temperature).during("sample_tokens")
}

/// log p of given tokens, and each row's log Σ exp: both `[rows]`, fp32 (fp64 for fp64 logits).
///
/// `logits`: `[rows, vocab]`, of any float kind; `targets`: `[rows]`, int64. Not differentiable: see
/// [`log_prob_gradient`].
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn target_log_probs(logits: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    let pair = ffi::target_log_probs(native(logits), native(targets));
    let mut pair = pair.during("target_log_probs")?;
    Ok((owned(pair.pin_mut().first()), owned(pair.pin_mut().second())))
}

/// Overwrites `logits` with the gradient with respect to them of a function of [`target_log_probs`]' results whose gradient
/// with respect to those is `upstream`, `[rows]`, fp32 (fp64 for fp64): upstream · (onehot(target) − softmax(logits)).
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn log_prob_gradient(
    logits: &mut Tensor,
    log_sum_exp: &Tensor,
    targets: &Tensor,
    upstream: &Tensor,
) -> Result<()> {
    ffi::log_prob_gradient(native(logits), native(log_sum_exp), native(targets), native(upstream))
        .during("log_prob_gradient")
}
