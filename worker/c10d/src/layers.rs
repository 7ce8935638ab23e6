//! What a decoder layer does between its matrix products, fused: on CPUs by loops of this crate, elsewhere by ATen.
//!
//! All are differentiable unless they say otherwise. Activations are `[tokens, …]`, tokens of all sequences end to end,
//! and fp32 or bf16; arithmetic is fp32.

use tch::{Kind, Tensor};

use crate::error::{During, Error, Result};
use crate::ffi::{self, Drawn, Segment, native, owned};

/// x / sqrt(mean(x²) + eps) · weight over the last axis (Zhang and Sennrich 2019).
///
/// `x`: fp32, `weight`: `[width]`, fp32. The result has x's shape and kind `kind`, fp32 or bf16.
///
/// # Errors
/// [`Error::Torch`] for other kinds.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor> {
    let normed = ffi::rms_norm(native(x), native(weight), eps, kind == Kind::BFloat16);
    Ok(owned(normed.during("rms_norm")?))
}

/// The residual stream after an addition, x + delta in fp32, and its [`rms_norm`] in delta's kind.
///
/// # Errors
/// [`Error::Torch`] for kinds other than fp32 and bf16.
pub fn add_rms_norm(x: &Tensor, delta: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let pair = ffi::add_rms_norm(native(x), native(delta), native(weight), eps);
    let mut pair = pair.during("add_rms_norm")?;
    Ok((owned(pair.pin_mut().first()), owned(pair.pin_mut().second())))
}

/// silu(gate) · up (Shazeer 2020), of one shape and kind.
///
/// # Errors
/// [`Error::Torch`] for kinds other than fp32 and bf16.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(owned(ffi::swiglu(native(gate), native(up)).during("swiglu")?))
}

/// The angles of each token's position: `[tokens, head_dim / 2]`, fp32, contiguous.
#[derive(Debug)]
pub struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Causal softmax attention of rotated queries over rotated keys, segment by segment, scores scaled by
/// 1/sqrt(head_dim).
///
/// `q`: `[tokens, heads, head_dim]`; `k`, `v`: `[tokens, kv_heads, head_dim]`, of one kind; gives q's shape. Segments
/// cover every token once, and a segment's common beginning is a segment before it. On CUDA in bf16 this is one call of flash
/// attention with packed rows.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rotation: &Rotation,
    segments: &[Segment],
) -> Result<Tensor> {
    let (cos, sin) = (native(&rotation.cos), native(&rotation.sin));
    Ok(owned(ffi::attention(native(q), native(k), native(v), cos, sin, segments).during("attention")?))
}

/// Rows of `x`, `[rows, …]`, in the order of `indices`, `[n]`, int64, in which a row may stand many times. Its gradient is
/// summed in fp32 and rounded to x's kind once. Flash attention reads shared prefixes this way.
///
/// # Errors
/// [`Error::Torch`] for indices outside `x`.
pub fn gather_rows(x: &Tensor, indices: &Tensor) -> Result<Tensor> {
    Ok(owned(ffi::gather_rows(native(x), native(indices)).during("gather_rows")?))
}

/// Every head of `x`, `[tokens, heads, head_dim]`, turned by its token's angles in the half-split layout. Not
/// differentiable on CPUs.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn rotary(x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    Ok(owned(ffi::rotary(native(x), native(&rotation.cos), native(&rotation.sin)).during("rotary")?))
}

/// Keys and values of one layer, `[slots, kv_heads, capacity, head_dim]`, contiguous, on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct Cached<'a> {
    pub keys: &'a Tensor,
    pub values: &'a Tensor,
}

/// Rotates one new token's query and key for each row, writes its key and value at `positions[row]` of `slots[row]`,
/// and attends over that slot up to there. Reads no more of a slot than it holds.
///
/// `q`: `[rows, heads, head_dim]`; `k`, `v`: `[rows, kv_heads, head_dim]`; gives q's shape. On the CPU only; not
/// differentiable.
///
/// # Errors
/// [`Error::Argument`] for a slot or position outside the cache; [`Error::Torch`] for tensors that do not fit together.
pub fn decode_attention(
    [q, k, v]: [&Tensor; 3],
    rotation: &Rotation,
    cached: Cached<'_>,
    slots: &[i64],
    positions: &[i64],
) -> Result<Tensor> {
    const OPERATION: &str = "decode_attention";
    let rows = q.size().first().copied().unwrap_or(0) as usize;
    let (slot_count, capacity) = (cached.keys.size()[0], cached.keys.size()[2]);
    let inside = slots.iter().all(|slot| (0..slot_count).contains(slot))
        && positions.iter().all(|position| (0..capacity).contains(position));
    if slots.len() != rows || positions.len() != rows || !inside {
        let found = format!("{rows} rows, slots {slots:?}, positions {positions:?}");
        let expected = format!("one slot below {slot_count} and one position below {capacity} for each row");
        return Err(Error::argument(OPERATION, found, expected));
    }
    let attended = ffi::decode_attention(
        native(q),
        native(k),
        native(v),
        native(&rotation.cos),
        native(&rotation.sin),
        native(cached.keys),
        native(cached.values),
        slots,
        positions,
    );
    Ok(owned(attended.during(OPERATION)?))
}

/// A weight matrix `[out, in]` laid out for many products with about `rows` rows, without gradients.
///
/// Multiplying by it as it lies costs up to half as much again: the matrix is then laid out anew in each product.
#[derive(Debug)]
pub struct PackedWeight {
    /// In oneDNN's own layout where libtorch has oneDNN, else as it was.
    matrix: Tensor,
    bias: Tensor,
}

impl PackedWeight {
    /// Copies `weight`; shares `bias`, `[out]`.
    ///
    /// # Errors
    /// [`Error::Torch`] for kinds other than fp32 and bf16.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, rows: i64) -> Result<Self> {
        let matrix = owned(ffi::pack_weight(native(weight), rows).during("packing a weight")?);
        Ok(Self { matrix, bias: bias.map_or_else(Tensor::new, Tensor::shallow_clone) })
    }

    /// x · weightᵀ + bias, for `x` `[rows, in]` of the weight's kind: `[rows, out]`.
    ///
    /// # Errors
    /// [`Error::Torch`] for tensors that do not fit together.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let product = ffi::packed_linear(native(x), native(&self.matrix), native(&self.bias));
        Ok(owned(product.during("packed_linear")?))
    }
}

/// weight · xᵀ, `[out, rows]`, for `weight` `[out, in]` and `x` `[rows, in]` with far fewer rows: the weight is read as it
/// lies. Without gradients.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn linear_by_output(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(owned(ffi::linear_by_output(native(weight), native(x)).during("linear_by_output")?))
}

/// One token for each row, drawn from softmax(logits / temperature) by Gumbel-max in fp64, or the first of the greatest at
/// temperature 0; with it what its log-probability at temperature 1 is made of, from the same pass over the logits.
///
/// `logits`: `[vocab, rows]` (transposed: the draws of all rows then go through memory once), fp32 or bf16, contiguous, on the
/// CPU. `keys[row]` is the state of that row's stream of noise: 1 − u of token t is
/// (⌊mix(key + (t + 1)·γ) / 2¹¹⌋ + ½) / 2⁵³ with SplitMix64's mix and γ.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn draw_tokens(logits: &Tensor, keys: &[u64], temperature: f64) -> Result<Vec<Drawn>> {
    ffi::draw_tokens(native(logits), keys, temperature).during("draw_tokens")
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
    normaliser: &Tensor,
    targets: &Tensor,
    upstream: &Tensor,
) -> Result<()> {
    ffi::log_prob_gradient(native(logits), native(normaliser), native(targets), native(upstream))
        .during("log_prob_gradient")
}

/// A scalar of `value`'s number whose gradients with respect to `a` and `b` are those given, times what comes from above.
///
/// For losses whose gradients are made along with their value. It can be differentiated once: the gradients given are
/// used up.
///
/// # Errors
/// [`Error::Torch`], which is not known to happen.
pub fn preset_gradients(
    value: &Tensor,
    (a, a_gradient): (&Tensor, &Tensor),
    (b, b_gradient): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let preset =
        ffi::preset_gradients(native(value), native(a), native(a_gradient), native(b), native(b_gradient));
    Ok(owned(preset.during("preset_gradients")?))
}
