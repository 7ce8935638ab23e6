//! A job's local inputs: hashed and named by content, so that the coordinator needs no path of this machine.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use foil_common::data::folder::FolderError;
use foil_common::input_file;
use foil_common::spec::{self, InputRef, ModelRef};
use foil_coordinator::resolve::expand;
use foil_proto::v1;
use tempfile::TempDir;
use thiserror::Error;

/// The files of a model directory that a job may need, in addition to `*.safetensors`.
const MODEL_FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

#[derive(Debug, Error)]
pub(crate) enum InputError {
    #[error("{field}: {} cannot be read: {reason}; {advice}", path.display())]
    Read { field: String, path: PathBuf, reason: String, advice: &'static str },
    #[error("{field}: {fault}")]
    Folder { field: String, fault: FolderError },
    #[error("{field}: {} holds no {file}; give a Hugging Face model directory (config.json, *.safetensors, tokenizer.json){advice}", path.display())]
    NotModel { field: String, path: PathBuf, file: &'static str, advice: &'static str },
}

/// A job whose inputs are named by content, and the objects to upload for it.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The specification with all defaults filled in.
    pub(crate) spec: v1::JobSpec,
    pub(crate) uploads: Vec<Upload>,
    /// Copies of files that the job names by URL, which are uploaded from here.
    #[expect(dead_code, reason = "it keeps the files until they are uploaded")]
    pub(crate) downloads: Option<TempDir>,
}

/// One object to upload.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) object: v1::Object,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    File(PathBuf),
    Bytes(Bytes),
}

/// Hashes all inputs that are local paths. `on_file` is called before each is read.
pub(crate) fn prepare(job: spec::Job, on_file: &mut dyn FnMut(&Path)) -> Result<Prepared, InputError> {
    let mut job = job;
    let mut reader = Reader { uploads: Vec::new(), keys: BTreeSet::new(), on_file };
    let needs_weights = job.policy.init == spec::Init::Weights;
    reader.model("policy.model", &mut job.policy.model, needs_weights)?;
    if let Some(model) = &mut job.reward.model {
        reader.model("reward.model", model, true)?;
    }
    for (set, sources) in job.data.sources_mut() {
        let field = set.field();
        for source in sources {
            source.inputs = expand(&source.inputs)
                .map_err(|fault| InputError::Folder { field: field.to_owned(), fault })?;
            for input in &mut source.inputs {
                reader.data(field, input)?;
            }
        }
    }
    Ok(Prepared { spec: v1::JobSpec::from(&job), uploads: reader.uploads, downloads: None })
}

struct Reader<'a> {
    uploads: Vec<Upload>,
    keys: BTreeSet<String>,
    on_file: &'a mut dyn FnMut(&Path),
}

impl Reader<'_> {
    fn data(&mut self, field: &str, input: &mut InputRef) -> Result<(), InputError> {
        let InputRef::Path(path) = &*input else { return Ok(()) };
        let path = PathBuf::from(path);
        let object = self.file(field, &path)?;
        *input = InputRef::Input { blake3: object.blake3, name: file_name(&path) };
        Ok(())
    }

    fn model(&mut self, field: &str, model: &mut ModelRef, needs_weights: bool) -> Result<(), InputError> {
        let ModelRef::Path(path) = &*model else { return Ok(()) };
        let path = PathBuf::from(path);
        let names = model_files(field, &path, needs_weights)?;
        let mut objects = Vec::new();
        for name in names {
            objects.push(self.file(field, &path.join(name))?);
        }
        let name = model_name(&path);
        let listing =
            v1::Artifact { name: name.clone(), kind: "model".to_owned(), objects, ..Default::default() };
        let listing = serde_json::to_vec(&listing).expect("an artifact is plain data");
        let blake3 = blake3::hash(&listing).to_hex().to_string();
        let object = v1::Object {
            key: format!("inputs/{blake3}"),
            size: listing.len() as u64,
            blake3: blake3.clone(),
            path: name.clone(),
        };
        self.add(Upload { object, content: Content::Bytes(listing.into()) });
        *model = ModelRef::Input { blake3, name };
        Ok(())
    }

    fn file(&mut self, field: &str, path: &Path) -> Result<v1::Object, InputError> {
        (self.on_file)(path);
        let failed = |error: &io::Error| unreadable(field, path, error);
        let file = input_file::open(path).map_err(|error| failed(&error))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file).map_err(|error| failed(&error))?;
        let blake3 = hasher.finalize().to_hex().to_string();
        let object = v1::Object {
            key: format!("inputs/{blake3}"),
            size: hasher.count(),
            blake3,
            path: file_name(path),
        };
        self.add(Upload { object: object.clone(), content: Content::File(path.to_owned()) });
        Ok(object)
    }

    fn add(&mut self, upload: Upload) {
        if self.keys.insert(upload.object.key.clone()) {
            self.uploads.push(upload);
        }
    }
}

/// The names of a model directory's files, sorted, so that equal directories have equal listings.
fn model_files(field: &str, path: &Path, needs_weights: bool) -> Result<Vec<String>, InputError> {
    let failed = |error: &io::Error| unreadable(field, path, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| failed(&error))? {
        let name = entry.map_err(|error| failed(&error))?.file_name().to_string_lossy().into_owned();
        let is_weights = name.ends_with(".safetensors") && needs_weights;
        let is_index = name == "model.safetensors.index.json" && !needs_weights;
        if is_weights || (MODEL_FILES.contains(&name.as_str()) && !is_index) {
            names.push(name);
        }
    }
    names.sort();
    let lacks = |file, advice| InputError::NotModel { field: field.into(), path: path.into(), file, advice };
    for required in ["config.json", "tokenizer.json"] {
        if !names.iter().any(|name| name == required) {
            return Err(lacks(required, ""));
        }
    }
    if needs_weights && !names.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(lacks("*.safetensors", ", or set policy.init: random"));
    }
    Ok(names)
}

fn unreadable(field: &str, path: &Path, error: &io::Error) -> InputError {
    let (reason, advice) = match error.kind() {
        io::ErrorKind::NotFound => ("there is no such file or directory".to_owned(), "correct the path"),
        io::ErrorKind::InvalidInput => (error.to_string(), "give a file, or a list of files"),
        io::ErrorKind::NotADirectory => ("it is not a directory".to_owned(), "give a model directory"),
        _ => (error.to_string(), "check the file"),
    };
    InputError::Read { field: field.to_owned(), path: path.to_owned(), reason, advice }
}

/// A model directory's name. In a cache of the Hugging Face Hub, where directories are named by commits, it
/// is that of the repository, as the cache writes it: `owner--name`.
fn model_name(path: &Path) -> String {
    let mut folders = path.ancestors().skip(1).map(file_name);
    let (snapshots, repository) = (folders.next(), folders.next());
    let cached = repository.as_deref().and_then(|name| name.strip_prefix("models--"));
    match cached.filter(|_| snapshots.as_deref() == Some("snapshots")) {
        Some(name) => name.to_owned(),
        None => file_name(path),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(dir: &Path, init: &str) -> spec::Job {
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let wire = v1::JobSpec {
            name: "j".into(),
            policy: Some(v1::PolicySpec { model: path("model"), init: init.into() }),
            data: Some(v1::DataSpec {
                preferences: vec![path("pairs.jsonl")],
                golden: vec![path("pairs.jsonl")],
                prompts: vec![path("prompts.jsonl.gz")],
                sft: if init == "random" { vec![path("prompts.jsonl.gz")] } else { Vec::new() },
                ..Default::default()
            }),
            ..Default::default()
        };
        spec::Job::try_from(wire).unwrap()
    }

    fn write(dir: &Path, files: &[&str]) {
        fs::create_dir_all(dir.join("model")).unwrap();
        for file in files {
            fs::write(dir.join(file), file).unwrap();
        }
    }

    #[test]
    fn inputs_are_named_by_content_and_listed_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            "pairs.jsonl",
            "prompts.jsonl.gz",
            "model/config.json",
            "model/tokenizer.json",
            "model/notes.md",
        ];
        write(dir.path(), &files);
        // A checkpoint without tensors.
        fs::write(dir.path().join("model/model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
        let prepared = prepare(job(dir.path(), ""), &mut |_| {}).unwrap();
        // Two data files, three model files, the model's listing.
        assert_eq!(prepared.uploads.len(), 6);
        let data = prepared.spec.data.clone().unwrap();
        let hash = blake3::hash(b"pairs.jsonl").to_hex();
        assert_eq!(data.preferences, [format!("input:{hash}:pairs.jsonl")]);
        assert_eq!(data.golden, data.preferences);
        let job = spec::Job::try_from(prepared.spec.clone()).unwrap();
        job.require_uploaded().unwrap();
        assert!(matches!(&job.policy.model, ModelRef::Input { name, .. } if name == "model"));
        let again = prepare(self::job(dir.path(), ""), &mut |_| {}).unwrap();
        assert_eq!(again.spec, prepared.spec);
    }

    #[test]
    fn a_cached_model_is_named_by_its_repository() {
        let name = |path: &str| model_name(Path::new(path));
        assert_eq!(name("/c/models--meta-llama--Llama-3.2-1B/snapshots/0abc"), "meta-llama--Llama-3.2-1B");
        assert_eq!(name("models/stories15m"), "stories15m");
        assert_eq!(name("/c/models--a--b/refs/0abc"), "0abc");
        assert_eq!(name("tiny"), "tiny");
    }

    #[test]
    fn folders_and_patterns_are_uploaded_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("set/data")).unwrap();
        let files = [
            "set/data/train-00000-of-00002.jsonl",
            "set/data/train-00001-of-00002.jsonl",
            "set/data/test-00000-of-00001.jsonl",
        ];
        write(
            dir.path(),
            &["model/config.json", "model/tokenizer.json", "model/model.safetensors", "golden.jsonl"],
        );
        write(dir.path(), &files);
        let named = |preferences: &str, prompts: &str| {
            let mut job = v1::JobSpec::from(&job(dir.path(), ""));
            let data = job.data.as_mut().unwrap();
            let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
            data.preferences = vec![path("golden.jsonl"), path(preferences)];
            data.golden = vec![path("golden.jsonl")];
            data.prompts = vec![path(prompts)];
            prepare(spec::Job::try_from(job).unwrap(), &mut |_| {})
        };
        let data = named("set#train", "set/data/*.jsonl").unwrap().spec.data.unwrap();
        // The files of a folder or pattern are one source.
        let names = |set: &str| -> Vec<Vec<String>> {
            let name = |input: &String| input.rsplit_once(':').unwrap().1.to_owned();
            let sources = data.sources.iter().filter(|source| source.set == set);
            sources.map(|source| source.path.iter().map(name).collect()).collect()
        };
        let [first, second, test] = files.map(|file| file.rsplit_once('/').unwrap().1.to_owned());
        let train = vec![first.clone(), second.clone()];
        assert_eq!(names("preferences"), [vec!["golden.jsonl".to_owned()], train]);
        assert_eq!(names("prompts"), [vec![test, first, second]]);
        let error = named("set", "golden.jsonl").unwrap_err().to_string();
        assert!(
            error.starts_with("data.preferences: ") && error.contains("several splits: test, train"),
            "{error}"
        );
        let error = named("golden.jsonl", "set/*.parquet").unwrap_err().to_string();
        assert!(error.starts_with("data.prompts: ") && error.contains("fits no file"), "{error}");
    }

    #[test]
    fn missing_inputs_are_named_with_their_fields() {
        let dir = tempfile::tempdir().unwrap();
        let message = |init| prepare(job(dir.path(), init), &mut |_| {}).unwrap_err().to_string();
        assert!(message("").starts_with("policy.model: ") && message("").contains("there is no such file"));
        write(dir.path(), &["model/config.json"]);
        assert!(message("").contains("holds no tokenizer.json"), "{}", message(""));
        write(dir.path(), &["model/tokenizer.json"]);
        assert!(
            message("").contains("holds no *.safetensors") && message("").contains("policy.init: random")
        );
        assert!(message("random").starts_with("data.preferences: "), "{}", message("random"));
    }
}
