//! The decoder: embeddings, layers of attention and gated MLP, final norm.
//!
//! The residual stream and the norms are fp32; matrix products and attention run in the chosen [`Precision`].

use tch::{Device, Kind, Tensor};

use super::rotary::Rotary;
use super::{DecoderConfig, ModelError, PackedBatch, Parameters};

/// What matrix products compute in. Parameters and their gradients are fp32 in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Fp32,
    Bf16,
}

impl Precision {
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// Every matrix product with weights goes through here.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    #[cfg(test)]
    super::tests::observe_matmul(x, weight);
    x.linear(weight, bias)
}

#[derive(Debug)]
struct LayerWeights {
    input_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    post_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A decoder's parameters as one forward uses them: matrices in the compute precision, norms and embeddings fp32.
///
/// Casting is part of the graph, so gradients reach the fp32 masters in fp32.
#[derive(Debug)]
pub(super) struct Weights {
    kind: Kind,
    embeddings: Tensor,
    layers: Vec<LayerWeights>,
    norm: Tensor,
}

/// Takes tensors out of `Parameters` by name; a model's constructor has made sure that all are there.
struct Cast<'a> {
    parameters: &'a Parameters,
    kind: Kind,
}

impl Cast<'_> {
    fn optional(&self, name: &str) -> Option<Tensor> {
        self.parameters.get(name).map(Tensor::shallow_clone)
    }

    fn master(&self, name: &str) -> Tensor {
        match self.optional(name) {
            Some(tensor) => tensor,
            None => unreachable!("a model was built without its parameter {name}"),
        }
    }

    fn linear(&self, name: &str) -> Linear {
        let weight = self.master(&format!("{name}.weight")).to_kind(self.kind);
        let bias = self.optional(&format!("{name}.bias")).map(|bias| bias.to_kind(self.kind));
        Linear { weight, bias }
    }

    fn layer(&self, index: i64) -> LayerWeights {
        let at = |name: &str| format!("model.layers.{index}.{name}");
        LayerWeights {
            input_norm: self.master(&at("input_layernorm.weight")),
            q: self.linear(&at("self_attn.q_proj")),
            k: self.linear(&at("self_attn.k_proj")),
            v: self.linear(&at("self_attn.v_proj")),
            o: self.linear(&at("self_attn.o_proj")),
            q_norm: self.optional(&at("self_attn.q_norm.weight")),
            k_norm: self.optional(&at("self_attn.k_norm.weight")),
            post_norm: self.master(&at("post_attention_layernorm.weight")),
            gate: self.linear(&at("mlp.gate_proj")),
            up: self.linear(&at("mlp.up_proj")),
            down: self.linear(&at("mlp.down_proj")),
        }
    }
}

/// How a layer's queries meet keys and values: (layer, q, k, v) → context. `q` and the context are
/// `[rows, heads, head_dim]`, `k` and `v` `[rows, kv_heads, head_dim]`; rotation is the callee's part.
pub(super) type Attend<'a> =
    &'a mut dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor, ModelError>;

/// The part of a model below its head. Holds no parameters, only what follows from the configuration.
#[derive(Debug)]
pub(super) struct Decoder {
    config: DecoderConfig,
    rotary: Rotary,
}

impl Decoder {
    pub(super) fn new(config: &DecoderConfig, device: Device) -> Self {
        let rotary = Rotary::new(&config.rope, config.head_dim, device);
        Self { config: config.clone(), rotary }
    }

    pub(super) fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    pub(super) fn cast(&self, parameters: &Parameters, precision: Precision) -> Weights {
        let cast = Cast { parameters, kind: precision.kind() };
        Weights {
            kind: cast.kind,
            embeddings: cast.master("model.embed_tokens.weight"),
            layers: (0..self.config.layers).map(|index| cast.layer(index)).collect(),
            norm: cast.master("model.norm.weight"),
        }
    }

    /// The residual stream after the last layer, before the final norm, at the rows `read` (`[n]`, int64) of a packed
    /// batch: `[n, hidden]`, fp32.
    pub(super) fn residual(
        &self,
        weights: &Weights,
        batch: &PackedBatch,
        read: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let rotation = self.rotary.at(batch.positions(), batch.longest());
        self.run(weights, batch.ids(), Some(read), &mut |_, q, k, v| {
            Ok(foil_c10d::attention(q, k, v, &rotation, batch.segments())?)
        })
    }

    /// Runs all layers on `ids`, `[rows]`, attention done by `attend`; gives the residual stream, `[rows, hidden]`.
    ///
    /// Where `read` names rows, only those leave the last layer: after its attention no row needs another.
    pub(super) fn run(
        &self,
        weights: &Weights,
        ids: &Tensor,
        read: Option<&Tensor>,
        attend: Attend<'_>,
    ) -> Result<Tensor, ModelError> {
        let eps = self.config.rms_norm_eps;
        let mut x = Tensor::embedding(&weights.embeddings, ids, -1, false, false);
        let mut delta: Option<Tensor> = None;
        for (index, layer) in weights.layers.iter().enumerate() {
            let normed = match delta.take() {
                None => foil_c10d::rms_norm(&x, &layer.input_norm, eps, weights.kind)?,
                Some(delta) => {
                    let (sum, normed) = foil_c10d::add_rms_norm(&x, &delta, &layer.input_norm, eps)?;
                    x = sum;
                    normed
                }
            };
            let mut context = self.attention(index, layer, &normed, attend)?;
            if let Some(read) = read.filter(|_| index + 1 == weights.layers.len()) {
                context = context.index_select(0, read);
                x = x.index_select(0, read);
            }
            let attended = layer.o.forward(&context);
            let (sum, normed) = foil_c10d::add_rms_norm(&x, &attended, &layer.post_norm, eps)?;
            x = sum;
            delta = Some(mlp(layer, &normed)?);
        }
        Ok(match delta {
            // Not in place: the norm's backward needs the stream as it was.
            Some(delta) => x.g_add(&delta),
            None => x,
        })
    }

    /// The final norm, in the compute precision: what a language-model head reads. `[rows, hidden]`.
    pub(super) fn finish(&self, weights: &Weights, residual: &Tensor) -> Result<Tensor, ModelError> {
        Ok(foil_c10d::rms_norm(residual, &weights.norm, self.config.rms_norm_eps, weights.kind)?)
    }

    /// The final norm in fp32: what a reward head reads. `[rows, hidden]`.
    pub(super) fn finish_fp32(&self, weights: &Weights, residual: &Tensor) -> Result<Tensor, ModelError> {
        Ok(foil_c10d::rms_norm(residual, &weights.norm, self.config.rms_norm_eps, Kind::Float)?)
    }

    /// `x`: `[rows, hidden]`; gives the context before the output projection, `[rows, heads · head_dim]`.
    fn attention(
        &self,
        index: usize,
        layer: &LayerWeights,
        x: &Tensor,
        attend: Attend<'_>,
    ) -> Result<Tensor, ModelError> {
        let split = |projected: Tensor, heads: i64| projected.view([-1, heads, self.config.head_dim]);
        let q = split(layer.q.forward(x), self.config.heads);
        let k = split(layer.k.forward(x), self.config.kv_heads);
        let v = split(layer.v.forward(x), self.config.kv_heads);
        let q = self.head_norm(q, layer.q_norm.as_ref())?;
        let k = self.head_norm(k, layer.k_norm.as_ref())?;
        Ok(attend(index, &q, &k, &v)?.flatten(1, 2))
    }

    /// Norm over each head, where the family has one; the kind stays.
    fn head_norm(&self, heads: Tensor, weight: Option<&Tensor>) -> Result<Tensor, ModelError> {
        match weight {
            None => Ok(heads),
            Some(weight) => {
                let eps = self.config.rms_norm_eps;
                Ok(foil_c10d::rms_norm(&heads.to_kind(Kind::Float), weight, eps, heads.kind())?)
            }
        }
    }
}

fn mlp(layer: &LayerWeights, x: &Tensor) -> Result<Tensor, ModelError> {
    let gated = foil_c10d::swiglu(&layer.gate.forward(x), &layer.up.forward(x))?;
    Ok(layer.down.forward(&gated))
}
