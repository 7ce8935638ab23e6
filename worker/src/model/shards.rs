//! Parameters in shards over the ranks of a gang.
//!
//! A unit is what is gathered together: a decoder layer's matrices and biases, the embeddings, or the
//! language-model head. Its parameters, flattened one after the other, are cut into shards of equal length,
//! fp32 masters of which each rank holds one. Norms, a reward model's head and adapters are small: they are
//! sharded too, but stay gathered during a step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use foil_common::model::{EMBEDDINGS, LM_HEAD, SCORE};
use foil_torch::c10d::{ShardStore, Unit};
use tch::{Device, Kind, Tensor, no_grad};

use super::{ModelError, ModelFilesError, Precision};

/// A parameter begins at a multiple of this many elements of its unit, so that kernels find it aligned.
const ALIGNMENT: i64 = 64;

/// Names and shapes of parameters.
type Shapes = Vec<(String, Vec<i64>)>;

/// The place of a rank among those that share a model, and the precision in which it is gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardPlacement {
    pub rank: usize,
    /// At least 2.
    pub world: usize,
    pub precision: Precision,
}

/// Gives the elements of a parameter in a range, flattened: fp32, on any device.
pub(super) type Elements<'a> = &'a mut dyn FnMut(&str, Range<i64>) -> Result<Tensor, ModelError>;

/// All units of a model.
#[derive(Debug)]
pub struct Shards {
    placement: ShardPlacement,
    device: Device,
    store: ShardStore,
    units: Vec<ShardedUnit>,
}

/// A unit and this rank's shard of it.
#[derive(Debug)]
pub struct ShardedUnit {
    name: String,
    members: Vec<Member>,
    /// Elements of all members and of the gaps between them.
    elements: i64,
    /// `[ceil(elements / world)]`, fp32.
    shard: Tensor,
    resident: bool,
}

/// A parameter's place in its unit.
#[derive(Debug)]
struct Member {
    name: String,
    shape: Vec<i64>,
    offset: i64,
    /// The gathered parameter.
    tensor: Tensor,
}

impl Member {
    fn range(&self) -> Range<i64> {
        self.offset..self.offset + self.shape.iter().product::<i64>()
    }
}

/// A unit's name, and whether it is resident and fp32 in any precision.
fn unit_of(parameter: &str) -> (String, bool, bool) {
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

fn layer_unit(layer: i64) -> String {
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

/// The elements that both ranges have; empty if there are none.
pub(crate) fn overlap(a: &Range<i64>, b: &Range<i64>) -> Range<i64> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

impl Shards {
    pub(super) fn new(placement: ShardPlacement, device: Device) -> Result<Self, ModelError> {
        Ok(Self { placement, device, store: ShardStore::new(placement.world)?, units: Vec::new() })
    }

    /// Adds units for parameters of these names and shapes, in any order, with values from `elements`.
    /// Returns the gathered parameters by name.
    ///
    /// # Errors
    /// Those of `elements`.
    pub(super) fn add(
        &mut self,
        named: Vec<(String, Vec<i64>)>,
        elements: Elements<'_>,
    ) -> Result<Vec<(String, Tensor)>, ModelError> {
        let mut units: BTreeMap<(bool, i64, String), Shapes> = BTreeMap::new();
        for (name, shape) in named {
            let (unit, resident, _) = unit_of(&name);
            let layer = layer_of(&name).filter(|_| !resident).unwrap_or(-1);
            units.entry((resident, layer, unit)).or_default().push((name, shape));
        }
        let mut added = Vec::new();
        for ((_, _, unit), parameters) in units {
            added.extend(self.add_unit(unit, parameters, elements)?);
        }
        Ok(added)
    }

    fn add_unit(
        &mut self,
        name: String,
        mut parameters: Vec<(String, Vec<i64>)>,
        elements: Elements<'_>,
    ) -> Result<Vec<(String, Tensor)>, ModelError> {
        // Matrices before vectors: what decays lies together.
        parameters.sort_by(|(a, x), (b, y)| (y.len(), a).cmp(&(x.len(), b)));
        let mut total = 0;
        let place = |(_, shape): &(String, Vec<i64>)| {
            let offset = total;
            total += (shape.iter().product::<i64>() as usize).next_multiple_of(ALIGNMENT as usize) as i64;
            (offset, shape.clone())
        };
        let placed: Vec<(i64, Vec<i64>)> = parameters.iter().map(place).collect();
        let ShardPlacement { rank, world, precision } = self.placement;
        let own = shard_range(total, rank, world);
        let shard = Tensor::zeros([own.end - own.start], (Kind::Float, self.device));
        for ((name, shape), (offset, _)) in parameters.iter().zip(&placed) {
            let range = overlap(&own, &(*offset..offset + shape.iter().product::<i64>()));
            if !range.is_empty() {
                let values = elements(name, range.start - offset..range.end - offset)?;
                no_grad(|| narrow(&shard, &range, own.start).copy_(&values));
            }
        }
        let (_, resident, fp32) = unit_of(&parameters[0].0);
        let kind = if fp32 { Kind::Float } else { precision.kind() };
        let unit = Unit { shard: &shard, parameters: &placed, kind, resident };
        let (_, tensors) = self.store.add_unit(&unit)?;
        let members = parameters.into_iter().zip(placed).zip(tensors);
        let members: Vec<Member> = members
            .map(|(((name, shape), (offset, _)), tensor)| Member { name, shape, offset, tensor })
            .collect();
        let named = members.iter().map(|member| (member.name.clone(), member.tensor.shallow_clone()));
        let named = named.collect();
        self.units.push(ShardedUnit { name, members, elements: total, shard, resident });
        Ok(named)
    }

    pub fn placement(&self) -> ShardPlacement {
        self.placement
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn store(&self) -> &ShardStore {
        &self.store
    }

    pub fn units(&self) -> impl Iterator<Item = &ShardedUnit> {
        self.units.iter()
    }

    /// The units whose parameters require gradients.
    pub fn trained(&self) -> impl Iterator<Item = &ShardedUnit> {
        self.units().filter(|unit| unit.members.first().is_some_and(|member| member.tensor.requires_grad()))
    }

    fn position(&self, unit: &str) -> Option<usize> {
        self.units.iter().position(|candidate| candidate.name == unit)
    }

    /// The numbers of the units that a forward pass of `layers` layers gathers in turn.
    pub(super) fn decoder(&self, layers: i64) -> Option<DecoderShards> {
        Some(DecoderShards {
            store: self.store.clone(),
            embeddings: self.position(&unit_of(EMBEDDINGS).0)?,
            layers: (0..layers).map(|layer| self.position(&layer_unit(layer))).collect::<Option<_>>()?,
        })
    }

    /// Gathers the unit of a parameter, until another one is gathered.
    pub(super) fn gather(&self, parameter: &str) -> Result<(), ModelError> {
        match self.position(&unit_of(parameter).0) {
            Some(unit) => Ok(self.store.gather(unit, None)?),
            None => Ok(()),
        }
    }

    /// Changes this rank's elements of a parameter in place: `change` gets them, and their range in the
    /// flattened parameter.
    pub(super) fn change(&self, parameter: &str, change: impl FnOnce(&mut Tensor, Range<i64>)) {
        for unit in &self.units {
            let Some(member) = unit.members.iter().find(|member| member.name == parameter) else { continue };
            let own = self.range(unit);
            let range = overlap(&own, &member.range());
            if !range.is_empty() {
                let mut held = narrow(&unit.shard, &range, own.start);
                no_grad(|| change(&mut held, range.start - member.offset..range.end - member.offset));
            }
            return;
        }
    }

    /// The elements of a unit in this rank's shard.
    pub fn range(&self, unit: &ShardedUnit) -> Range<i64> {
        shard_range(unit.elements, self.placement.rank, self.placement.world)
    }

    /// Reads whole parameters one after the other; all ranks read the same ones in the same order.
    pub(super) fn reader(&self) -> ShardReader<'_> {
        ShardReader { shards: self, gathered: RefCell::default() }
    }
}

/// The part of `tensor`, which begins at element `start`, in `range`.
fn narrow(tensor: &Tensor, range: &Range<i64>, start: i64) -> Tensor {
    tensor.narrow(0, range.start - start, range.end - range.start)
}

impl ShardedUnit {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Elements of all its parameters and of the gaps between them.
    pub fn elements(&self) -> i64 {
        self.elements
    }

    /// This rank's fp32 masters; the unit must be [released](ShardStore::release) before they change.
    pub fn shard(&self) -> &Tensor {
        &self.shard
    }

    /// The names, gathered parameters and ranges of elements of its parameters, in their order.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Tensor, Range<i64>)> {
        self.members.iter().map(|member| (member.name.as_str(), &member.tensor, member.range()))
    }
}

/// What a decoder gathers during a pass, in the order of layers.
#[derive(Debug, Clone)]
pub(super) struct DecoderShards {
    store: ShardStore,
    embeddings: usize,
    layers: Vec<usize>,
}

impl DecoderShards {
    /// Gathers the embeddings, and begins with the first layer.
    pub(super) fn gather_embeddings(&self) -> Result<(), ModelError> {
        Ok(self.store.gather(self.embeddings, self.layers.first().copied())?)
    }

    fn before(&self, layer: usize) -> Option<usize> {
        layer.checked_sub(1).and_then(|layer| self.layers.get(layer)).copied()
    }

    /// Gathers a layer in a forward pass, and begins with the next one.
    pub(super) fn gather(&self, layer: usize) -> Result<(), ModelError> {
        Ok(self.store.gather(self.layers[layer], self.layers.get(layer + 1).copied())?)
    }

    /// Gathers a layer in a checkpointed computation, and begins with the layer that comes after it: when
    /// backward runs the computation again, that is the one before.
    pub(super) fn gather_recomputed(&self, layer: usize) -> Result<(), ModelError> {
        if !foil_torch::autograd::grad_enabled() {
            return self.gather(layer);
        }
        Ok(self.store.gather(self.layers[layer], self.before(layer))?)
    }

    /// The results of a layer, for whose backward pass it is gathered again.
    pub(super) fn gather_in_backward(
        &self,
        layer: usize,
        results: &[Tensor],
    ) -> Result<Vec<Tensor>, ModelError> {
        Ok(self.store.gather_in_backward(self.layers[layer], self.before(layer), results)?)
    }
}

/// Gathers units in fp32 as their parameters are read; holds one at a time, and the resident ones.
pub(super) struct ShardReader<'a> {
    shards: &'a Shards,
    gathered: RefCell<Vec<(usize, Tensor)>>,
}

impl ShardReader<'_> {
    /// A whole parameter, fp32.
    ///
    /// # Errors
    /// A rank fails; there is no such parameter.
    pub(super) fn read(&self, parameter: &str) -> Result<Tensor, ModelError> {
        let units = &self.shards.units;
        let found = units.iter().enumerate().find_map(|(index, unit)| {
            Some((index, unit.members.iter().find(|member| member.name == parameter)?))
        });
        let missing = || ModelFilesError::tensor(parameter, "not in the model");
        let (index, member) = found.ok_or_else(missing)?;
        let mut gathered = self.gathered.borrow_mut();
        if !gathered.iter().any(|(unit, _)| *unit == index) {
            gathered.retain(|(unit, _)| units[*unit].resident);
            gathered.push((index, self.shards.store.whole(index)?));
        }
        let whole = gathered.iter().find(|(unit, _)| *unit == index).ok_or_else(missing)?;
        Ok(narrow(&whole.1, &member.range(), 0).view(member.shape.as_slice()))
    }
}
