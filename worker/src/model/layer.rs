//! One decoder layer: its weights in the compute precision, and its forward pass.

use foil_torch::ops::PackedWeight;
use tch::{Kind, Tensor};

use super::adapter::{Adapter, LoraWeights};
use super::{DecoderConfig, ModelError, Parameters};

/// x · weightᵀ + bias. Every product with a weight matrix goes through here.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    #[cfg(test)]
    super::tests::observe_matmul(x, weight);
    x.linear(weight, bias)
}

/// A linear map of rows.
pub(super) trait Projection {
    /// `[rows, in]` → `[rows, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError>;
}

/// A weight matrix with its bias and its LoRA adapter, if it has them; differentiable.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    lora: Option<LoraWeights>,
}

impl Projection for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let output = linear(x, &self.weight, self.bias.as_ref());
        Ok(match &self.lora {
            None => output,
            Some(LoraWeights { a, b, scaling }) => output + linear(&linear(x, a, None), b, None) * *scaling,
        })
    }
}

impl Linear {
    /// Packed for many products of about `rows` rows each, without gradients; the adapter is merged.
    fn packed(self, rows: i64) -> Result<PackedWeight, ModelError> {
        let weight = match &self.lora {
            None => self.weight,
            Some(lora) => self.weight + lora.delta_weight().to_kind(lora.a.kind()),
        };
        Ok(PackedWeight::new(&weight, self.bias.as_ref(), rows)?)
    }

    fn map_tensors(&self, f: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            weight: f(&self.weight),
            bias: self.bias.as_ref().map(&mut *f),
            lora: self.lora.as_ref().map(|lora| LoraWeights {
                a: f(&lora.a),
                b: f(&lora.b),
                scaling: lora.scaling,
            }),
        }
    }
}

impl Projection for PackedWeight {
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.apply(x)?)
    }
}

/// A layer's weights, by their Hugging Face names: projections in the compute precision, norms fp32.
#[derive(Debug)]
pub(super) struct LayerWeights<P> {
    input_layernorm: Tensor,
    q_proj: P,
    k_proj: P,
    v_proj: P,
    o_proj: P,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    post_attention_layernorm: Tensor,
    gate_proj: P,
    up_proj: P,
    down_proj: P,
}

impl<P> LayerWeights<P> {
    fn map_projections<Q>(
        self,
        mut f: impl FnMut(P) -> Result<Q, ModelError>,
    ) -> Result<LayerWeights<Q>, ModelError> {
        Ok(LayerWeights {
            input_layernorm: self.input_layernorm,
            q_proj: f(self.q_proj)?,
            k_proj: f(self.k_proj)?,
            v_proj: f(self.v_proj)?,
            o_proj: f(self.o_proj)?,
            q_norm: self.q_norm,
            k_norm: self.k_norm,
            post_attention_layernorm: self.post_attention_layernorm,
            gate_proj: f(self.gate_proj)?,
            up_proj: f(self.up_proj)?,
            down_proj: f(self.down_proj)?,
        })
    }
}

impl LayerWeights<Linear> {
    pub(super) fn packed(self, rows: i64) -> Result<LayerWeights<PackedWeight>, ModelError> {
        self.map_projections(|projection| projection.packed(rows))
    }

    /// All tensors of the layer, in the order of [`LayerWeights::map_tensors`].
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let mut all = Vec::new();
        self.map_tensors(&mut |tensor| {
            all.push(tensor.shallow_clone());
            Tensor::new()
        });
        all
    }

    /// A layer of the same structure with undefined tensors.
    pub(super) fn skeleton(&self) -> Self {
        self.map_tensors(&mut |_| Tensor::new())
    }

    /// A layer of the same structure with other tensors, given in the order of [`LayerWeights::tensors`].
    pub(super) fn with_tensors(&self, tensors: &[Tensor]) -> Self {
        let mut tensors = tensors.iter();
        self.map_tensors(&mut |_| tensors.next().map_or_else(Tensor::new, Tensor::shallow_clone))
    }

    fn map_tensors(&self, f: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            input_layernorm: f(&self.input_layernorm),
            q_proj: self.q_proj.map_tensors(f),
            k_proj: self.k_proj.map_tensors(f),
            v_proj: self.v_proj.map_tensors(f),
            o_proj: self.o_proj.map_tensors(f),
            q_norm: self.q_norm.as_ref().map(&mut *f),
            k_norm: self.k_norm.as_ref().map(&mut *f),
            post_attention_layernorm: f(&self.post_attention_layernorm),
            gate_proj: self.gate_proj.map_tensors(f),
            up_proj: self.up_proj.map_tensors(f),
            down_proj: self.down_proj.map_tensors(f),
        }
    }
}

/// Parameters by name, cast to the compute precision. A model's constructor has checked that all of them
/// exist.
///
/// The cast is part of the autograd graph, so gradients reach the fp32 master weights in fp32.
pub(super) struct WeightView<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) adapter: Option<&'a Adapter>,
    pub(super) kind: Kind,
}

impl WeightView<'_> {
    fn get(&self, name: &str) -> Option<Tensor> {
        self.parameters.get(name).map(Tensor::shallow_clone)
    }

    /// The fp32 master weight called `name`.
    pub(super) fn master(&self, name: &str) -> Tensor {
        match self.get(name) {
            Some(tensor) => tensor,
            None => unreachable!("a model was built without its parameter {name}"),
        }
    }

    fn linear(&self, name: &str) -> Linear {
        Linear {
            weight: self.master(&format!("{name}.weight")).to_kind(self.kind),
            bias: self.get(&format!("{name}.bias")).map(|bias| bias.to_kind(self.kind)),
            lora: self.adapter.and_then(|adapter| adapter.lora(name)).map(|lora| lora.to_kind(self.kind)),
        }
    }

    pub(super) fn layer(&self, index: i64) -> LayerWeights<Linear> {
        let full = |name: &str| format!("model.layers.{index}.{name}");
        LayerWeights {
            input_layernorm: self.master(&full("input_layernorm.weight")),
            q_proj: self.linear(&full("self_attn.q_proj")),
            k_proj: self.linear(&full("self_attn.k_proj")),
            v_proj: self.linear(&full("self_attn.v_proj")),
            o_proj: self.linear(&full("self_attn.o_proj")),
            q_norm: self.get(&full("self_attn.q_norm.weight")),
            k_norm: self.get(&full("self_attn.k_norm.weight")),
            post_attention_layernorm: self.master(&full("post_attention_layernorm.weight")),
            gate_proj: self.linear(&full("mlp.gate_proj")),
            up_proj: self.linear(&full("mlp.up_proj")),
            down_proj: self.linear(&full("mlp.down_proj")),
        }
    }
}

/// The residual stream between two layers, `[rows, hidden]`: x + delta, not yet added, so that the next norm
/// adds them in the same pass.
#[derive(Debug)]
pub(super) struct ResidualStream {
    /// The stream before the last addition, fp32.
    pub(super) x: Tensor,
    /// Output of the previous layer's MLP, in the compute precision; `None` before the first layer.
    pub(super) delta: Option<Tensor>,
}

impl ResidualStream {
    /// x + delta, fp32.
    pub(super) fn sum(self) -> Tensor {
        match self.delta {
            // Not in place: the norm's backward needs the stream as it was.
            Some(delta) => self.x.g_add(&delta),
            None => self.x,
        }
    }
}

/// Attention, (q, k, v) → context, over a packed batch or a KV cache. `q` and the context are `[rows, heads,
/// head_dim]`, `k` and `v` `[rows, kv_heads, head_dim]`. The callee applies the rotary embedding.
pub(super) type AttentionFn<'a> = &'a mut dyn FnMut(&Tensor, &Tensor, &Tensor) -> Result<Tensor, ModelError>;

/// The settings that all layers of a model share.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerConfig {
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    rms_norm_eps: f64,
}

impl LayerConfig {
    pub(super) fn new(config: &DecoderConfig) -> Self {
        Self {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            rms_norm_eps: config.rms_norm_eps,
        }
    }

    /// Runs one layer in `kind`. With `output_rows`, only those rows go through the MLP: after attention no
    /// row needs another.
    pub(super) fn forward<P: Projection>(
        &self,
        layer: &LayerWeights<P>,
        ResidualStream { x, delta }: ResidualStream,
        kind: Kind,
        output_rows: Option<&Tensor>,
        attend: AttentionFn<'_>,
    ) -> Result<ResidualStream, ModelError> {
        let (mut x, normed) = match delta {
            None => {
                let normed = foil_torch::ops::rms_norm(&x, &layer.input_layernorm, self.rms_norm_eps, kind)?;
                (x, normed)
            }
            Some(delta) => {
                foil_torch::ops::add_rms_norm(&x, &delta, &layer.input_layernorm, self.rms_norm_eps)?
            }
        };
        let mut context = self.self_attn(layer, &normed, attend)?;
        if let Some(rows) = output_rows {
            context = context.index_select(0, rows);
            x = x.index_select(0, rows);
        }
        let attended = layer.o_proj.forward(&context)?;
        let (x, normed) =
            foil_torch::ops::add_rms_norm(&x, &attended, &layer.post_attention_layernorm, self.rms_norm_eps)?;
        let gated =
            foil_torch::ops::swiglu(&layer.gate_proj.forward(&normed)?, &layer.up_proj.forward(&normed)?)?;
        Ok(ResidualStream { x, delta: Some(layer.down_proj.forward(&gated)?) })
    }

    /// `x`: `[rows, hidden]`; gives the context before `o_proj`, `[rows, heads · head_dim]`.
    fn self_attn<P: Projection>(
        &self,
        layer: &LayerWeights<P>,
        x: &Tensor,
        attend: AttentionFn<'_>,
    ) -> Result<Tensor, ModelError> {
        // [rows, heads · head_dim] → [rows, heads, head_dim]
        let split_heads = |projected: Tensor, heads: i64| projected.view([-1, heads, self.head_dim]);
        let q = split_heads(layer.q_proj.forward(x)?, self.heads);
        let k = split_heads(layer.k_proj.forward(x)?, self.kv_heads);
        let v = split_heads(layer.v_proj.forward(x)?, self.kv_heads);
        let q = self.norm_heads(q, layer.q_norm.as_ref())?;
        let k = self.norm_heads(k, layer.k_norm.as_ref())?;
        Ok(attend(&q, &k, &v)?.flatten(1, 2))
    }

    /// RMSNorm over each head, if the family has one (Qwen3); the kind stays.
    fn norm_heads(&self, heads: Tensor, weight: Option<&Tensor>) -> Result<Tensor, ModelError> {
        match weight {
            None => Ok(heads),
            Some(weight) => {
                let normed = foil_torch::ops::rms_norm(
                    &heads.to_kind(Kind::Float),
                    weight,
                    self.rms_norm_eps,
                    heads.kind(),
                )?;
                Ok(normed)
            }
        }
    }
}
