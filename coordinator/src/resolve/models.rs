//! Checks of model directories in the store: all files must exist and fit the job; the small ones are read.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use foil_common::input_file;
use foil_common::model::{DecoderConfig, INDEX, ModelFilesError, SINGLE, WeightFiles, header_length, shards};
use foil_common::rpc::artifacts::input_key;
use foil_common::spec::{self, Init, ModelRef};
use foil_common::storage::Store;
use foil_common::text::ModelText;
use foil_proto::v1;
use serde_json::Value;

use super::ModelArtifacts;
use super::ResolveError;
use super::compatibility::{self, Files, POLICY, REWARD};
use super::load::{Uploads, fetch, stat};

/// A model that ranks can load, judging by its small files.
pub(super) struct Checked {
    pub(super) artifact: v1::Artifact,
    /// Tokenizer and template files.
    pub(super) text: ModelText,
    pub(super) config: DecoderConfig,
}

/// The model that the policy starts from.
pub(super) async fn policy(
    job_id: &str,
    job: &spec::Job,
    artifacts: &ModelArtifacts,
    uploads: Uploads<'_>,
) -> Result<Checked, ResolveError> {
    let name = if job.has_sft() { "policy@input" } else { "policy@0" };
    let weights = job.policy.init == Init::Weights;
    let directory = Directory::fetch(POLICY, &job.policy.model, artifacts, uploads).await?;
    directory
        .checked(job, weights, uploads.store, |directory| directory.artifact(job_id, name, "policy"))
        .await
}

/// The model that the reward model starts from, if the job names one.
pub(super) async fn reward(
    job_id: &str,
    job: &spec::Job,
    artifacts: &ModelArtifacts,
    uploads: Uploads<'_>,
) -> Result<Option<Checked>, ResolveError> {
    let Some(model) = &job.reward.model else { return Ok(None) };
    let directory = Directory::fetch(REWARD, model, artifacts, uploads).await?;
    let artifact = |directory: Directory| directory.artifact(job_id, "reward@input", "reward");
    directory.checked(job, true, uploads.store, artifact).await.map(Some)
}

/// A model directory in the store: the list of its files.
struct Directory {
    field: &'static str,
    name: String,
    objects: Vec<v1::Object>,
}

impl Directory {
    async fn fetch(
        field: &'static str,
        model: &ModelRef,
        artifacts: &ModelArtifacts,
        uploads: Uploads<'_>,
    ) -> Result<Self, ResolveError> {
        let name = model.name();
        if let Some(artifact) = artifacts.get(field) {
            // An adapter next to the model is excluded, because it has already been merged into the weights.
            let files = artifact.objects.iter().filter(|object| !object.path.contains('/'));
            return Ok(Self { field, name, objects: files.cloned().collect() });
        }
        let ModelRef::Input { blake3, .. } = model else {
            return Err(ResolveError::NotUploaded { field, path: name });
        };
        let bytes = fetch(field, &name, &uploads.key(blake3), uploads.store).await?;
        let mut directory = Self { field, name, objects: Vec::new() };
        let listing: v1::Artifact = serde_json::from_slice(&bytes).map_err(|error| {
            directory
                .fault(format!("was uploaded with an unreadable list of files ({error})"), "submit it again")
        })?;
        for object in listing.objects {
            // Clients upload files under the key of their content. Other keys in a list are not uploads.
            let is_upload = blake3::Hash::from_hex(&object.blake3).is_ok();
            if !is_upload || object.key != input_key(&object.blake3) {
                let name = format!("{}/{}", directory.name, object.path);
                return Err(ResolveError::Missing { field, name, key: object.key });
            }
            directory.objects.push(v1::Object { key: uploads.key(&object.blake3), ..object });
        }
        Ok(directory)
    }

    fn fault(&self, problem: String, advice: &'static str) -> ResolveError {
        ResolveError::Model { field: self.field, name: self.name.clone(), problem, advice }
    }

    fn find(&self, path: &str) -> Option<&v1::Object> {
        self.objects.iter().find(|object| object.path == path)
    }

    /// Reads the small files and, if needed, the headers of the weights.
    async fn checked(
        self,
        job: &spec::Job,
        weights: bool,
        store: &Store,
        artifact: impl FnOnce(Self) -> v1::Artifact,
    ) -> Result<Checked, ResolveError> {
        self.require_files(weights, store).await?;
        let text = self.text(store).await?;
        let headers = if weights { Some(self.headers(store).await?) } else { None };
        let files =
            Files { field: self.field, name: &self.name, config: &text.config, weights: headers.as_ref() };
        let config = compatibility::check(job, &files)?;
        Ok(Checked { artifact: artifact(self), text, config })
    }

    /// Checks that every listed file is stored completely, and that every needed file is listed.
    async fn require_files(&self, weights: bool, store: &Store) -> Result<(), ResolveError> {
        let mut paths = BTreeSet::new();
        for object in &self.objects {
            let plain = !object.path.is_empty()
                && !object.path.starts_with('.')
                && !object.path.contains(['/', '\\']);
            if !plain || !paths.insert(object.path.as_str()) {
                let problem = format!("lists the file {:?}, which is not one plain name", object.path);
                return Err(self.fault(problem, "submit it again"));
            }
            let name = format!("{}/{}", self.name, object.path);
            let stored = stat(self.field, &name, &object.key, store).await?;
            if stored.blake3 != object.blake3 || stored.size != object.size {
                let key = object.key.clone();
                return Err(ResolveError::Missing { field: self.field, name, key });
            }
        }
        for needed in ["config.json", "tokenizer.json"] {
            if !paths.contains(needed) {
                let advice = "give a Hugging Face model directory: config.json, tokenizer.json, safetensors";
                return Err(self.fault(format!("has no {needed}"), advice));
            }
        }
        let none = !paths.contains(SINGLE) && !paths.contains(INDEX);
        if weights && none {
            let advice = "save the weights as safetensors, or set policy.init: random to train from scratch";
            return Err(self.fault(format!("has neither {SINGLE} nor {INDEX}"), advice));
        }
        Ok(())
    }

    /// The headers of the safetensors files; the weights themselves stay in the store.
    async fn headers(&self, store: &Store) -> Result<WeightFiles, ResolveError> {
        let mut files = WeightFiles::default();
        if self.find(SINGLE).is_some() {
            self.add_header(&mut files, SINGLE, store).await?;
            return Ok(files);
        }
        let path = Path::new(INDEX);
        let index = self.bytes(INDEX, store).await?.unwrap_or_default();
        let shards = shards(path, &index).map_err(|fault| self.wrong(fault))?;
        for shard in shards.values().collect::<BTreeSet<_>>() {
            self.add_header(&mut files, shard, store).await?;
        }
        files.require_shards(path, &shards).map_err(|fault| self.wrong(fault))?;
        Ok(files)
    }

    async fn add_header(
        &self,
        files: &mut WeightFiles,
        path: &str,
        store: &Store,
    ) -> Result<(), ResolveError> {
        const START: u64 = 8;
        let Some(object) = self.find(path) else {
            let problem = format!("has no {path}, though {INDEX} names it");
            return Err(self.fault(problem, "copy the missing file into the directory"));
        };
        let start = store.get_range(&object.key, 0..START.min(object.size)).await?;
        let length =
            header_length(Path::new(path), &start, object.size).map_err(|fault| self.wrong(fault))?;
        let header = store.get_range(&object.key, START..START + length).await?;
        files.add(path.into(), &header, object.size).map_err(|fault| self.wrong(fault))
    }

    fn wrong(&self, fault: ModelFilesError) -> ResolveError {
        ResolveError::ModelFiles { field: self.field, name: self.name.clone(), fault }
    }

    async fn bytes(&self, path: &str, store: &Store) -> Result<Option<Bytes>, ResolveError> {
        match self.find(path) {
            Some(object) => Ok(Some(store.read_object(object).await?)),
            None => Ok(None),
        }
    }

    /// A JSON file; null if it is absent.
    async fn json(&self, path: &str, store: &Store) -> Result<Value, ResolveError> {
        let Some(bytes) = self.bytes(path, store).await? else { return Ok(Value::Null) };
        input_file::json(&bytes).map_err(|error| {
            self.fault(format!("has a {path} that is not JSON ({error})"), "save the model again")
        })
    }

    async fn text(&self, store: &Store) -> Result<ModelText, ResolveError> {
        let template = self.bytes("chat_template.jinja", store).await?;
        Ok(ModelText {
            name: self.name.clone(),
            tokenizer: self.bytes("tokenizer.json", store).await?.unwrap_or_default().to_vec(),
            tokenizer_config: self.json("tokenizer_config.json", store).await?,
            config: self.json("config.json", store).await?,
            generation_config: self.json("generation_config.json", store).await?,
            special_tokens_map: self.json("special_tokens_map.json", store).await?,
            chat_template: template.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        })
    }

    fn artifact(mut self, job_id: &str, name: &str, kind: &str) -> v1::Artifact {
        self.objects.sort_by(|a, b| a.path.cmp(&b.path));
        v1::Artifact {
            name: name.to_owned(),
            kind: kind.to_owned(),
            job_id: job_id.to_owned(),
            objects: self.objects,
            ..v1::Artifact::default()
        }
    }
}
