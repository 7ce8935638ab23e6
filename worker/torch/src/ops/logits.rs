//! Functions of logits: log-probabilities of given tokens with their gradient, and token sampling.

use tch::Tensor;

use crate::error::{During, Result};
use crate::ffi::{self, SampledToken, native, owned};

/// Samples one token for each row from softmax(logits / temperature) by Gumbel-max in fp64; temperature 0
/// takes the first maximum. The same pass over the logits computes the parts of its log-probability at
/// temperature 1.
///
/// `logits`: `[vocab, rows]` (transposed, so that all rows are sampled in one pass over memory), fp32 or
/// bf16, contiguous, on the CPU. `keys[row]` is the state of that row's stream of noise: 1 − u of token t is
/// (⌊mix(key + (t + 1)·γ) / 2¹¹⌋ + ½) / 2⁵³ with SplitMix64's mix and γ.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn sample_tokens(logits: &Tensor, keys: &[u64], temperature: f64) -> Result<Vec<SampledToken>> {
    ffi::sample_tokens(native(logits), keys, temperature).during("sample_tokens")
}

/// ln(u)/p of each token, the negative of its arrival time in an exponential race, whose largest value is at
/// the sampled token: `[rows, vocab]`, fp64, in one kernel on a GPU. p = exp((logit − maximum) /
/// temperature) in fp64; u is that of [`sample_tokens`].
///
/// `logits`: `[rows, vocab]`, any float kind; `maxima`: `[rows, 1]`, those of the logits; `keys`: `[rows]`,
/// int64; `tokens`: `[vocab]`, the ids as fp64.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together or are not on a GPU, and if NVRTC cannot compile the
/// kernel.
pub fn exponential_race(
    logits: &Tensor,
    maxima: &Tensor,
    keys: &Tensor,
    tokens: &Tensor,
    temperature: f64,
) -> Result<Tensor> {
    let race =
        ffi::exponential_race(native(logits), native(maxima), native(keys), native(tokens), temperature);
    Ok(owned(race.during("exponential_race")?))
}

/// log p of given tokens, and each row's log Σ exp: both `[rows]`, fp32 (fp64 for fp64 logits).
///
/// `logits`: `[rows, vocab]`, any float kind; `targets`: `[rows]`, int64. Not differentiable: see
/// [`log_prob_gradient`].
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn target_log_probs(logits: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    let pair = ffi::target_log_probs(native(logits), native(targets));
    let mut pair = pair.during("target_log_probs")?;
    Ok((owned(pair.pin_mut().first()), owned(pair.pin_mut().second())))
}

/// The backward pass of [`target_log_probs`]: overwrites `logits` with upstream · (onehot(target) −
/// softmax(logits)), for the upstream gradient `[rows]`, fp32 (fp64 for fp64 logits).
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
