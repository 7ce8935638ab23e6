//! The decoder: embeddings, layers of attention and gated MLP, final norm. It holds no parameters.
//!
//! The residual stream and the norms are fp32; matrix products and attention run in the chosen [`Precision`].

use std::sync::Arc;

use foil_torch::Segment;
use foil_torch::ops::{PackedWeight, RotaryAngles};
use tch::{Device, Kind, Tensor};

use super::adapter::Adapter;
use super::layer::{LayerConfig, LayerWeights, Linear, Projection, ResidualStream, WeightView};
use super::rotary::RotaryEmbedding;
use super::{DecoderConfig, ModelError, PackedBatch, Parameters};

/// Precision of matrix products and attention. Parameters and their gradients are fp32 in either.
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

/// A decoder's weights as one forward pass uses them: projections in the compute precision, norms and
/// embeddings fp32.
#[derive(Debug)]
pub(super) struct Weights<P> {
    kind: Kind,
    embed_tokens: Tensor,
    layers: Vec<LayerWeights<P>>,
    norm: Tensor,
}

impl Weights<Linear> {
    /// Packs the projections for many forward passes of about `rows` rows each, without gradients. Takes as
    /// much memory again as the projections.
    pub(super) fn packed(self, rows: i64) -> Result<Weights<PackedWeight>, ModelError> {
        let layers = self.layers.into_iter().map(|layer| layer.packed(rows)).collect::<Result<_, _>>()?;
        Ok(Weights { kind: self.kind, embed_tokens: self.embed_tokens, layers, norm: self.norm })
    }
}

impl<P> Weights<P> {
    fn embed(&self, ids: &Tensor) -> ResidualStream {
        ResidualStream { x: Tensor::embedding(&self.embed_tokens, ids, -1, false, false), delta: None }
    }

    /// `output_rows` for the last layer, `None` (all rows) for the others.
    fn output_rows_of<'r>(&self, layer: usize, output_rows: Option<&'r Tensor>) -> Option<&'r Tensor> {
        output_rows.filter(|_| layer + 1 == self.layers.len())
    }
}

/// [`super::layer::AttentionFn`] with the layer's index as first argument.
pub(super) type AttentionFn<'a> =
    &'a mut dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor, ModelError>;

/// The part of a model below its head, without its parameters.
#[derive(Debug)]
pub(super) struct Decoder {
    config: DecoderConfig,
    layer: LayerConfig,
    rotary_emb: RotaryEmbedding,
    /// Activation checkpointing: keep only each layer's input and recompute the layer in the backward pass.
    pub(super) checkpointing: bool,
}

impl Decoder {
    pub(super) fn new(config: &DecoderConfig, device: Device) -> Self {
        Self {
            config: config.clone(),
            layer: LayerConfig::new(config),
            rotary_emb: RotaryEmbedding::new(&config.rope, config.head_dim, device),
            checkpointing: false,
        }
    }

    pub(super) fn rotary_emb(&self) -> &RotaryEmbedding {
        &self.rotary_emb
    }

    /// The weights of a forward pass in `precision`, with the adapter.
    pub(super) fn weights(
        &self,
        parameters: &Parameters,
        adapter: Option<&Adapter>,
        precision: Precision,
    ) -> Weights<Linear> {
        let view = WeightView { parameters, adapter, kind: precision.kind() };
        Weights {
            kind: view.kind,
            embed_tokens: view.master("model.embed_tokens.weight"),
            layers: (0..self.config.layers).map(|index| view.layer(index)).collect(),
            norm: view.master("model.norm.weight"),
        }
    }

    /// Runs all layers on a packed batch; gives the residual stream before the final norm at `output_rows`
    /// (`[n]`, int64): `[n, hidden]`, fp32.
    pub(super) fn forward(
        &self,
        weights: &Weights<Linear>,
        batch: &PackedBatch,
        output_rows: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let rotation = self.rotary_emb.angles(batch.positions(), batch.max_len());
        if !self.checkpointing {
            return self.forward_layers(weights, batch.ids(), Some(output_rows), &mut |_, q, k, v| {
                Ok(foil_torch::ops::attention(q, k, v, &rotation, batch.segments())?)
            });
        }
        let layout = AttentionLayout { rotation, segments: batch.segments().into() };
        let mut stream = weights.embed(batch.ids());
        for (index, layer) in weights.layers.iter().enumerate() {
            let output_rows = weights.output_rows_of(index, Some(output_rows));
            stream = self.forward_checkpointed(layer, stream, weights.kind, output_rows, &layout)?;
        }
        Ok(stream.sum())
    }

    /// Runs all layers on `ids`, `[rows]`, with attention by `attend`; gives the residual stream before the
    /// final norm, `[rows, hidden]`, or `[n, hidden]` with `output_rows` (`[n]`).
    pub(super) fn forward_layers<P: Projection>(
        &self,
        weights: &Weights<P>,
        ids: &Tensor,
        output_rows: Option<&Tensor>,
        attend: AttentionFn<'_>,
    ) -> Result<Tensor, ModelError> {
        let mut stream = weights.embed(ids);
        for (index, layer) in weights.layers.iter().enumerate() {
            let output_rows = weights.output_rows_of(index, output_rows);
            let attend = &mut |q: &Tensor, k: &Tensor, v: &Tensor| attend(index, q, k, v);
            stream = self.layer.forward(layer, stream, weights.kind, output_rows, attend)?;
        }
        Ok(stream.sum())
    }

    /// Runs one layer on a packed batch and keeps only its input for the backward pass.
    fn forward_checkpointed(
        &self,
        layer: &LayerWeights<Linear>,
        stream: ResidualStream,
        kind: Kind,
        output_rows: Option<&Tensor>,
        layout: &AttentionLayout,
    ) -> Result<ResidualStream, ModelError> {
        let (config, skeleton, layout) = (self.layer, layer.skeleton(), layout.shallow_clone());
        let output_rows = output_rows.map(Tensor::shallow_clone);
        let is_first = stream.delta.is_none();
        let mut inputs: Vec<Tensor> = std::iter::once(stream.x).chain(stream.delta).collect();
        inputs.extend(layer.tensors());
        let recompute = move |inputs: &[Tensor]| {
            let (stream, weights) = inputs.split_at(if is_first { 1 } else { 2 });
            let stream = ResidualStream {
                x: stream[0].shallow_clone(),
                delta: stream.get(1).map(Tensor::shallow_clone),
            };
            let attend = &mut |q: &Tensor, k: &Tensor, v: &Tensor| {
                Ok(foil_torch::ops::attention(q, k, v, &layout.rotation, &layout.segments)?)
            };
            let ResidualStream { x, delta } = config.forward(
                &skeleton.with_tensors(weights),
                stream,
                kind,
                output_rows.as_ref(),
                attend,
            )?;
            Ok::<_, ModelError>(std::iter::once(x).chain(delta).collect())
        };
        let mut results = foil_torch::autograd::checkpoint(&inputs, recompute)?.into_iter();
        match (results.next(), results.next()) {
            (Some(x), delta) => Ok(ResidualStream { x, delta }),
            (None, _) => unreachable!("a layer returns a residual stream"),
        }
    }

    /// The final norm in the compute precision, for a language-model head. `[rows, hidden]`.
    pub(super) fn final_norm<P>(
        &self,
        weights: &Weights<P>,
        residual: &Tensor,
    ) -> Result<Tensor, ModelError> {
        Ok(foil_torch::ops::rms_norm(residual, &weights.norm, self.config.rms_norm_eps, weights.kind)?)
    }

    /// The final norm in fp32, for a reward head. `[rows, hidden]`.
    pub(super) fn final_norm_fp32<P>(
        &self,
        weights: &Weights<P>,
        residual: &Tensor,
    ) -> Result<Tensor, ModelError> {
        Ok(foil_torch::ops::rms_norm(residual, &weights.norm, self.config.rms_norm_eps, Kind::Float)?)
    }
}

/// Positions and sequence boundaries of a packed batch, for attention.
struct AttentionLayout {
    rotation: RotaryAngles,
    segments: Arc<[Segment]>,
}

impl AttentionLayout {
    fn shallow_clone(&self) -> Self {
        let RotaryAngles { cos, sin } = &self.rotation;
        let rotation = RotaryAngles { cos: cos.shallow_clone(), sin: sin.shallow_clone() };
        Self { rotation, segments: Arc::clone(&self.segments) }
    }
}
