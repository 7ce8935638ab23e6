//! Models that stay resident on the device between tasks.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::rc::Rc;

use foil_common::activity::Activity;
use foil_common::spec;
use foil_common::text::{Encoder, TEXT_FILES, TextError};
use tch::Device;

use super::gang::model_error;
use crate::model::{
    self, Head, HeadKind, Holding, LanguageModel, LmHead, Model, ModelError, ModelFilesError, SaveDtype,
    ScoreHead,
};
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

/// The resident models.
#[derive(Default)]
pub(in crate::phase) struct Models {
    pub(in crate::phase) policies: Residents<LmHead>,
    pub(in crate::phase) reward_models: Residents<ScoreHead>,
}

impl Models {
    /// Frees all models except `needed`.
    pub(in crate::phase) fn keep_only(&mut self, needed: &[&Artifact]) {
        self.policies.keep_only(needed);
        self.reward_models.keep_only(needed);
    }
}

/// Resident models with one kind of head.
pub(in crate::phase) struct Residents<H> {
    /// By the content of their artifacts.
    loaded: BTreeMap<String, Rc<Loaded<Model<H>>>>,
    trained: Option<Trained<H>>,
}

/// A model trained by the previous phase, equal to its files.
struct Trained<H> {
    model: Model<H>,
    /// The hashes of the files that its phase wrote, by name.
    files: BTreeMap<String, String>,
}

impl<H> Trained<H> {
    /// Whether `artifact` consists of its files and text files of the model that it was trained from.
    fn is(&self, artifact: &Artifact) -> bool {
        let file = |path: &str| artifact.objects.iter().find(|object| object.path == path);
        self.files.iter().all(|(path, hash)| file(path).is_some_and(|found| found.blake3 == *hash))
    }
}

impl<H> Default for Residents<H> {
    fn default() -> Self {
        Self { loaded: BTreeMap::new(), trained: None }
    }
}

impl<H: Head> Residents<H> {
    fn keep_only(&mut self, needed: &[&Artifact]) {
        self.trained.take_if(|trained| !needed.iter().any(|artifact| trained.is(artifact)));
        let needed: Vec<String> = needed.iter().map(|artifact| fingerprint(&artifact.objects)).collect();
        self.loaded.retain(|content, _| needed.contains(content));
    }

    /// Keeps a trained model for the next phase: frees what only training needed, and rounds its parameters
    /// to the values that its `files`, of `dtype`, store.
    pub(in crate::phase) fn keep_trained(
        &mut self,
        model: Model<H>,
        files: BTreeMap<String, String>,
        dtype: SaveDtype,
    ) -> Result<(), ModelError> {
        foil_torch::autograd::clear_gradients(model.parameters().tensors())?;
        model.parameters().round_to(dtype);
        // A model with non-finite values is not kept, so that loading it reports the error.
        self.trained = model.parameters().are_finite().then_some(Trained { model, files });
        Ok(())
    }

    /// The model of `artifact`, read with `load` if it is not resident.
    pub(in crate::phase) fn get(
        &mut self,
        loader: &mut Loader<'_>,
        artifact: &Artifact,
        load: impl FnOnce(&mut Loader<'_>) -> Result<Loaded<Model<H>>, PhaseError>,
    ) -> Result<Rc<Loaded<Model<H>>>, PhaseError> {
        let content = fingerprint(&artifact.objects);
        if let Some(resident) = self.loaded.get(&content) {
            return Ok(Rc::clone(resident));
        }
        let model = match self.take(loader, artifact)? {
            Some(model) => model,
            None => load(loader)?,
        };
        let model = Rc::new(model);
        self.loaded.insert(content, Rc::clone(&model));
        Ok(model)
    }

    /// Removes and returns the model of `artifact`, if it is resident and has no other users.
    pub(in crate::phase) fn take(
        &mut self,
        loader: &mut Loader<'_>,
        artifact: &Artifact,
    ) -> Result<Option<Loaded<Model<H>>>, PhaseError> {
        if let Some(resident) = self.loaded.remove(&fingerprint(&artifact.objects)) {
            return Ok(Rc::try_unwrap(resident).ok());
        }
        let trained = self.trained.take_if(|trained| trained.is(artifact));
        trained.map(|trained| loader.reopen(artifact, trained.model)).transpose()
    }
}

/// A cache of recently used encoders, keyed by the content of their files. Models change with the phases, but
/// most have the same tokenizer, and loading a large vocabulary takes a second.
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

    /// A policy with random weights derived from the job's seed.
    pub(in crate::phase) fn fresh_policy(&mut self, artifact: &Artifact) -> Result<Policy, PhaseError> {
        let (seed, device, holding) = (self.job.seed.into(), self.device, self.holding);
        let checkpointing = self.job.resources.activation_checkpointing;
        self.load(artifact, |dir| {
            let model = LanguageModel::random_held(dir, seed, device, holding)?;
            Ok(model.with_checkpointing(checkpointing))
        })
    }

    /// A reward model. A language model gets a fresh head derived from the job's seed, the same in every
    /// round.
    pub(in crate::phase) fn reward_model(&mut self, artifact: &Artifact) -> Result<RewardModel, PhaseError> {
        let (seed, device, holding) = (self.job.seed.into(), self.device, self.holding);
        let checkpointing = self.job.resources.activation_checkpointing;
        self.load(artifact, |dir| {
            let model = match head_of(dir)? {
                HeadKind::Reward => model::RewardModel::load_held(dir, device, holding)?,
                HeadKind::LanguageModel => {
                    model::RewardModel::from_language_model_held(dir, seed, device, holding)?
                }
            };
            Ok(model.with_checkpointing(checkpointing))
        })
    }

    /// A reward model from a policy, with the same fresh head as if it were read from files.
    pub(in crate::phase) fn with_fresh_head(&self, policy: Policy) -> RewardModel {
        let Loaded { model, encoder, tokenizer } = policy;
        Loaded { model: model::RewardModel::with_fresh_head(model, self.job.seed.into()), encoder, tokenizer }
    }

    /// A model that this rank has trained, equal to the result of reading its artifact.
    fn reopen<H: Head>(
        &mut self,
        artifact: &Artifact,
        trained: Model<H>,
    ) -> Result<Loaded<Model<H>>, PhaseError> {
        let dir = self.cache.directory(artifact)?;
        let encoder = self.encoder(artifact, &dir)?;
        let model = trained.reopened(&dir).map_err(model_error(artifact))?;
        let model = model.with_checkpointing(self.job.resources.activation_checkpointing);
        tracing::info!(artifact = artifact.name, "model kept from its training");
        Ok(Loaded { model, tokenizer: encoder.fingerprint().to_owned(), encoder })
    }

    fn load<M>(
        &mut self,
        artifact: &Artifact,
        read: impl FnOnce(&Path) -> Result<M, ModelError>,
    ) -> Result<Loaded<M>, PhaseError> {
        let _span = self.reports.span("load").with("foil.artifact", artifact.name.as_str());
        let dir = self.cache.directory(artifact)?;
        let bytes = artifact.objects.iter().map(|object| object.size).sum();
        let reports = self.reports;
        let (encoder, model) = reports.reading(Activity::Loading, bytes, || {
            failpoint::hit("phase.load")?;
            let encoder = self.encoder(artifact, &dir)?;
            let model = read(&dir).map_err(model_error(artifact))?;
            Ok::<_, PhaseError>((encoder, model))
        })?;
        tracing::info!(artifact = artifact.name, "model loaded");
        Ok(Loaded { model, tokenizer: encoder.fingerprint().to_owned(), encoder })
    }

    fn encoder(&mut self, artifact: &Artifact, dir: &Path) -> Result<Rc<Encoder>, PhaseError> {
        let encoder = self.encoders.get(artifact, dir, &self.job.text);
        encoder.map_err(|source| PhaseError::Text { artifact: artifact.name.clone(), source })
    }
}

/// The kind of head according to config.json's `architectures`.
fn head_of(dir: &Path) -> Result<HeadKind, ModelFilesError> {
    let path = dir.join("config.json");
    let text = fs::read(&path).map_err(ModelFilesError::read(&path))?;
    HeadKind::of_config(&serde_json::from_slice(&text).map_err(ModelFilesError::json(&path))?)
}
