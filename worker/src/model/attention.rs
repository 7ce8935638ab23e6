//! Scaled dot-product attention over grouped key/value heads.

use tch::Tensor;

/// Causal attention of a sequence over itself.
///
/// `q`: `[batch, heads, seq, head_dim]`; `k`, `v`: `[batch, kv_heads, seq, head_dim]`; gives `[batch, heads, seq, head_dim]`.
pub(super) fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let grouped = q.size()[1] != k.size()[1];
    Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, true, None, grouped)
}

/// Attention of one new token per row over that row's cached keys and values.
///
/// `q`: `[rows, heads, 1, head_dim]`; `k`, `v`: `[rows, kv_heads, longest, head_dim]`; `mask`: `[rows, 1, 1, longest]`,
/// added to the scores; gives `[rows, heads, 1, head_dim]`.
pub(super) fn cached(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let size = q.size();
    let (rows, heads, head_dim) = (size[0], size[1], size[3]);
    let kv_heads = k.size()[1];
    // With a single query position, the heads that share keys can stand where positions would: nothing is repeated.
    let q = q.reshape([rows, kv_heads, heads / kv_heads, head_dim]);
    Tensor::scaled_dot_product_attention(&q, k, v, Some(mask), 0.0, false, None, false)
        .reshape([rows, heads, 1, head_dim])
}
