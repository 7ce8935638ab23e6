//! Attention of decoding steps on devices for which this project has no kernel.

use tch::Tensor;

/// Attention of one new token per row over that row's cached keys and values.
///
/// `q`: `[rows, heads, head_dim]`; `k`, `v`: `[rows, kv_heads, max_len, head_dim]`; `mask`: `[rows, 1, 1,
/// max_len]`, added to the scores. Returns `[rows, heads, head_dim]`.
pub(super) fn attend_cached(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let size = q.size();
    let (rows, heads, head_dim) = (size[0], size[1], size[2]);
    let kv_heads = k.size()[1];
    // With a single query position, the heads that share keys can occupy the position axis, so nothing is
    // repeated.
    let q = q.reshape([rows, kv_heads, heads / kv_heads, head_dim]);
    Tensor::scaled_dot_product_attention(&q, k, v, Some(mask), 0.0, false, None, false)
        .reshape([rows, heads, head_dim])
}
