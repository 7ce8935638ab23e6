//! One decoder layer: its weights and its forward pass.

use foil_torch::ops::PackedWeight;
use tch::{Kind, Tensor};

use super::adapter::{Adapter, LoraWeights};
use super::{DecoderConfig, ModelError, Parameters};

/// x · weightᵀ + bias. All products with weight matrices use this function.
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

/// A weight matrix with its optional bias and LoRA adapter; differentiable.
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
    /// The weight with its adapter merged, and the bias.
    fn merged(self) -> (Tensor, Option<Tensor>) {
        let weight = match &self.lora {
            None => self.weight,
            Some(lora) => self.weight + lora.delta_weight().to_kind(lora.a.kind()),
        };
        (weight, self.bias)
    }

    /// Packs the weight for many products of about `rows` rows each, without gradients. The adapter is
    /// merged.
    fn packed(self, rows: i64) -> Result<PackedWeight, ModelError> {
        let (weight, bias) = self.merged();
        Ok(PackedWeight::new(&weight, bias.as_ref(), rows)?)
    }

    fn cast(&self, kind: Kind) -> Self {
        self.map_tensors(&mut |tensor| tensor.to_kind(kind))
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

/// Matrices with the same input: separate, or stacked as one matrix with the number of rows of each.
#[derive(Debug)]
pub(super) enum Projections<P> {
    Apart(Vec<P>),
    Joint(P, Vec<i64>),
}

impl<P: Projection> Projections<P> {
    /// `[rows, in]` → `[rows, out]` of each matrix.
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        match self {
            Self::Apart(all) => all.iter().map(|projection| projection.forward(x)).collect(),
            Self::Joint(all, widths) => Ok(all.forward(x)?.split_with_sizes(widths, -1)),
        }
    }
}

impl Projections<Linear> {
    fn map(&self, mut f: impl FnMut(&Linear) -> Linear) -> Self {
        match self {
            Self::Apart(all) => Self::Apart(all.iter().map(f).collect()),
            Self::Joint(all, widths) => Self::Joint(f(all), widths.clone()),
        }
    }

    fn cast(&self, kind: Kind) -> Self {
        self.map(|projection| projection.cast(kind))
    }

    fn packed(self, rows: i64, joint: bool) -> Result<Projections<PackedWeight>, ModelError> {
        let is_uniform =
            |all: &[Linear]| all.windows(2).all(|two| two[0].bias.is_some() == two[1].bias.is_some());
        Ok(match self {
            Self::Apart(all) if joint && is_uniform(&all) => {
                let merged: Vec<(Tensor, Option<Tensor>)> = all.into_iter().map(Linear::merged).collect();
                let weights: Vec<&Tensor> = merged.iter().map(|(weight, _)| weight).collect();
                let biases: Option<Vec<&Tensor>> = merged.iter().map(|(_, bias)| bias.as_ref()).collect();
                let bias = biases.map(|biases| Tensor::cat(&biases, 0));
                let widths = weights.iter().map(|weight| weight.size()[0]).collect();
                Projections::Joint(PackedWeight::new(&Tensor::cat(&weights, 0), bias.as_ref(), rows)?, widths)
            }
            Self::Apart(all) => {
                Projections::Apart(all.into_iter().map(|part| part.packed(rows)).collect::<Result<_, _>>()?)
            }
            Self::Joint(all, widths) => Projections::Joint(all.packed(rows)?, widths),
        })
    }
}

/// A layer's weights by their Hugging Face names. Projections are fp32 masters or cast to the compute
/// precision; norms are fp32.
#[derive(Debug)]
pub(super) struct LayerWeights<P> {
    input_layernorm: Tensor,
    /// q_proj, k_proj and v_proj.
    qkv_proj: Projections<P>,
    o_proj: P,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    post_attention_layernorm: Tensor,
    /// gate_proj and up_proj.
    gate_up_proj: Projections<P>,
    down_proj: P,
}

impl LayerWeights<Linear> {
    /// The layer packed for many products of about `rows` rows each. If `joint`, matrices with the same input
    /// are stacked.
    pub(super) fn packed(self, rows: i64, joint: bool) -> Result<LayerWeights<PackedWeight>, ModelError> {
        Ok(LayerWeights {
            input_layernorm: self.input_layernorm,
            qkv_proj: self.qkv_proj.packed(rows, joint)?,
            o_proj: self.o_proj.packed(rows)?,
            q_norm: self.q_norm,
            k_norm: self.k_norm,
            post_attention_layernorm: self.post_attention_layernorm,
            gate_up_proj: self.gate_up_proj.packed(rows, joint)?,
            down_proj: self.down_proj.packed(rows)?,
        })
    }

    /// The layer with its projections in `kind`. The cast is part of the autograd graph, so gradients reach
    /// the fp32 master weights in fp32.
    pub(super) fn cast(&self, kind: Kind) -> Self {
        Self {
            input_layernorm: self.input_layernorm.shallow_clone(),
            qkv_proj: self.qkv_proj.cast(kind),
            o_proj: self.o_proj.cast(kind),
            q_norm: self.q_norm.as_ref().map(Tensor::shallow_clone),
            k_norm: self.k_norm.as_ref().map(Tensor::shallow_clone),
            post_attention_layernorm: self.post_attention_layernorm.shallow_clone(),
            gate_up_proj: self.gate_up_proj.cast(kind),
            down_proj: self.down_proj.cast(kind),
        }
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
            qkv_proj: self.qkv_proj.map(|projection| projection.map_tensors(f)),
            o_proj: self.o_proj.map_tensors(f),
            q_norm: self.q_norm.as_ref().map(&mut *f),
            k_norm: self.k_norm.as_ref().map(&mut *f),
            post_attention_layernorm: f(&self.post_attention_layernorm),
            gate_up_proj: self.gate_up_proj.map(|projection| projection.map_tensors(f)),
            down_proj: self.down_proj.map_tensors(f),
        }
    }
}

/// The fp32 master weights by name. The model's constructor has checked that all of them exist.
pub(super) struct WeightView<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) adapter: Option<&'a Adapter>,
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
            weight: self.master(&format!("{name}.weight")),
            bias: self.get(&format!("{name}.bias")),
            lora: self.adapter.and_then(|adapter| adapter.lora(name)),
        }
    }

    pub(super) fn layer(&self, index: i64) -> LayerWeights<Linear> {
        let full = |name: &str| format!("model.layers.{index}.{name}");
        LayerWeights {
            input_layernorm: self.master(&full("input_layernorm.weight")),
            qkv_proj: Projections::Apart(
                ["q_proj", "k_proj", "v_proj"]
                    .map(|name| self.linear(&full(&format!("self_attn.{name}"))))
                    .into(),
            ),
            o_proj: self.linear(&full("self_attn.o_proj")),
            q_norm: self.get(&full("self_attn.q_norm.weight")),
            k_norm: self.get(&full("self_attn.k_norm.weight")),
            post_attention_layernorm: self.master(&full("post_attention_layernorm.weight")),
            gate_up_proj: Projections::Apart(
                ["gate_proj", "up_proj"].map(|name| self.linear(&full(&format!("mlp.{name}")))).into(),
            ),
            down_proj: self.linear(&full("mlp.down_proj")),
        }
    }
}

/// The residual stream between two layers, `[rows, hidden]`, as x and delta. They are not yet added, so that
/// the next norm adds them in the same pass.
#[derive(Debug)]
pub(super) struct ResidualStream {
    /// The stream before the pending addition, fp32.
    pub(super) x: Tensor,
    /// Output of the previous layer's MLP, in the compute precision; `None` before the first layer.
    pub(super) delta: Option<Tensor>,
}

impl ResidualStream {
    /// Restores the stream from its [tensors](Self::tensors).
    pub(super) fn from_tensors(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        let mut tensors = tensors.into_iter();
        let (Some(x), delta) = (tensors.next(), tensors.next()) else {
            unreachable!("a residual stream has at least one tensor")
        };
        Self { x, delta }
    }

    /// x, and delta if any, sharing storage.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        std::iter::once(&self.x).chain(&self.delta).map(Tensor::shallow_clone).collect()
    }

    /// x + delta, fp32.
    pub(super) fn sum(self) -> Tensor {
        match self.delta {
            // Not in place: the norm's backward needs the original stream.
            Some(delta) => self.x.g_add(&delta),
            None => self.x,
        }
    }
}

/// Attention, (q, k, v) → context, over a packed batch or a KV cache. `q` and the context are `[rows, heads,
/// head_dim]`; `k` and `v` are `[rows, kv_heads, head_dim]`. The callee applies the rotary embedding.
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

    /// Runs one layer in `kind`. With `output_rows`, only those rows go through the MLP, since rows are
    /// independent after attention.
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
        let gated = match &layer.gate_up_proj.forward(&normed)?[..] {
            [gate, up] => foil_torch::ops::swiglu(gate, up)?,
            _ => unreachable!("an MLP has two projections of its input"),
        };
        Ok(ResidualStream { x, delta: Some(layer.down_proj.forward(&gated)?) })
    }

    /// `x` is `[rows, hidden]`. Returns the context before `o_proj`, `[rows, heads · head_dim]`.
    fn self_attn<P: Projection>(
        &self,
        layer: &LayerWeights<P>,
        x: &Tensor,
        attend: AttentionFn<'_>,
    ) -> Result<Tensor, ModelError> {
        let projected = layer.qkv_proj.forward(x)?;
        let [q, k, v] = &projected[..] else {
            unreachable!("attention has three projections of its input");
        };
        // [rows, heads · head_dim] → [rows, heads, head_dim]
        let split_heads = |projected: &Tensor, heads: i64| projected.view([-1, heads, self.head_dim]);
        let (q, k) = (split_heads(q, self.heads), split_heads(k, self.kv_heads));
        let v = split_heads(v, self.kv_heads);
        let q = self.norm_heads(q, layer.q_norm.as_ref())?;
        let k = self.norm_heads(k, layer.k_norm.as_ref())?;
        Ok(attend(&q, &k, &v)?.flatten(1, 2))
    }

    /// Applies RMSNorm to each head, if the family has it (Qwen3), and keeps the kind.
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
