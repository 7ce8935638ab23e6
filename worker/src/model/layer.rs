//! One decoder layer: its weights as a forward pass uses them, and what it computes.

use foil_torch::ops::PackedWeight;
use tch::{Kind, Tensor};

use super::adapter::{Adapter, LowRank};
use super::{DecoderConfig, ModelError, Parameters};

/// Every matrix product with weights goes through here.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    #[cfg(test)]
    super::tests::observe_matmul(x, weight);
    x.linear(weight, bias)
}

/// What rows are multiplied by.
pub(super) trait Matrix {
    /// `[rows, in]` → `[rows, out]`.
    fn product(&self, x: &Tensor) -> Result<Tensor, ModelError>;
}

/// A matrix as its parameters lie, with its low-rank adapter where it has one; differentiable.
#[derive(Debug)]
pub(super) struct Plain {
    weight: Tensor,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

impl Matrix for Plain {
    fn product(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let product = linear(x, &self.weight, self.bias.as_ref());
        Ok(match &self.low_rank {
            None => product,
            Some(LowRank { a, b, scale }) => product + linear(&linear(x, a, None), b, None) * *scale,
        })
    }
}

impl Plain {
    /// Laid out for many products of about `rows` rows each, without gradients; its adapter becomes part of it.
    fn packed(self, rows: i64) -> Result<PackedWeight, ModelError> {
        let weight = match &self.low_rank {
            None => self.weight,
            Some(low_rank) => self.weight + low_rank.product().to_kind(low_rank.a.kind()),
        };
        Ok(PackedWeight::new(&weight, self.bias.as_ref(), rows)?)
    }

    fn replace(&self, with: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            weight: with(&self.weight),
            bias: self.bias.as_ref().map(&mut *with),
            low_rank: self.low_rank.as_ref().map(|low_rank| LowRank {
                a: with(&low_rank.a),
                b: with(&low_rank.b),
                scale: low_rank.scale,
            }),
        }
    }
}

impl Matrix for PackedWeight {
    fn product(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.apply(x)?)
    }
}

/// A layer's weights: matrices in the compute precision, norms fp32.
#[derive(Debug)]
pub(super) struct LayerWeights<M> {
    input_norm: Tensor,
    q: M,
    k: M,
    v: M,
    o: M,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    post_norm: Tensor,
    gate: M,
    up: M,
    down: M,
}

impl<M> LayerWeights<M> {
    fn matrices<N>(
        self,
        mut of: impl FnMut(M) -> Result<N, ModelError>,
    ) -> Result<LayerWeights<N>, ModelError> {
        Ok(LayerWeights {
            input_norm: self.input_norm,
            q: of(self.q)?,
            k: of(self.k)?,
            v: of(self.v)?,
            o: of(self.o)?,
            q_norm: self.q_norm,
            k_norm: self.k_norm,
            post_norm: self.post_norm,
            gate: of(self.gate)?,
            up: of(self.up)?,
            down: of(self.down)?,
        })
    }
}

impl LayerWeights<Plain> {
    pub(super) fn packed(self, rows: i64) -> Result<LayerWeights<PackedWeight>, ModelError> {
        self.matrices(|matrix| matrix.packed(rows))
    }

    /// All its tensors, in an order of its own.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let mut all = Vec::new();
        self.replace(&mut |tensor| {
            all.push(tensor.shallow_clone());
            Tensor::new()
        });
        all
    }

    /// A layer of this structure that holds no tensors.
    pub(super) fn outline(&self) -> Self {
        self.replace(&mut |_| Tensor::new())
    }

    /// A layer of this structure with other tensors, in the order of [`LayerWeights::tensors`].
    pub(super) fn filled(&self, tensors: &[Tensor]) -> Self {
        let mut rest = tensors.iter();
        self.replace(&mut |_| rest.next().map_or_else(Tensor::new, Tensor::shallow_clone))
    }

    fn replace(&self, with: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            input_norm: with(&self.input_norm),
            q: self.q.replace(with),
            k: self.k.replace(with),
            v: self.v.replace(with),
            o: self.o.replace(with),
            q_norm: self.q_norm.as_ref().map(&mut *with),
            k_norm: self.k_norm.as_ref().map(&mut *with),
            post_norm: with(&self.post_norm),
            gate: self.gate.replace(with),
            up: self.up.replace(with),
            down: self.down.replace(with),
        }
    }
}

/// Takes tensors out of `Parameters` by name; a model's constructor has made sure that all are there.
///
/// Casting is part of the graph, so gradients reach the fp32 masters in fp32.
pub(super) struct Cast<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) adapter: Option<&'a Adapter>,
    pub(super) kind: Kind,
}

impl Cast<'_> {
    fn optional(&self, name: &str) -> Option<Tensor> {
        self.parameters.get(name).map(Tensor::shallow_clone)
    }

    pub(super) fn master(&self, name: &str) -> Tensor {
        match self.optional(name) {
            Some(tensor) => tensor,
            None => unreachable!("a model was built without its parameter {name}"),
        }
    }

    fn matrix(&self, name: &str) -> Plain {
        Plain {
            weight: self.master(&format!("{name}.weight")).to_kind(self.kind),
            bias: self.optional(&format!("{name}.bias")).map(|bias| bias.to_kind(self.kind)),
            low_rank: self.adapter.and_then(|adapter| adapter.of(name)).map(|of| of.to_kind(self.kind)),
        }
    }

    pub(super) fn layer(&self, index: i64) -> LayerWeights<Plain> {
        let at = |name: &str| format!("model.layers.{index}.{name}");
        LayerWeights {
            input_norm: self.master(&at("input_layernorm.weight")),
            q: self.matrix(&at("self_attn.q_proj")),
            k: self.matrix(&at("self_attn.k_proj")),
            v: self.matrix(&at("self_attn.v_proj")),
            o: self.matrix(&at("self_attn.o_proj")),
            q_norm: self.optional(&at("self_attn.q_norm.weight")),
            k_norm: self.optional(&at("self_attn.k_norm.weight")),
            post_norm: self.master(&at("post_attention_layernorm.weight")),
            gate: self.matrix(&at("mlp.gate_proj")),
            up: self.matrix(&at("mlp.up_proj")),
            down: self.matrix(&at("mlp.down_proj")),
        }
    }
}

/// The residual stream between two layers: x + delta, `[rows, hidden]`, not yet added, so that the norm that follows adds
/// them in one pass.
#[derive(Debug)]
pub(super) struct Stream {
    /// fp32.
    pub(super) x: Tensor,
    /// What the layer before gave, in the compute precision; none before the first.
    pub(super) delta: Option<Tensor>,
}

impl Stream {
    /// x + delta, fp32.
    pub(super) fn sum(self) -> Tensor {
        match self.delta {
            // Not in place: the norm's backward needs the stream as it was.
            Some(delta) => self.x.g_add(&delta),
            None => self.x,
        }
    }
}

/// How queries meet keys and values: (q, k, v) → context. `q` and the context are `[rows, heads, head_dim]`, `k` and `v`
/// `[rows, kv_heads, head_dim]`; rotation is the callee's part.
pub(super) type Attend<'a> = &'a mut dyn FnMut(&Tensor, &Tensor, &Tensor) -> Result<Tensor, ModelError>;

/// What all layers of a model have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerShape {
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    eps: f64,
}

impl LayerShape {
    pub(super) fn of(config: &DecoderConfig) -> Self {
        Self {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            eps: config.rms_norm_eps,
        }
    }

    /// One layer, in `kind`. Where `read` names rows, only those leave it: after its attention no row needs another.
    pub(super) fn forward<M: Matrix>(
        &self,
        layer: &LayerWeights<M>,
        Stream { x, delta }: Stream,
        kind: Kind,
        read: Option<&Tensor>,
        attend: Attend<'_>,
    ) -> Result<Stream, ModelError> {
        let (mut x, normed) = match delta {
            None => {
                let normed = foil_torch::ops::rms_norm(&x, &layer.input_norm, self.eps, kind)?;
                (x, normed)
            }
            Some(delta) => foil_torch::ops::add_rms_norm(&x, &delta, &layer.input_norm, self.eps)?,
        };
        let mut context = self.attention(layer, &normed, attend)?;
        if let Some(read) = read {
            context = context.index_select(0, read);
            x = x.index_select(0, read);
        }
        let attended = layer.o.product(&context)?;
        let (x, normed) = foil_torch::ops::add_rms_norm(&x, &attended, &layer.post_norm, self.eps)?;
        let gated = foil_torch::ops::swiglu(&layer.gate.product(&normed)?, &layer.up.product(&normed)?)?;
        Ok(Stream { x, delta: Some(layer.down.product(&gated)?) })
    }

    /// `x`: `[rows, hidden]`; gives the context before the output projection, `[rows, heads · head_dim]`.
    fn attention<M: Matrix>(
        &self,
        layer: &LayerWeights<M>,
        x: &Tensor,
        attend: Attend<'_>,
    ) -> Result<Tensor, ModelError> {
        let split = |projected: Tensor, heads: i64| projected.view([-1, heads, self.head_dim]);
        let q = split(layer.q.product(x)?, self.heads);
        let k = split(layer.k.product(x)?, self.kv_heads);
        let v = split(layer.v.product(x)?, self.kv_heads);
        let q = self.head_norm(q, layer.q_norm.as_ref())?;
        let k = self.head_norm(k, layer.k_norm.as_ref())?;
        Ok(attend(&q, &k, &v)?.flatten(1, 2))
    }

    /// Norm over each head, where the family has one; the kind stays.
    fn head_norm(&self, heads: Tensor, weight: Option<&Tensor>) -> Result<Tensor, ModelError> {
        match weight {
            None => Ok(heads),
            Some(weight) => {
                let normed =
                    foil_torch::ops::rms_norm(&heads.to_kind(Kind::Float), weight, self.eps, heads.kind())?;
                Ok(normed)
            }
        }
    }
}
