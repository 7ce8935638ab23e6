//! Attention of decoding steps on devices that have no kernel of ours.

use tch::Tensor;

/// One new token per row over that row's cached keys and values.
///
/// `q`: `[rows, heads, head_dim]`; `k`, `v`: `[rows, kv_heads, longest, head_dim]`; `mask`: `[rows, 1, 1, longest]`, added to
/// the scores; gives `[rows, heads, head_dim]`.
pub(super) fn cached(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let size = q.size();
    let (rows, heads, head_dim) = (size[0], size[1], size[2]);
    let kv_heads = k.size()[1];
    // With a single query position, the heads that share keys can stand where positions would: nothing is repeated.
    let q = q.reshape([rows, kv_heads, heads / kv_heads, head_dim]);
    Tensor::scaled_dot_product_attention(&q, k, v, Some(mask), 0.0, false, None, false)
        .reshape([rows, heads, head_dim])
}
