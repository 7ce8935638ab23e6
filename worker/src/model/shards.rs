//! Parameters sharded over the ranks of a gang.
//!
//! Each rank holds the fp32 masters of its shard of every [unit](super::units). A unit is gathered when it is
//! used. Norms, a reward model's head and adapters are small: they are sharded too, but stay gathered during
//! a step.

use std::cell::RefCell;
use std::ops::Range;

use foil_common::model::EMBEDDINGS;
use foil_torch::c10d::{ShardStore, Unit};
use tch::{Device, Kind, Tensor, no_grad};

use super::units::{Layout, ShardedUnit, lay_out, layer_unit, narrow, overlap, shard_range, unit_of};
use super::{ModelError, ModelFilesError, Precision};

/// The position of a rank among the ranks that share a model, and the precision of gathered parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardPlacement {
    pub rank: usize,
    /// At least 2.
    pub world: usize,
    pub precision: Precision,
}

/// Returns the elements of a parameter in a range, flattened: fp32, on any device.
pub(super) type Elements<'a> = &'a mut dyn FnMut(&str, Range<i64>) -> Result<Tensor, ModelError>;

/// All units of a model.
#[derive(Debug)]
pub struct Shards {
    placement: ShardPlacement,
    device: Device,
    store: ShardStore,
    units: Vec<ShardedUnit>,
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
        let mut added = Vec::new();
        for layout in lay_out(named) {
            added.extend(self.add_unit(layout, elements)?);
        }
        Ok(added)
    }

    fn add_unit(
        &mut self,
        layout: Layout,
        elements: Elements<'_>,
    ) -> Result<Vec<(String, Tensor)>, ModelError> {
        let ShardPlacement { rank, world, precision } = self.placement;
        let own = shard_range(layout.elements, rank, world);
        let shard = Tensor::zeros([own.end - own.start], (Kind::Float, self.device));
        for place in &layout.places {
            let range = overlap(&own, &place.range());
            if !range.is_empty() {
                let values = elements(&place.name, range.start - place.offset..range.end - place.offset)?;
                no_grad(|| narrow(&shard, &range, own.start).copy_(&values));
            }
        }
        let kind = if layout.fp32 { Kind::Float } else { precision.kind() };
        let placed: Vec<(i64, Vec<i64>)> =
            layout.places.iter().map(|place| (place.offset, place.shape.clone())).collect();
        let unit = Unit { shard: &shard, parameters: &placed, kind, resident: layout.resident };
        let (_, tensors) = self.store.add_unit(&unit)?;
        let unit = ShardedUnit::new(layout, tensors, shard);
        let named = unit.members().map(|(name, tensor, _)| (name.to_owned(), tensor.shallow_clone()));
        let named = named.collect();
        self.units.push(unit);
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
        self.units().filter(|unit| unit.requires_grad())
    }

    fn position(&self, unit: &str) -> Option<usize> {
        self.units.iter().position(|candidate| candidate.name() == unit)
    }

    /// The indices of the units that a forward pass of `layers` layers gathers in turn.
    pub(super) fn decoder(&self, layers: i64) -> Option<DecoderShards> {
        Some(DecoderShards {
            store: self.store.clone(),
            embeddings: self.position(&unit_of(EMBEDDINGS).0)?,
            layers: (0..layers).map(|layer| self.position(&layer_unit(layer))).collect::<Option<_>>()?,
        })
    }

    /// Gathers the unit of a parameter. It stays gathered until another one is gathered.
    pub(super) fn gather(&self, parameter: &str) -> Result<(), ModelError> {
        match self.position(&unit_of(parameter).0) {
            Some(unit) => Ok(self.store.gather(unit, None)?),
            None => Ok(()),
        }
    }

    /// Changes this rank's elements of a parameter in place: `change` receives them and their range in the
    /// flattened parameter.
    pub(super) fn change(&self, parameter: &str, change: impl FnOnce(&mut Tensor, Range<i64>)) {
        for unit in &self.units {
            let Some(place) = unit.place(parameter) else { continue };
            let own = self.range(unit);
            let range = overlap(&own, &place.range());
            if !range.is_empty() {
                let mut held = narrow(unit.shard(), &range, own.start);
                no_grad(|| change(&mut held, range.start - place.offset..range.end - place.offset));
            }
            return;
        }
    }

    /// The elements of a unit in this rank's shard.
    pub fn range(&self, unit: &ShardedUnit) -> Range<i64> {
        shard_range(unit.elements(), self.placement.rank, self.placement.world)
    }

    /// Reads whole parameters one after the other. All ranks must read the same ones in the same order.
    pub(super) fn reader(&self) -> ShardReader<'_> {
        ShardReader { shards: self, gathered: RefCell::default() }
    }
}

/// The units that a decoder gathers during a pass, in the order of layers.
#[derive(Debug, Clone)]
pub(super) struct DecoderShards {
    store: ShardStore,
    embeddings: usize,
    layers: Vec<usize>,
}

impl DecoderShards {
    /// Gathers the embeddings and starts to gather the first layer.
    pub(super) fn gather_embeddings(&self) -> Result<(), ModelError> {
        Ok(self.store.gather(self.embeddings, self.layers.first().copied())?)
    }

    fn before(&self, layer: usize) -> Option<usize> {
        layer.checked_sub(1).and_then(|layer| self.layers.get(layer)).copied()
    }

    /// Gathers a layer in a forward pass and starts to gather the next one.
    pub(super) fn gather(&self, layer: usize) -> Result<(), ModelError> {
        Ok(self.store.gather(self.layers[layer], self.layers.get(layer + 1).copied())?)
    }

    /// Gathers a layer in a checkpointed computation and starts to gather the layer to be computed next. When
    /// backward repeats the computation, that is the preceding layer.
    pub(super) fn gather_recomputed(&self, layer: usize) -> Result<(), ModelError> {
        if !foil_torch::autograd::grad_enabled() {
            return self.gather(layer);
        }
        Ok(self.store.gather(self.layers[layer], self.before(layer))?)
    }

    /// Wraps the results of a layer so that its backward pass gathers the layer again.
    pub(super) fn gather_in_backward(
        &self,
        layer: usize,
        results: &[Tensor],
    ) -> Result<Vec<Tensor>, ModelError> {
        Ok(self.store.gather_in_backward(self.layers[layer], self.before(layer), results)?)
    }
}

/// Gathers units in fp32 as their parameters are read. Holds one unit at a time in addition to the resident
/// ones.
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
        let found = units.iter().enumerate().find_map(|(index, unit)| Some((index, unit.place(parameter)?)));
        let missing = || ModelFilesError::tensor(parameter, "not in the model");
        let (index, place) = found.ok_or_else(missing)?;
        let mut gathered = self.gathered.borrow_mut();
        if !gathered.iter().any(|(unit, _)| *unit == index) {
            gathered.retain(|(unit, _)| units[*unit].resident);
            gathered.push((index, self.shards.store.whole(index)?));
        }
        let whole = gathered.iter().find(|(unit, _)| *unit == index).ok_or_else(missing)?;
        Ok(narrow(&whole.1, &place.range(), 0).view(place.shape.as_slice()))
    }
}
