//! Rotary embedding and causal attention, over packed rows and over a KV cache.

use tch::Tensor;

use crate::error::{During, Error, Result};
use crate::ffi::{self, Segment, native, owned};

/// Cosines and sines of each token's rotary angles: `[tokens, head_dim / 2]`, fp32, contiguous.
#[derive(Debug)]
pub struct RotaryAngles {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Causal softmax attention of rotated queries over rotated keys, segment by segment, scores scaled by
/// 1/sqrt(head_dim).
///
/// `q`: `[tokens, heads, head_dim]`; `k`, `v`: `[tokens, kv_heads, head_dim]`, of one kind; gives q's shape.
/// Segments cover every token once, and a shared prefix is an earlier segment. On CUDA in bf16 this is one
/// call of variable-length flash attention.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rotation: &RotaryAngles,
    segments: &[Segment],
) -> Result<Tensor> {
    let (cos, sin) = (native(&rotation.cos), native(&rotation.sin));
    Ok(owned(ffi::attention(native(q), native(k), native(v), cos, sin, segments).during("attention")?))
}

/// Rows of `x`, `[rows, …]`, in the order of `indices`, `[n]`, int64, which may repeat. The gradient is
/// summed in fp32 and rounded to x's kind once. Flash attention gathers shared prefixes this way.
///
/// # Errors
/// [`Error::Torch`] for indices outside `x`.
pub fn gather_rows(x: &Tensor, indices: &Tensor) -> Result<Tensor> {
    Ok(owned(ffi::gather_rows(native(x), native(indices)).during("gather_rows")?))
}

/// Every head of `x`, `[tokens, heads, head_dim]`, rotated by its token's angles in the half-split layout.
/// Not differentiable on CPUs.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn rotary(x: &Tensor, rotation: &RotaryAngles) -> Result<Tensor> {
    Ok(owned(ffi::rotary(native(x), native(&rotation.cos), native(&rotation.sin)).during("rotary")?))
}

/// Keys and values of one layer, `[slots, kv_heads, capacity, head_dim]`, contiguous, on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct LayerCache<'a> {
    pub keys: &'a Tensor,
    pub values: &'a Tensor,
}

/// Rotates one new token's query and key for each row, writes its key and value at `positions[row]` of
/// `slots[row]`, and attends over that slot up to there.
///
/// `q`: `[rows, heads, head_dim]`; `k`, `v`: `[rows, kv_heads, head_dim]`; gives q's shape. On the CPU only;
/// not differentiable.
///
/// # Errors
/// [`Error::Argument`] for a slot or position outside the cache; [`Error::Torch`] for tensors that do not fit
/// together.
pub fn decode_attention(
    [q, k, v]: [&Tensor; 3],
    rotation: &RotaryAngles,
    cached: LayerCache<'_>,
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
