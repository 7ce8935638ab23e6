//! Model cards: a README.md next to each model, with the metadata that the Hugging Face Hub reads, and
//! `foil.json`, its machine-readable counterpart.

mod body;
pub(crate) mod escape;
mod evaluation;
mod front_matter;
pub(crate) mod names;
pub(crate) mod provenance;

use std::fs;
use std::path::Path;

use anyhow::Result;
use foil_proto::v1;
use serde::{Deserialize, Serialize};

pub(crate) use self::provenance::Provenance;
use super::local_file::write_atomic;
use super::stdout;

/// The card's file.
pub(crate) const README: &str = "README.md";
/// The last line of a card, with the hash of everything above it. An edited card is never replaced.
const SEAL: &str = "<!-- written by foil; an edited card is kept. BLAKE3 of the above: ";
const SEAL_END: &str = " -->\n";

/// A file of a model directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelFile {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) blake3: String,
}

/// The model that an adapter adapts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdapterBase {
    /// The name as a card shows it: without this machine's folders.
    name: String,
    /// Its name on the Hub, if it can be one.
    repository: Option<String>,
}

impl AdapterBase {
    /// A model as `from_pretrained` takes it: a directory's path, or a name on the Hub.
    pub(crate) fn new(model: &str) -> Self {
        let path = Path::new(model);
        let repository = if path.is_dir() { None } else { names::repository(model) };
        let last =
            || path.file_name().map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned());
        Self { name: repository.clone().unwrap_or_else(last), repository }
    }
}

/// A card of one model in one form.
#[derive(Debug)]
pub(crate) struct Card<'a> {
    pub(crate) made: &'a Provenance,
    /// The model that an adapter adapts; none for a merged model.
    pub(crate) adapter: Option<AdapterBase>,
    pub(crate) files: Vec<ModelFile>,
}

impl<'a> Card<'a> {
    /// The card of a model as it was trained.
    pub(crate) fn trained(made: &'a Provenance) -> Self {
        let file = |object: &v1::Object| ModelFile {
            name: object.path.clone(),
            size: object.size,
            blake3: object.blake3.clone(),
        };
        Self { made, adapter: None, files: made.artifact.objects.iter().map(file).collect() }
    }

    /// The job's name and the model's: `hh policy, round 2`.
    fn title(&self) -> String {
        let artifact = &self.made.artifact;
        format!("{} {}, round {}", self.made.job.name, artifact.kind, artifact.round)
    }

    /// The name on the Hub of the model that this one derives from, if it has one.
    fn base_repository(&self) -> Option<String> {
        match &self.adapter {
            Some(base) => base.repository.clone(),
            None => self.made.base().and_then(|base| base.repository()),
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = front_matter::block(self);
        text += &body::text(self);
        text.push('\n');
        let seal = blake3::hash(text.as_bytes()).to_hex();
        format!("{text}{SEAL}{seal}{SEAL_END}")
    }
}

/// Writes the card and `foil.json` of a downloaded model into its directory. An edited card is kept.
pub(crate) fn write(dir: &Path, made: &Provenance) -> Result<()> {
    write_atomic(&dir.join(provenance::FILE), &made.json()?)?;
    let path = dir.join(README);
    if is_edited(&path) {
        stdout::note(&format!("{} was edited and is kept", path.display()));
        return Ok(());
    }
    write_atomic(&path, Card::trained(made).text().as_bytes())
}

/// Whether the file exists and is not a card as Foil writes it.
pub(crate) fn is_edited(path: &Path) -> bool {
    match fs::read(path) {
        Ok(bytes) => !is_sealed(&String::from_utf8_lossy(&bytes)),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

fn is_sealed(text: &str) -> bool {
    let Some((above, seal)) = text.rsplit_once(SEAL) else { return false };
    seal.strip_suffix(SEAL_END) == Some(blake3::hash(above.as_bytes()).to_hex().as_str())
}

/// The processors of this machine: the CPU, and NVIDIA's GPUs.
pub(crate) fn hardware() -> Vec<String> {
    let mut found = Vec::new();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    if let Some(cpu) = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| field(&text, "model name")) {
        found.push(cpu);
    }
    let gpus = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    for gpu in gpus {
        let text = fs::read_to_string(gpu.path().join("information")).unwrap_or_default();
        found.extend(field(&text, "Model"));
    }
    found
}

#[cfg(test)]
mod tests;
