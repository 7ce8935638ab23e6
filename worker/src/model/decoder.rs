//! The decoder: embeddings, layers of attention and gated MLP, final norm. It does not hold parameters.
//!
//! The residual stream and the norms are fp32; matrix products and attention run in the chosen [`Precision`].

use foil_torch::ops::{PackedWeight, RotaryAngles, Segments};
use foil_torch::runtime::uses_cpu_kernels;
use tch::{Device, Kind, Tensor};

use super::adapter::Adapter;
use super::layer::{LayerConfig, LayerWeights, Linear, ResidualStream, WeightView};
use super::rotary::RotaryEmbedding;
use super::shards::DecoderShards;
use super::{DecoderConfig, ModelError, PackedBatch, Parameters};

/// Precision of matrix products and attention. Parameters and their gradients are fp32 in any case.
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

/// A decoder's weights: fp32 masters whose projections are cast to `kind` when a layer runs, or projections
/// packed in `kind` for inference. Norms and embeddings are fp32.
#[derive(Debug)]
pub(super) struct Weights<P> {
    kind: Kind,
    embed_tokens: Tensor,
    layers: Vec<LayerWeights<P>>,
    norm: Tensor,
    /// Gathers the weights, if ranks hold shards of them.
    shards: Option<DecoderShards>,
}

impl Weights<Linear> {
    /// Packs the projections on `device` for many forward passes of about `rows` rows each, without
    /// gradients. The copy takes as much memory as the projections.
    pub(super) fn packed(self, rows: i64, device: Device) -> Result<Weights<PackedWeight>, ModelError> {
        // One product instead of several takes fewer launches. In fp32 it would need an extra copy.
        let joint = !uses_cpu_kernels(device) && self.kind != Kind::Float;
        let packed = |layer: LayerWeights<Linear>| layer.cast(self.kind).packed(rows, joint);
        let layers = self.layers.into_iter().map(packed).collect::<Result<_, _>>()?;
        let Self { kind, embed_tokens, norm, shards, .. } = self;
        Ok(Weights { kind, embed_tokens, layers, norm, shards })
    }
}

impl<P> Weights<P> {
    fn embed(&self, ids: &Tensor) -> Result<ResidualStream, ModelError> {
        if let Some(shards) = &self.shards {
            shards.gather_embeddings()?;
        }
        Ok(ResidualStream { x: foil_torch::ops::embedding(&self.embed_tokens, ids)?, delta: None })
    }

    /// Passes `output_rows` to the last layer and `None` (all rows) to the others.
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
    /// The units of sharded parameters; none if each rank holds all of them.
    pub(super) shards: Option<DecoderShards>,
}

impl Decoder {
    pub(super) fn new(config: &DecoderConfig, device: Device) -> Self {
        Self {
            config: config.clone(),
            layer: LayerConfig::new(config),
            rotary_emb: RotaryEmbedding::new(&config.rope, config.head_dim, device),
            checkpointing: false,
            shards: None,
        }
    }

    pub(super) fn rotary_emb(&self) -> &RotaryEmbedding {
        &self.rotary_emb
    }

    /// The weights for forward passes in `precision`, including the adapter.
    pub(super) fn weights(
        &self,
        parameters: &Parameters,
        adapter: Option<&Adapter>,
        precision: Precision,
    ) -> Weights<Linear> {
        let view = WeightView { parameters, adapter };
        Weights {
            kind: precision.kind(),
            embed_tokens: view.master("model.embed_tokens.weight"),
            layers: (0..self.config.layers).map(|index| view.layer(index)).collect(),
            norm: view.master("model.norm.weight"),
            shards: self.shards.clone(),
        }
    }

    /// Runs all layers on a packed batch. Returns the residual stream before the final norm at `output_rows`
    /// (`[n]`, int64): `[n, hidden]`, fp32.
    pub(super) fn forward(
        &self,
        weights: &Weights<Linear>,
        batch: &PackedBatch,
        output_rows: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let rotation = self.rotary_emb.angles(batch.positions(), batch.max_len());
        let layout = AttentionLayout { rotation, segments: batch.segments().shallow_clone() };
        let mut stream = weights.embed(batch.ids())?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let output_rows = weights.output_rows_of(index, Some(output_rows));
            if self.checkpointing {
                let shards = weights.shards.clone().map(|shards| (shards, index));
                stream =
                    self.forward_checkpointed((layer, shards), &stream, weights.kind, output_rows, &layout)?;
                continue;
            }
            if let Some(shards) = &weights.shards {
                shards.gather(index)?;
            }
            // Autograd runs the nodes of a graph from the newest to the oldest. Only casts that are created
            // along with their layer pass gradients to the reducer before the lower layers are done.
            let layer = layer.cast(weights.kind);
            stream = self
                .layer
                .forward(&layer, stream, weights.kind, output_rows, &mut |q, k, v| layout.attend(q, k, v))?;
            if let Some(shards) = &weights.shards {
                stream = ResidualStream::from_tensors(shards.gather_in_backward(index, &stream.tensors())?);
            }
        }
        Ok(stream.sum())
    }

    /// Runs all packed layers on `ids`, `[rows]`, with `attend` as attention. Returns the residual stream
    /// before the final norm, `[rows, hidden]`, or `[n, hidden]` with `output_rows` (`[n]`).
    pub(super) fn forward_layers(
        &self,
        weights: &Weights<PackedWeight>,
        ids: &Tensor,
        output_rows: Option<&Tensor>,
        attend: AttentionFn<'_>,
    ) -> Result<Tensor, ModelError> {
        let mut stream = weights.embed(ids)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let output_rows = weights.output_rows_of(index, output_rows);
            let attend = &mut |q: &Tensor, k: &Tensor, v: &Tensor| attend(index, q, k, v);
            stream = self.layer.forward(layer, stream, weights.kind, output_rows, attend)?;
        }
        Ok(stream.sum())
    }

    /// Runs one layer on a packed batch and keeps only its input and its master weights for the backward
    /// pass.
    fn forward_checkpointed(
        &self,
        (layer, shards): (&LayerWeights<Linear>, Option<(DecoderShards, usize)>),
        stream: &ResidualStream,
        kind: Kind,
        output_rows: Option<&Tensor>,
        layout: &AttentionLayout,
    ) -> Result<ResidualStream, ModelError> {
        let (config, skeleton, layout) = (self.layer, layer.skeleton(), layout.shallow_clone());
        let output_rows = output_rows.map(Tensor::shallow_clone);
        let is_first = stream.delta.is_none();
        let mut inputs = stream.tensors();
        inputs.extend(layer.tensors());
        let recompute = move |inputs: &[Tensor]| {
            if let Some((shards, index)) = &shards {
                shards.gather_recomputed(*index)?;
            }
            let (stream, weights) = inputs.split_at(if is_first { 1 } else { 2 });
            let stream = ResidualStream::from_tensors(stream.iter().map(Tensor::shallow_clone));
            let layer = skeleton.with_tensors(weights).cast(kind);
            let attend = &mut |q: &Tensor, k: &Tensor, v: &Tensor| layout.attend(q, k, v);
            let stream = config.forward(&layer, stream, kind, output_rows.as_ref(), attend)?;
            Ok::<_, ModelError>(stream.tensors())
        };
        Ok(ResidualStream::from_tensors(foil_torch::autograd::checkpoint(&inputs, recompute)?))
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
    segments: Segments,
}

impl AttentionLayout {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, ModelError> {
        Ok(foil_torch::ops::attention(q, k, v, &self.rotation, &self.segments)?)
    }

    fn shallow_clone(&self) -> Self {
        let RotaryAngles { cos, sin } = &self.rotation;
        let rotation = RotaryAngles { cos: cos.shallow_clone(), sin: sin.shallow_clone() };
        Self { rotation, segments: self.segments.shallow_clone() }
    }
}
