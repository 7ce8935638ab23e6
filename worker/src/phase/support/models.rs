//! Models that stay resident on the device between tasks.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::rc::Rc;

use foil_common::activity::Activity;
use foil_common::spec;
use foil_common::text::{Encoder, TEXT_FILES, TextError};
use tch::Device;

use crate::model::{self, HeadKind, Holding, LanguageModel, ModelError, ModelFilesError};
use crate::phase::PhaseError;
use crate::task::Artifact;
use crate::task_io::artifact_cache::{ArtifactCache, fingerprint};
use crate::task_io::progress::Reporter;
use foil_common::failpoint;

/// A model with the text encoder from its directory.
pub(in crate::phase) struct Loaded<M> {
    pub(in crate::phase) model: M,
    pub(in crate::phase) encoder: Rc<Encoder>,
    /// Fingerprint of the tokenizer's content.
    pub(in crate::phase) tokenizer: String,
}

pub(in crate::phase) type Policy = Loaded<LanguageModel>;
pub(in crate::phase) type RewardModel = Loaded<model::RewardModel>;

/// Resident models by the content of their artifacts.
#[derive(Default)]
pub(in crate::phase) struct Models {
    policies: BTreeMap<String, Rc<Policy>>,
    reward_models: BTreeMap<String, Rc<RewardModel>>,
}

impl Models {
    /// Frees all models except `needed`.
    pub(in crate::phase) fn keep_only(&mut self, needed: &[&Artifact]) {
        let needed: Vec<String> = needed.iter().map(|artifact| fingerprint(&artifact.objects)).collect();
        self.policies.retain(|content, _| needed.contains(content));
        self.reward_models.retain(|content, _| needed.contains(content));
    }

    pub(in crate::phase) fn policy(
        &mut self,
        loader: &mut Loader<'_>,
        artifact: &Artifact,
    ) -> Result<Rc<Policy>, PhaseError> {
        let content = fingerprint(&artifact.objects);
        if let Some(resident) = self.policies.get(&content) {
            return Ok(Rc::clone(resident));
        }
        let loaded = Rc::new(loader.policy(artifact)?);
        self.policies.insert(content, Rc::clone(&loaded));
        Ok(loaded)
    }

    pub(in crate::phase) fn reward_model(
        &mut self,
        loader: &mut Loader<'_>,
        artifact: &Artifact,
    ) -> Result<Rc<RewardModel>, PhaseError> {
        let content = fingerprint(&artifact.objects);
        if let Some(resident) = self.reward_models.get(&content) {
            return Ok(Rc::clone(resident));
        }
        let loaded = Rc::new(loader.reward_model(artifact)?);
        self.reward_models.insert(content, Rc::clone(&loaded));
        Ok(loaded)
    }
}

/// A cache of recently used encoders, by the content of their files. Models change with the phases, but most
/// have the same tokenizer, and loading a large vocabulary takes a second.
#[derive(Default)]
pub(in crate::phase) struct Encoders(VecDeque<(String, Rc<Encoder>)>);

impl Encoders {
    /// Enough for a policy, a reward model, and their start models.
    const CAPACITY: usize = 4;

    /// The encoder of an artifact whose files are in `dir`.
    pub(in crate::phase) fn get(
        &mut self,
        artifact: &Artifact,
        dir: &Path,
        text: &spec::Text,
    ) -> Result<Rc<Encoder>, TextError> {
        let text_files = artifact.objects.iter().filter(|object| TEXT_FILES.contains(&object.path.as_str()));
        let content = fingerprint(text_files);
        let cached = self.0.iter().position(|(cached, _)| *cached == content);
        let encoder = match cached.and_then(|index| self.0.remove(index)) {
            Some((_, encoder)) => encoder,
            None => Rc::new(Encoder::load(dir, text)?),
        };
        self.0.push_front((content, Rc::clone(&encoder)));
        self.0.truncate(Self::CAPACITY);
        Ok(encoder)
    }
}

/// Loads models from their artifacts.
pub(in crate::phase) struct Loader<'a> {
    pub(in crate::phase) job: &'a spec::Job,
    pub(in crate::phase) device: Device,
    pub(in crate::phase) holding: Holding,
    pub(in crate::phase) cache: &'a mut ArtifactCache,
    pub(in crate::phase) encoders: &'a mut Encoders,
    pub(in crate::phase) reports: &'a Reporter,
}

impl Loader<'_> {
    pub(in crate::phase) fn policy(&mut self, artifact: &Artifact) -> Result<Policy, PhaseError> {
        let (device, holding) = (self.device, self.holding);
        let checkpointing = self.job.resources.activation_checkpointing;
        self.load(artifact, |dir| {
            let model = LanguageModel::load_held(dir, device, holding)?;
            Ok(model.with_checkpointing(checkpointing))
        })
    }

    /// A policy with random weights from the job's seed.
    pub(in crate::phase) fn fresh_policy(&mut self, artifact: &Artifact) -> Result<Policy, PhaseError> {
        let (seed, device, holding) = (self.job.seed.into(), self.device, self.holding);
        let checkpointing = self.job.resources.activation_checkpointing;
        self.load(artifact, |dir| {
            let model = LanguageModel::random_held(dir, seed, device, holding)?;
            Ok(model.with_checkpointing(checkpointing))
        })
    }

    /// A reward model. A language model gets a fresh head from the job's seed, the same one in every round.
    pub(in crate::phase) fn reward_model(&mut self, artifact: &Artifact) -> Result<RewardModel, PhaseError> {
        let (seed, device, holding) = (self.job.seed.into(), self.device, self.holding);
        let checkpointing = self.job.resources.activation_checkpointing;
        self.load(artifact, |dir| {
            let model = match head(dir)? {
                HeadKind::Reward => model::RewardModel::load_held(dir, device, holding)?,
                HeadKind::LanguageModel => {
                    model::RewardModel::from_language_model_held(dir, seed, device, holding)?
                }
            };
            Ok(model.with_checkpointing(checkpointing))
        })
    }

    fn load<M>(
        &mut self,
        artifact: &Artifact,
        read: impl FnOnce(&Path) -> Result<M, ModelError>,
    ) -> Result<Loaded<M>, PhaseError> {
        let name = || artifact.name.clone();
        let _span = self.reports.span("load").with("foil.artifact", artifact.name.as_str());
        let dir = self.cache.directory(artifact)?;
        let bytes = artifact.objects.iter().map(|object| object.size).sum();
        let (encoder, model) = self.reports.reading(Activity::Loading, bytes, || {
            failpoint::hit("phase.load")?;
            let encoder = self.encoders.get(artifact, &dir, &self.job.text);
            let encoder = encoder.map_err(|source| PhaseError::Text { artifact: name(), source })?;
            let model = read(&dir).map_err(|source| PhaseError::Model { artifact: name(), source })?;
            Ok::<_, PhaseError>((encoder, model))
        })?;
        let tokenizer = encoder.fingerprint().to_owned();
        tracing::info!(artifact = artifact.name, "model loaded");
        Ok(Loaded { model, encoder, tokenizer })
    }
}

/// The kind of head according to config.json's `architectures`.
fn head(dir: &Path) -> Result<HeadKind, ModelFilesError> {
    let path = dir.join("config.json");
    let text = fs::read(&path).map_err(ModelFilesError::read(&path))?;
    HeadKind::of_config(&serde_json::from_slice(&text).map_err(ModelFilesError::json(&path))?)
}
