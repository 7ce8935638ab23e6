//! The decoder: embeddings, layers of attention and gated MLP, final norm.
//!
//! The residual stream and the norms are fp32; matrix products and attention run in the chosen [`Precision`].

use std::sync::Arc;

use foil_torch::Segment;
use foil_torch::ops::{PackedWeight, RotaryAngles};
use tch::{Device, Kind, Tensor};

use super::adapter::Adapter;
use super::layer::{Cast, LayerShape, LayerWeights, Matrix, Plain, Stream};
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

/// A decoder's parameters as one forward uses them: matrices in the compute precision, norms and embeddings fp32.
#[derive(Debug)]
pub(super) struct Weights<M> {
    kind: Kind,
    embeddings: Tensor,
    layers: Vec<LayerWeights<M>>,
    norm: Tensor,
}

impl Weights<Plain> {
    /// Laid out for many forward passes of about `rows` rows each, without gradients. Takes as much memory again as the
    /// matrices.
    pub(super) fn packed(self, rows: i64) -> Result<Weights<PackedWeight>, ModelError> {
        let layers = self.layers.into_iter().map(|layer| layer.packed(rows)).collect::<Result<_, _>>()?;
        Ok(Weights { kind: self.kind, embeddings: self.embeddings, layers, norm: self.norm })
    }
}

impl<M> Weights<M> {
    fn embed(&self, ids: &Tensor) -> Stream {
        Stream { x: Tensor::embedding(&self.embeddings, ids, -1, false, false), delta: None }
    }

    /// Of a layer: the rows that leave it, where those are not all.
    fn read_of<'r>(&self, layer: usize, read: Option<&'r Tensor>) -> Option<&'r Tensor> {
        read.filter(|_| layer + 1 == self.layers.len())
    }
}

/// As [`super::layer::Attend`], with the layer's number first.
pub(super) type Attend<'a> =
    &'a mut dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor, ModelError>;

/// The part of a model below its head. Holds no parameters, only what follows from the configuration.
#[derive(Debug)]
pub(super) struct Decoder {
    config: DecoderConfig,
    shape: LayerShape,
    rotary: Rotary,
    /// Keep only each layer's input for backward, and compute the layer again there.
    pub(super) checkpointing: bool,
}

impl Decoder {
    pub(super) fn new(config: &DecoderConfig, device: Device) -> Self {
        Self {
            config: config.clone(),
            shape: LayerShape::of(config),
            rotary: Rotary::new(&config.rope, config.head_dim, device),
            checkpointing: false,
        }
    }

    pub(super) fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    pub(super) fn cast(
        &self,
        parameters: &Parameters,
        adapter: Option<&Adapter>,
        precision: Precision,
    ) -> Weights<Plain> {
        let cast = Cast { parameters, adapter, kind: precision.kind() };
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
        weights: &Weights<Plain>,
        batch: &PackedBatch,
        read: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let rotation = self.rotary.at(batch.positions(), batch.longest());
        if !self.checkpointing {
            return self.run(weights, batch.ids(), Some(read), &mut |_, q, k, v| {
                Ok(foil_torch::ops::attention(q, k, v, &rotation, batch.segments())?)
            });
        }
        let packing = Packing { rotation, segments: batch.segments().into() };
        let mut stream = weights.embed(batch.ids());
        for (index, layer) in weights.layers.iter().enumerate() {
            let read = weights.read_of(index, Some(read));
            stream = self.checkpointed(layer, stream, weights.kind, read, &packing)?;
        }
        Ok(stream.sum())
    }

    /// Runs all layers on `ids`, `[rows]`, attention done by `attend`; gives the residual stream, `[rows, hidden]`, or
    /// `[n, hidden]` where `read` (`[n]`) names the rows that leave the last layer.
    pub(super) fn run<M: Matrix>(
        &self,
        weights: &Weights<M>,
        ids: &Tensor,
        read: Option<&Tensor>,
        attend: Attend<'_>,
    ) -> Result<Tensor, ModelError> {
        let mut stream = weights.embed(ids);
        for (index, layer) in weights.layers.iter().enumerate() {
            let read = weights.read_of(index, read);
            let attend = &mut |q: &Tensor, k: &Tensor, v: &Tensor| attend(index, q, k, v);
            stream = self.shape.forward(layer, stream, weights.kind, read, attend)?;
        }
        Ok(stream.sum())
    }

    /// One layer on a packed batch, of which backward keeps the input only.
    fn checkpointed(
        &self,
        layer: &LayerWeights<Plain>,
        stream: Stream,
        kind: Kind,
        read: Option<&Tensor>,
        packing: &Packing,
    ) -> Result<Stream, ModelError> {
        let (shape, outline, packing) = (self.shape, layer.outline(), packing.shallow_clone());
        let read = read.map(Tensor::shallow_clone);
        let first = stream.delta.is_none();
        let mut inputs: Vec<Tensor> = std::iter::once(stream.x).chain(stream.delta).collect();
        inputs.extend(layer.tensors());
        let again = move |inputs: &[Tensor]| {
            let (stream, weights) = inputs.split_at(if first { 1 } else { 2 });
            let stream =
                Stream { x: stream[0].shallow_clone(), delta: stream.get(1).map(Tensor::shallow_clone) };
            let attend = &mut |q: &Tensor, k: &Tensor, v: &Tensor| {
                Ok(foil_torch::ops::attention(q, k, v, &packing.rotation, &packing.segments)?)
            };
            let Stream { x, delta } =
                shape.forward(&outline.filled(weights), stream, kind, read.as_ref(), attend)?;
            Ok::<_, ModelError>(std::iter::once(x).chain(delta).collect())
        };
        let mut results = foil_torch::autograd::checkpoint(&inputs, again)?.into_iter();
        match (results.next(), results.next()) {
            (Some(x), delta) => Ok(Stream { x, delta }),
            (None, _) => unreachable!("a layer gives a stream"),
        }
    }

    /// The final norm, in the compute precision: what a language-model head reads. `[rows, hidden]`.
    pub(super) fn finish<M>(&self, weights: &Weights<M>, residual: &Tensor) -> Result<Tensor, ModelError> {
        Ok(foil_torch::ops::rms_norm(residual, &weights.norm, self.config.rms_norm_eps, weights.kind)?)
    }

    /// The final norm in fp32: what a reward head reads. `[rows, hidden]`.
    pub(super) fn finish_fp32<M>(
        &self,
        weights: &Weights<M>,
        residual: &Tensor,
    ) -> Result<Tensor, ModelError> {
        Ok(foil_torch::ops::rms_norm(residual, &weights.norm, self.config.rms_norm_eps, Kind::Float)?)
    }
}

/// Where the tokens of a packed batch stand, for attention.
struct Packing {
    rotation: RotaryAngles,
    segments: Arc<[Segment]>,
}

impl Packing {
    fn shallow_clone(&self) -> Self {
        let RotaryAngles { cos, sin } = &self.rotation;
        let rotation = RotaryAngles { cos: cos.shallow_clone(), sin: sin.shallow_clone() };
        Self { rotation, segments: Arc::clone(&self.segments) }
    }
}
