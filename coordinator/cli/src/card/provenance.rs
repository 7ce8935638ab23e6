//! Provenance of a model, for programs: `foil.json` in the directory of the model.

use std::path::Path;

use anyhow::{Context, Result, bail};
use foil_common::input_file;
use foil_common::spec::{self, InputRef, without_scheduling};
use foil_common::version::{BUILD, VERSION};
use foil_coordinator::resolve::without_example;
use foil_proto::v1;
use serde::{Deserialize, Serialize};

use super::names::Base;

/// The file's name.
pub(crate) const FILE: &str = "foil.json";
/// Maximum size of the file. A job of a thousand rounds has about 5 MB.
const LIMIT: u64 = 64 << 20;
/// Version of the file's format, raised when an older reader would misread it.
const FORMAT: u32 = 1;

/// How one model was made, without anything that identifies machines or people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    format: u32,
    /// Version of the program that downloaded the model, which is that of the service.
    pub(crate) version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) build: String,
    /// Processors, if the job ran on the machine that wrote this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) hardware: Vec<String>,
    /// Whether round 1 began with a policy that the job had fine-tuned, `policy@0`.
    #[serde(default)]
    pub(crate) has_sft: bool,
    /// The files as they were trained, with sizes and hashes but without store keys.
    pub(crate) artifact: v1::Artifact,
    pub(crate) job: v1::Job,
}

impl Provenance {
    pub(crate) fn new(job: &v1::Job, artifact: &v1::Artifact, hardware: &[String]) -> Self {
        let mut files = artifact.clone();
        files.objects.iter_mut().for_each(|object| object.key.clear());
        Self {
            format: FORMAT,
            version: VERSION.to_owned(),
            build: BUILD.to_owned(),
            hardware: hardware.to_vec(),
            has_sft: job.artifacts.iter().any(|artifact| artifact.name == "policy@0"),
            artifact: files,
            job: public(job),
        }
    }

    /// Reads a directory's file; `None` if there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let bytes = match input_file::read(&path, LIMIT) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let advice = "remove it to continue without it, or pull the model again";
        let found: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged; {advice}", path.display()))?;
        if found.format != FORMAT {
            bail!(
                "{} has format {}, but this version of foil reads {FORMAT}; use the version that wrote it, or {advice}",
                path.display(),
                found.format
            );
        }
        Ok(Some(found))
    }

    pub(crate) fn json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    pub(crate) fn is_reward(&self) -> bool {
        self.artifact.kind == "reward"
    }

    /// The parsed specification; `None` if another version wrote it in a form that this one cannot read.
    pub(crate) fn spec(&self) -> Option<spec::Job> {
        spec::Job::try_from(self.job.spec.clone()?).ok()
    }

    pub(crate) fn base(&self) -> Option<Base> {
        self.spec().map(|job| Base::of(&job, self.is_reward()))
    }
}

/// A job without its owner, tenant, labels and paths, and without references to objects in its store.
fn public(job: &v1::Job) -> v1::Job {
    let datasets = job.plan.iter().flat_map(|plan| &plan.datasets).map(|set| v1::DatasetSummary {
        // Examples of bad rows may quote them.
        first_bad: Vec::new(),
        ..set.clone()
    });
    v1::Job {
        id: job.id.clone(),
        name: job.name.clone(),
        state: job.state,
        spec: job.spec.as_ref().map(|spec| without_paths(without_scheduling(spec))),
        plan: Some(v1::Plan { phases: Vec::new(), datasets: datasets.collect() }),
        submitted_at: job.submitted_at,
        started_at: job.started_at,
        ended_at: job.ended_at,
        rounds: job.rounds.clone(),
        start: job.start.clone(),
        best_round: job.best_round,
        spec_blake3: job.spec_blake3.clone(),
        warnings: job.warnings.iter().map(|warning| without_example(warning).to_owned()).collect(),
        ..Default::default()
    }
}

/// Reduces local paths to their last part. Uploaded inputs are named by content and stay as they are.
fn without_paths(mut spec: v1::JobSpec) -> v1::JobSpec {
    let shorten = |text: &mut String| {
        let is_path = !["input:", "model:", "job:"].iter().any(|scheme| text.starts_with(scheme));
        if is_path && let Some((_, last)) = text.rsplit_once('/') {
            *text = last.to_owned();
        }
    };
    spec.policy.iter_mut().for_each(|policy| shorten(&mut policy.model));
    spec.reward.iter_mut().for_each(|reward| shorten(&mut reward.model));
    if let Some(data) = &mut spec.data {
        let lists = [&mut data.preferences, &mut data.golden, &mut data.prompts, &mut data.sft];
        let sources = data.sources.iter_mut().flat_map(|source| &mut source.path);
        lists.into_iter().flatten().chain(sources).for_each(shorten);
        if let Some(evaluation) = &mut data.evaluation {
            [&mut evaluation.preferences, &mut evaluation.prompts].into_iter().flatten().for_each(shorten);
        }
    }
    spec
}

/// A data file of a job: the field that names it, its name, and its hash.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DataFile {
    pub(super) set: &'static str,
    pub(super) name: String,
    pub(super) blake3: Option<String>,
}

/// The data files of a job, in the order of its fields.
pub(super) fn data_files<'a>(job: &'a spec::Job) -> Vec<DataFile> {
    let data = &job.data;
    let lists = [
        ("sft", &data.sft),
        ("preferences", &data.preferences),
        ("golden", &data.golden),
        ("prompts", &data.prompts),
        ("evaluation.preferences", &data.evaluation.preferences),
        ("evaluation.prompts", &data.evaluation.prompts),
    ];
    let file = |set, input: &InputRef| {
        let blake3 = match input {
            InputRef::Input { blake3, .. } => Some(blake3.clone()),
            InputRef::Path(_) | InputRef::Url(_) => None,
        };
        let name = input.name().split(['?', '#']).next().unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        DataFile { set, name, blake3 }
    };
    let inputs = |(set, list): (&'static str, &'a Vec<spec::DataSource>)| {
        list.iter().flat_map(|source| &source.inputs).map(move |input| (set, input))
    };
    lists.into_iter().flat_map(inputs).map(|(set, input)| file(set, input)).collect()
}
