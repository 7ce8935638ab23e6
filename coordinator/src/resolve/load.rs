//! Fetching the files that a specification names.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use foil_common::data::folder::{self, FolderError};
use foil_common::data::parse::{
    Budget, Choice, ColumnNames, Content, ParseError, Parsed, RangeReader, SourceFiles, Wanted, parse_sources,
};
use foil_common::data::row_set::RowSet;
use foil_common::input_file;
use foil_common::spec::{self, DataSource, InputRef, SourceSet};
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;
use tokio::runtime::Handle;

use super::ResolveError;
use crate::inputs;
use crate::tenant::Tenant;

/// Size up to which a data file is held in memory.
const MAX_HELD_BYTES: u64 = 8 << 20;

/// The inputs of a source, with local folders and patterns replaced by their files.
pub fn expand(inputs: &[InputRef]) -> Result<Vec<InputRef>, FolderError> {
    let mut expanded = Vec::with_capacity(inputs.len());
    for input in inputs {
        match input {
            InputRef::Path(path) => {
                let files = folder::files(path)?;
                expanded.extend(
                    files.into_iter().map(|file| InputRef::Path(file.to_string_lossy().into_owned())),
                );
            }
            InputRef::Input { .. } | InputRef::Url(_) => expanded.push(input.clone()),
        }
    }
    Ok(expanded)
}

/// The uploads of a tenant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uploads<'a> {
    pub(super) store: &'a Store,
    pub(super) tenant: &'a Tenant,
}

impl Uploads<'_> {
    /// Key in the store of the tenant's upload with this hash.
    pub(super) fn key(&self, blake3: &str) -> String {
        inputs::stored_key(self.tenant, blake3)
    }
}

/// The sources of one field.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) field: &'static str,
    pub(super) sources: Vec<DataSource>,
    opened: Vec<Opened>,
    /// The first failure of the store while a file was read in it.
    trouble: Trouble,
}

type Trouble = Arc<Mutex<Option<StoreError>>>;

/// The files of a source, with their user-given names.
#[derive(Debug)]
struct Opened {
    files: Vec<(String, Content)>,
    names: ColumnNames,
}

/// The sources of all fields.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) sft: Source,
    pub(super) preferences: Source,
    pub(super) golden: Source,
    pub(super) prompts: Source,
    pub(super) evaluation_preferences: Source,
    pub(super) evaluation_prompts: Source,
}

impl Sources {
    pub(super) async fn fetch(data: &spec::Data, uploads: Uploads<'_>) -> Result<Self, ResolveError> {
        let fetch = |set: SourceSet, sources| Source::fetch(set.field(), sources, uploads);
        Ok(Self {
            sft: fetch(SourceSet::Sft, &data.sft).await?,
            preferences: fetch(SourceSet::Preferences, &data.preferences).await?,
            golden: fetch(SourceSet::Golden, &data.golden).await?,
            prompts: fetch(SourceSet::Prompts, &data.prompts).await?,
            evaluation_preferences: fetch(SourceSet::EvaluationPreferences, &data.evaluation.preferences)
                .await?,
            evaluation_prompts: fetch(SourceSet::EvaluationPrompts, &data.evaluation.prompts).await?,
        })
    }

    /// Like [`Self::fetch`], but opens local files.
    pub(super) fn open(data: &spec::Data) -> Result<Self, ResolveError> {
        let open = |set: SourceSet, sources| Source::open(set.field(), sources);
        Ok(Self {
            sft: open(SourceSet::Sft, &data.sft)?,
            preferences: open(SourceSet::Preferences, &data.preferences)?,
            golden: open(SourceSet::Golden, &data.golden)?,
            prompts: open(SourceSet::Prompts, &data.prompts)?,
            evaluation_preferences: open(SourceSet::EvaluationPreferences, &data.evaluation.preferences)?,
            evaluation_prompts: open(SourceSet::EvaluationPrompts, &data.evaluation.prompts)?,
        })
    }
}

impl Source {
    fn open(field: &'static str, sources: &[DataSource]) -> Result<Self, ResolveError> {
        let open = |input: &InputRef| match input {
            InputRef::Path(path) => match input_file::open(Path::new(path)) {
                Ok(file) => Ok((path.clone(), file.into())),
                Err(error) => Err(ResolveError::Unreadable {
                    field,
                    path: path.clone(),
                    what: error.to_string(),
                    absent: error.kind() == std::io::ErrorKind::NotFound,
                }),
            },
            InputRef::Url(url) => Err(ResolveError::NotUploaded { field, path: url.clone() }),
            InputRef::Input { name, .. } => Err(ResolveError::Uploaded { field, name: name.clone() }),
        };
        let opened = sources.iter().map(|source| {
            let inputs = expand(&source.inputs).map_err(|fault| ResolveError::Folder { field, fault })?;
            let files = inputs.iter().map(open).collect::<Result<_, _>>()?;
            Ok(Opened { files, names: ColumnNames::new(&source.columns) })
        });
        let opened = opened.collect::<Result<_, ResolveError>>()?;
        Ok(Self { field, sources: sources.to_vec(), opened, trouble: Trouble::default() })
    }

    async fn fetch(
        field: &'static str,
        sources: &[DataSource],
        uploads: Uploads<'_>,
    ) -> Result<Self, ResolveError> {
        let trouble = Trouble::default();
        let mut opened = Vec::with_capacity(sources.len());
        for source in sources {
            let mut files = Vec::with_capacity(source.inputs.len());
            for input in &source.inputs {
                let name = input.name().to_owned();
                let InputRef::Input { blake3, .. } = input else {
                    return Err(ResolveError::NotUploaded { field, path: name });
                };
                let content =
                    open_upload(field, &name, &uploads.key(blake3), uploads.store, &trouble).await?;
                files.push((name, content));
            }
            opened.push(Opened { files, names: ColumnNames::new(&source.columns) });
        }
        Ok(Self { field, sources: sources.to_vec(), opened, trouble })
    }

    /// The rows of the files that `choice` keeps. Fails if the fraction of bad rows exceeds the allowed one.
    /// None if there are no files.
    pub(super) fn parse<T: Wanted>(
        &self,
        max_bad_fraction: f64,
        budget: &mut Budget,
        choice: &mut dyn Choice<T>,
    ) -> Result<Option<Parsed<RowSet<T>>>, ResolveError> {
        if self.opened.is_empty() {
            return Ok(None);
        }
        let fail =
            |fault: ParseError| match self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
                // The file is not at fault.
                Some(error) => ResolveError::from(error),
                None => match fault {
                    ParseError::Spill(error) => error.into(),
                    fault => ResolveError::Data { field: self.field, fault },
                },
            };
        let sources = self.opened.iter().map(|Opened { files, names }| SourceFiles {
            files: files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect(),
            names,
        });
        let parsed = parse_sources(sources, budget, choice).map_err(fail)?;
        parsed.require(self.field, max_bad_fraction).map_err(fail)?;
        Ok(Some(parsed))
    }
}

/// An uploaded data file, verified. A large one stays in the store and is read piece by piece.
async fn open_upload(
    field: &'static str,
    name: &str,
    key: &str,
    store: &Store,
    trouble: &Trouble,
) -> Result<Content, ResolveError> {
    let object = stat(field, name, key, store).await?;
    if object.size <= MAX_HELD_BYTES {
        return Ok(store.read_object(&object).await?.into());
    }
    store.verify_object(&object).await?;
    let (store, trouble) = (store.clone(), Arc::clone(trouble));
    Ok(Content::remote(StoredFile { store, object, runtime: Handle::current(), trouble }))
}

/// A data file in the store. It is read by threads that may block.
#[derive(Debug)]
struct StoredFile {
    store: Store,
    object: v1::Object,
    runtime: Handle,
    trouble: Trouble,
}

impl RangeReader for StoredFile {
    fn length(&self) -> u64 {
        self.object.size
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.runtime.block_on(self.store.get_range(&self.object.key, range)).map_err(|error| {
            let told = io::Error::other(error.to_string());
            self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            told
        })
    }
}

/// An uploaded object, verified. Messages refer to it as `name`.
pub(super) async fn fetch(
    field: &'static str,
    name: &str,
    key: &str,
    store: &Store,
) -> Result<Bytes, ResolveError> {
    let object = stat(field, name, key, store).await?;
    Ok(store.read_object(&object).await?)
}

pub(super) async fn stat(
    field: &'static str,
    name: &str,
    key: &str,
    store: &Store,
) -> Result<v1::Object, ResolveError> {
    match store.stat_object(key).await {
        Ok(object) => Ok(object),
        Err(StoreError::NotFound { .. }) => {
            Err(ResolveError::Missing { field, name: name.to_owned(), key: key.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}
