//! Checks that ranks can run a job's models, based only on config.json and the headers of the weights.

use std::path::Path;

use foil_common::input_file;
use foil_common::model::{
    DecoderConfig, HeadKind, ModelFilesError, WeightFiles, has_other_weights, instead, refuse_adapter,
};
use foil_common::spec::{self, Init, ModelRef};
use serde_json::Value;

use super::ResolveError;

/// Fields of the specification that name models.
pub(super) const POLICY: &str = "policy.model";
pub(super) const REWARD: &str = "reward.model";

/// Size limit of a config.json.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The parts of a model directory that were read.
pub(super) struct Files<'a> {
    /// The field that names the directory, and the directory's name in messages.
    pub(super) field: &'static str,
    pub(super) name: &'a str,
    pub(super) config: &'a Value,
    /// None if the job initializes the weights, or if the files do not exist yet.
    pub(super) weights: Option<&'a WeightFiles>,
}

/// Checks everything that a rank would reject while loading the model, and that the model has enough
/// positions.
pub(super) fn check(job: &spec::Job, files: &Files<'_>) -> Result<DecoderConfig, ResolveError> {
    let wrong = |fault| ResolveError::ModelFiles { field: files.field, name: files.name.to_owned(), fault };
    let config = DecoderConfig::from_hf(files.config).map_err(wrong)?;
    let head = HeadKind::of_config(files.config).map_err(wrong)?;
    let is_random = files.field == POLICY && job.policy.init == Init::Random;
    if files.field == POLICY && head == HeadKind::Reward && !is_random {
        return Err(wrong(ModelFilesError::Config {
            field: "architectures".to_owned(),
            found: "a sequence classifier".to_owned(),
            expected: "a …ForCausalLM: a reward model cannot write text".to_owned(),
        }));
    }
    if let Some(weights) = files.weights {
        weights.check(&config, head).map_err(wrong)?;
    }
    let found = job.text.max_length;
    match i64::try_from(found).is_ok_and(|length| length <= config.max_positions) {
        true => Ok(config),
        false => Err(ResolveError::Positions {
            model: files.field,
            found,
            limit: config.max_positions,
            name: files.name.to_owned(),
        }),
    }
}

/// Checks the job's models that are local directories before anything is uploaded. Models in a store are
/// checked there.
///
/// # Errors
/// A model cannot be read, or ranks cannot run it.
pub fn local_models(job: &spec::Job) -> Result<(), ResolveError> {
    let models = [(POLICY, Some(&job.policy.model)), (REWARD, job.reward.model.as_ref())];
    for (field, model) in models {
        if let Some(ModelRef::Path(path)) = model {
            local_model(job, field, path, Weights::Required)?;
        }
    }
    Ok(())
}

/// Whether a local directory must have weights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weights {
    Required,
    /// Weights are checked if they exist, because nothing runs yet.
    Optional,
}

pub(super) fn local_model(
    job: &spec::Job,
    field: &'static str,
    path: &str,
    weights: Weights,
) -> Result<(DecoderConfig, Option<WeightFiles>), ResolveError> {
    let wrong = |fault| ResolveError::ModelFiles { field, name: path.to_owned(), fault };
    let dir = Path::new(path);
    let config = local_config(field, path)?;
    let is_random = field == POLICY && job.policy.init == Init::Random;
    let exist = || {
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().contains(".safetensors"))
            || has_other_weights(dir)
    };
    let open = !is_random && (weights == Weights::Required || exist());
    let weights = open.then(|| WeightFiles::open(dir).map_err(wrong)).transpose()?;
    let files = Files { field, name: path, config: &config, weights: weights.as_ref() };
    let decoder = check(job, &files)?;
    if let Some(weights) = &weights {
        refuse_adapter(dir).map_err(wrong)?;
        let head = HeadKind::of_config(&config).map_err(wrong)?;
        weights.check_tied_head(&decoder, head).map_err(wrong)?;
    }
    Ok((decoder, weights))
}

/// The config.json of a local model directory.
///
/// # Errors
/// The file does not exist (the error hints at what the directory contains) or is not JSON.
pub fn local_config(field: &'static str, path: &str) -> Result<Value, ResolveError> {
    let dir = Path::new(path);
    let unreadable = |path: &Path, what: String, absent| ResolveError::Unreadable {
        field,
        path: path.display().to_string(),
        what,
        absent,
    };
    if !dir.is_dir() {
        let what = if dir.exists() {
            "it is a file, and the directory of a model is expected"
        } else {
            "there is no such directory; correct the path (a model of the Hugging Face hub is downloaded first: \
             hf download NAME --local-dir DIRECTORY)"
        };
        return Err(unreadable(dir, what.to_owned(), false));
    }
    let file = dir.join("config.json");
    let text = input_file::read(&file, MAX_CONFIG_BYTES).map_err(|error| {
        let absent = error.kind() == std::io::ErrorKind::NotFound;
        match instead(dir).filter(|_| absent) {
            Some(instead) => unreadable(&file, format!("there is no such file; {instead}"), false),
            None => unreadable(&file, error.to_string(), absent),
        }
    })?;
    ModelFilesError::parse(&file, &text).map_err(|fault| ResolveError::ModelFiles {
        field,
        name: path.to_owned(),
        fault,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_model_directory_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_string_lossy().into_owned();
        let message = |path: &str| local_config(POLICY, path).unwrap_err().to_string();
        assert!(local_config(POLICY, &path).unwrap_err().is_missing_file());
        std::fs::write(dir.path().join("model.gguf"), "GGUF").unwrap();
        let error = message(&path);
        assert!(error.contains("config.json") && error.contains("GGUF"), "{error}");
        assert!(message(&format!("{path}/model.gguf")).contains("it is a file"));
        assert!(message(&format!("{path}/absent")).contains("hf download"));
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        std::fs::write(dir.path().join("config.json"), pointer).unwrap();
        assert!(message(&path).contains("git lfs pull"), "{}", message(&path));
    }
}
