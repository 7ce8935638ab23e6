//! Model directories: whether all their files are there, and the small ones read.

use std::collections::BTreeSet;

use bytes::Bytes;
use foil_common::rpc::artifacts::input_key;
use foil_common::spec::{self, Init, ModelRef};
use foil_common::storage::Store;
use foil_common::text::ModelText;
use foil_proto::v1;
use serde_json::Value;

use super::Made;
use super::ResolveError;
use super::load::{fetch, stat};

const POLICY: &str = "policy.model";
const REWARD: &str = "reward.model";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";

/// The policy's directory, and its files that say how it reads text.
pub(super) async fn policy(
    job_id: &str,
    job: &spec::Job,
    made: &Made,
    store: &Store,
) -> Result<(v1::Artifact, ModelText), ResolveError> {
    let name = if job.has_sft() { "policy@input" } else { "policy@0" };
    let weights = job.policy.init == Init::Weights;
    let directory = Directory::fetch(POLICY, &job.policy.model, made, store).await?;
    directory.check(weights, store).await?;
    let text = directory.text(store).await?;
    Ok((directory.artifact(job_id, name, "policy"), text))
}

/// The same of the reward model, where the job names one.
pub(super) async fn reward(
    job_id: &str,
    job: &spec::Job,
    made: &Made,
    store: &Store,
) -> Result<Option<(v1::Artifact, ModelText)>, ResolveError> {
    let Some(model) = &job.reward.model else { return Ok(None) };
    let directory = Directory::fetch(REWARD, model, made, store).await?;
    directory.check(true, store).await?;
    let text = directory.text(store).await?;
    Ok(Some((directory.artifact(job_id, "reward@input", "reward"), text)))
}

/// A model directory in the store: the list of its files.
struct Directory {
    field: &'static str,
    name: String,
    objects: Vec<v1::Object>,
    /// Another job made it: its files lie with that job's.
    made: bool,
}

impl Directory {
    async fn fetch(
        field: &'static str,
        model: &ModelRef,
        made: &Made,
        store: &Store,
    ) -> Result<Self, ResolveError> {
        let name = model.name();
        if let Some(artifact) = made.get(field) {
            // An adapter beside the model stays behind: it is merged into it, and another would be to this model.
            let files = artifact.objects.iter().filter(|object| !object.path.contains('/'));
            return Ok(Self { field, name, objects: files.cloned().collect(), made: true });
        }
        let Some(key) = model.key() else {
            return Err(ResolveError::NotUploaded { field, path: name });
        };
        let bytes = fetch(field, &name, &key, store).await?;
        let mut directory = Self { field, name, objects: Vec::new(), made: false };
        let listing: v1::Artifact = serde_json::from_slice(&bytes).map_err(|error| {
            directory
                .fault(format!("was uploaded with an unreadable list of files ({error})"), "submit it again")
        })?;
        directory.objects = listing.objects;
        Ok(directory)
    }

    fn fault(&self, problem: String, advice: &'static str) -> ResolveError {
        ResolveError::Model { field: self.field, name: self.name.clone(), problem, advice }
    }

    fn find(&self, path: &str) -> Option<&v1::Object> {
        self.objects.iter().find(|object| object.path == path)
    }

    /// Every listed file is wholly there, and every needed one is listed.
    async fn check(&self, weights: bool, store: &Store) -> Result<(), ResolveError> {
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
            // What a client uploads lies under the content's own key.
            if !(self.made || object.key == input_key(&object.blake3))
                || stored.blake3 != object.blake3
                || stored.size != object.size
            {
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
        if weights { self.check_weights(&paths, store).await } else { Ok(()) }
    }

    async fn check_weights(&self, paths: &BTreeSet<&str>, store: &Store) -> Result<(), ResolveError> {
        if !paths.contains(INDEX) {
            if paths.contains(WEIGHTS) {
                return Ok(());
            }
            let advice = "save the weights as safetensors, or set policy.init: random to train from scratch";
            return Err(self.fault(format!("has neither {WEIGHTS} nor {INDEX}"), advice));
        }
        let index = self.json(INDEX, store).await?;
        let shards: BTreeSet<&str> = match index.get("weight_map").and_then(Value::as_object) {
            Some(map) => map.values().filter_map(Value::as_str).collect(),
            None => {
                return Err(self.fault(format!("has no weight_map in its {INDEX}"), "save the model again"));
            }
        };
        match shards.iter().find(|shard| !paths.contains(**shard)) {
            None => Ok(()),
            Some(shard) => {
                let problem = format!("has no {shard}, though {INDEX} names it");
                Err(self.fault(problem, "copy the missing file into the directory"))
            }
        }
    }

    async fn bytes(&self, path: &str, store: &Store) -> Result<Option<Bytes>, ResolveError> {
        match self.find(path) {
            Some(object) => Ok(Some(store.read_object(object).await?)),
            None => Ok(None),
        }
    }

    /// A JSON file; null where it is absent.
    async fn json(&self, path: &str, store: &Store) -> Result<Value, ResolveError> {
        let Some(bytes) = self.bytes(path, store).await? else { return Ok(Value::Null) };
        serde_json::from_slice(&bytes).map_err(|error| {
            self.fault(format!("has a {path} that is no JSON ({error})"), "save the model again")
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
