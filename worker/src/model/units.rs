//! Units: groups of parameters that ranks gather together, or whose gradients they sum together.
//!
//! A unit is a decoder layer's matrices and biases, the embeddings, the language-model head, all norms, a
//! reward model's head, or an adapter. Its parameters are flattened and concatenated, then split into shards
//! of equal length, one for each rank.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use foil_common::model::{EMBEDDINGS, LM_HEAD, SCORE};
use foil_torch::c10d::FlatParameters;
use tch::Tensor;

use super::{ModelError, ModelFilesError, Parameters};

/// Each parameter begins at a multiple of this many elements of its unit, so that kernels find it aligned.
const ALIGNMENT: i64 = 64;

/// Names and shapes of parameters.
type Shapes = Vec<(String, Vec<i64>)>;

/// A unit's parameters before memory is allocated.
pub(super) struct Layout {
    pub(super) name: String,
    /// The decoder layer of the unit; `None` for other units.
    layer: Option<i64>,
    /// Whether the unit is small and stays gathered during a whole step.
    pub(super) resident: bool,
    /// Whether the unit is fp32 in any precision.
    pub(super) fp32: bool,
    pub(super) places: Vec<Place>,
    /// Number of elements of all parameters and of the gaps between them.
    pub(super) elements: i64,
}

/// A parameter's position in its unit.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    /// Index of its first element in the unit.
    pub(super) offset: i64,
}

/// A unit and this rank's shard of it.
#[derive(Debug)]
pub struct ShardedUnit {
    name: String,
    /// Its whole parameters. With FSDP, they have values only while they are gathered.
    members: Vec<(Place, Tensor)>,
    elements: i64,
    /// `[ceil(elements / world)]`, fp32.
    shard: Tensor,
    pub(super) resident: bool,
}

impl Place {
    /// The range of its elements in the unit.
    pub(super) fn range(&self) -> Range<i64> {
        self.offset..self.offset + element_count(&self.shape)
    }
}

fn element_count(shape: &[i64]) -> i64 {
    shape.iter().product()
}

/// A unit's name, whether it is resident, and whether it is fp32 in any precision.
pub(super) fn unit_of(parameter: &str) -> (String, bool, bool) {
    if parameter.contains("lora_") {
        return ("adapter".to_owned(), true, false);
    }
    if parameter.ends_with("norm.weight") {
        return ("norms".to_owned(), true, true);
    }
    match parameter {
        SCORE => ("score".to_owned(), true, true),
        EMBEDDINGS => ("embed_tokens".to_owned(), false, false),
        LM_HEAD => ("lm_head".to_owned(), false, false),
        _ => (layer_unit(layer_of(parameter).unwrap_or_default()), false, false),
    }
}

/// The layer that a parameter such as `model.layers.3.mlp.up_proj.weight` belongs to.
fn layer_of(parameter: &str) -> Option<i64> {
    parameter.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

pub(super) fn layer_unit(layer: i64) -> String {
    format!("layers.{layer}")
}

/// The elements of a unit in the shard of `rank`.
pub(crate) fn shard_range(elements: i64, rank: usize, world: usize) -> Range<i64> {
    let length = shard_length(elements, world);
    length * rank as i64..length * (rank as i64 + 1)
}

fn shard_length(elements: i64, world: usize) -> i64 {
    (elements as usize).div_ceil(world) as i64
}

/// The intersection of both ranges; empty if they do not overlap.
pub(crate) fn overlap(a: &Range<i64>, b: &Range<i64>) -> Range<i64> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// The part of `tensor` within `range`; `tensor` begins at element `start`.
pub(super) fn narrow(tensor: &Tensor, range: &Range<i64>, start: i64) -> Tensor {
    tensor.narrow(0, range.start - start, range.end - range.start)
}

/// The units of parameters of these names and shapes, in any order.
pub(super) fn lay_out(named: Shapes) -> Vec<Layout> {
    let mut units: BTreeMap<(bool, Option<i64>, String), Shapes> = BTreeMap::new();
    for (name, shape) in named {
        let (unit, resident, _) = unit_of(&name);
        let layer = layer_of(&name).filter(|_| !resident);
        units.entry((resident, layer, unit)).or_default().push((name, shape));
    }
    units.into_iter().map(|((_, layer, name), parameters)| Layout::new(name, layer, parameters)).collect()
}

impl Layout {
    fn new(name: String, layer: Option<i64>, mut parameters: Shapes) -> Self {
        // Matrices before vectors, so that parameters with weight decay are contiguous.
        parameters.sort_by(|(a, x), (b, y)| (y.len(), a).cmp(&(x.len(), b)));
        let (_, resident, fp32) = unit_of(&parameters[0].0);
        let mut elements = 0;
        let place = |(name, shape): (String, Vec<i64>)| {
            let offset = elements;
            elements += (element_count(&shape) as usize).next_multiple_of(ALIGNMENT as usize) as i64;
            Place { name, shape, offset }
        };
        let places = parameters.into_iter().map(place).collect();
        Self { name, layer, resident, fp32, places, elements }
    }

    /// Sorts units by when a backward pass completes their gradients.
    fn backward_order(&self) -> (u8, Reverse<Option<i64>>) {
        let group = match self.name.as_str() {
            "lm_head" | "score" => 0,
            // The gradients of the lowest layer's norms and adapters come last.
            "norms" | "adapter" => 2,
            "embed_tokens" => 3,
            _ => 1,
        };
        (group, Reverse(self.layer))
    }
}

/// Moves all parameters, which require gradients, into units of `flat`, in the order of the backward pass.
/// `rank` of `world` ranks updates the units' shards.
///
/// # Errors
/// Memory is short.
pub(crate) fn flatten(
    parameters: &Parameters,
    flat: &FlatParameters,
    rank: usize,
    world: usize,
) -> Result<Vec<ShardedUnit>, ModelError> {
    let shapes = parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.size())).collect();
    let mut layouts = lay_out(shapes);
    layouts.sort_by_key(Layout::backward_order);
    let add = |layout: Layout| {
        let tensor = |place: &Place| {
            let tensor = parameters.get(&place.name).map(Tensor::shallow_clone);
            tensor.ok_or_else(|| ModelFilesError::tensor(&place.name, "not in the model"))
        };
        let tensors = layout.places.iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
        let offsets: Vec<i64> = layout.places.iter().map(|place| place.offset).collect();
        let own = shard_range(layout.elements, rank, world);
        let shard = flat.add_unit(&tensors, &offsets, own.end - own.start)?;
        Ok::<_, ModelError>(ShardedUnit::new(layout, tensors, shard))
    };
    layouts.into_iter().map(add).collect()
}

impl ShardedUnit {
    /// `tensors` are the whole parameters, in the order of their places.
    pub(super) fn new(layout: Layout, tensors: Vec<Tensor>, shard: Tensor) -> Self {
        let Layout { name, resident, places, elements, .. } = layout;
        Self { name, members: places.into_iter().zip(tensors).collect(), elements, shard, resident }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of elements of all its parameters and of the gaps between them.
    pub fn elements(&self) -> i64 {
        self.elements
    }

    /// This rank's fp32 masters. With FSDP the unit must be [released](foil_torch::c10d::ShardStore::release)
    /// before they change.
    pub fn shard(&self) -> &Tensor {
        &self.shard
    }

    /// Whether training changes it.
    pub(super) fn requires_grad(&self) -> bool {
        self.members.first().is_some_and(|(_, tensor)| tensor.requires_grad())
    }

    /// The names, whole parameters and ranges of elements of its parameters, in their order.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Tensor, Range<i64>)> {
        self.members.iter().map(|(place, tensor)| (place.name.as_str(), tensor, place.range()))
    }

    /// The place of a parameter, if the unit has it.
    pub(super) fn place(&self, parameter: &str) -> Option<&Place> {
        self.members.iter().map(|(place, _)| place).find(|place| place.name == parameter)
    }
}
