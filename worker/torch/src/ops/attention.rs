//! Rotary embedding and causal attention, over packed rows and over a KV cache.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::error::{During, Error, Result};
use crate::ffi::{self, Segment, native, owned};
use crate::upload::Numbers;

/// The segments of a packed batch, with the index for flash attention on a GPU.
#[derive(Debug)]
pub struct Segments {
    list: Arc<[Segment]>,
    /// The ends of queries and of keys, and the keys' rows; see [`Segments::numbers`]. Empty on CPUs.
    index: Vec<Tensor>,
}

impl Segments {
    /// Creates segments whose `index` is that of [`Segments::numbers`] on a GPU, or empty on a CPU.
    pub fn new(list: &[Segment], index: Vec<Tensor>) -> Self {
        Self { list: list.into(), index }
    }

    /// The index of `segments`: the ends of their queries and of their keys, `[segments + 1]`, int32; then,
    /// if any has a prefix, the rows of all keys in order, int64.
    pub fn numbers(segments: &[Segment]) -> Vec<Numbers> {
        let (mut q_ends, mut k_ends, mut rows) = (vec![0], vec![0], Vec::new());
        for segment in segments {
            rows.extend((segment.prefix_start..).take(segment.prefix_length as usize));
            rows.extend((segment.start..).take(segment.length as usize));
            q_ends.push((segment.start + segment.length) as i32);
            k_ends.push(rows.len() as i32);
        }
        let has_prefix = segments.iter().any(|segment| segment.prefix_length > 0);
        let ends = [Numbers::Int32(q_ends), Numbers::Int32(k_ends)];
        ends.into_iter().chain(has_prefix.then_some(Numbers::Int64(rows))).collect()
    }

    pub fn list(&self) -> &[Segment] {
        &self.list
    }

    /// The same segments and index.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let index = self.index.iter().map(Tensor::shallow_clone).collect();
        Self { list: Arc::clone(&self.list), index }
    }
}

/// Cosines and sines of each token's rotary angles: `[tokens, head_dim / 2]`, fp32, contiguous. For ATen's
/// operations, `sin` may be `[tokens, 2, head_dim / 2]`: −sin and sin.
#[derive(Debug)]
pub struct RotaryAngles {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Causal softmax attention of rotated queries over rotated keys, segment by segment, scores scaled by
/// 1/sqrt(head_dim).
///
/// `q`: `[tokens, heads, head_dim]`; `k`, `v`: `[tokens, kv_heads, head_dim]`, of one kind. Returns q's
/// shape. Segments must cover every token once in order, and a shared prefix must be an earlier segment. On
/// CUDA this is one call: of variable-length flash attention in bf16, of memory-efficient attention in fp32.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rotation: &RotaryAngles,
    segments: &Segments,
) -> Result<Tensor> {
    let (cos, sin) = (native(&rotation.cos), native(&rotation.sin));
    let index = ffi::list(&segments.index);
    let attended = ffi::attention(native(q), native(k), native(v), cos, sin, &segments.list, &index);
    Ok(owned(attended.during("attention")?))
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
/// `q`: `[rows, heads, head_dim]`; `k`, `v`: `[rows, kv_heads, head_dim]`. Returns q's shape. Only on the
/// CPU; not differentiable.
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

/// Attention of one new token per row over the slots of a cache on a GPU, with one call of flash attention.
///
/// `q`: `[rows, heads, head_dim]`, rotated; `keys` and `values`: `[slots, capacity, kv_heads, head_dim]`,
/// contiguous, of q's kind. Returns q's shape. Not differentiable. See [`FlashSlots`].
///
/// # Errors
/// [`Error::Torch`] for tensors that flash attention does not support; see [`FlashSlots::new`].
pub fn decode_by_flash(q: &Tensor, keys: &Tensor, values: &Tensor, index: &DecodeIndex) -> Result<Tensor> {
    let index = ffi::list(&index.0);
    Ok(owned(
        ffi::decode_by_flash(native(q), native(keys), native(values), &index).during("decode_by_flash")?,
    ))
}

/// The rows of a decoding step, as input for flash attention: the ends of queries and the starts of slots,
/// `[rows + 1]`, and the lengths, `[rows]`, all int32.
#[derive(Debug)]
pub struct DecodeIndex([Tensor; 3]);

/// The slots of a cache, from which flash attention reads.
#[derive(Debug)]
pub struct FlashSlots {
    /// The ends of queries if each slot has one: `[slots + 1]`, int32.
    query_ends: Tensor,
    /// The first token of each slot: `[slots + 1]`, int32.
    starts: Tensor,
}

impl FlashSlots {
    /// A cache of `slots` slots of `capacity` tokens. `None` if flash attention does not support it: it
    /// requires bf16 on a GPU, heads of up to 256 numbers, a multiple of 8, and less than 2³¹ tokens.
    pub fn new((device, kind, head_dim): (Device, Kind, i64), slots: i64, capacity: i64) -> Option<Self> {
        let fits = matches!(device, Device::Cuda(_)) && kind == Kind::BFloat16;
        if !fits || head_dim % 8 != 0 || head_dim > 256 || slots * capacity > i64::from(i32::MAX) {
            return None;
        }
        let query_ends = Tensor::arange(slots + 1, (Kind::Int, device));
        let starts = &query_ends * capacity;
        Some(Self { query_ends, starts })
    }

    /// A step in which row i reads slot i up to its new token at `positions[i]`. `positions`: `[rows]`,
    /// int64, on the cache's device.
    pub fn step(&self, positions: &Tensor) -> DecodeIndex {
        let ends = positions.size().iter().sum::<i64>() + 1;
        let lengths = (positions + 1).to_kind(Kind::Int);
        DecodeIndex([self.query_ends.narrow(0, 0, ends), self.starts.narrow(0, 0, ends), lengths])
    }
}
