//! Fetching the files that a specification names.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use foil_common::data::parse::{Budget, Parsed, Wanted, parse_files};
use foil_common::input_file;
use foil_common::spec::{self, InputRef};
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;

use super::ResolveError;
use crate::inputs;
use crate::tenant::Tenant;

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

/// The files of one field, with the names that the user gave them.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) field: &'static str,
    files: Vec<(String, Content)>,
}

#[derive(Debug)]
enum Content {
    Uploaded(Bytes),
    Local(File),
}

/// The files of all fields.
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
        Ok(Self {
            sft: Source::fetch("data.sft", &data.sft, uploads).await?,
            preferences: Source::fetch("data.preferences", &data.preferences, uploads).await?,
            golden: Source::fetch("data.golden", &data.golden, uploads).await?,
            prompts: Source::fetch("data.prompts", &data.prompts, uploads).await?,
            evaluation_preferences: Source::fetch(
                "data.evaluation.preferences",
                &data.evaluation.preferences,
                uploads,
            )
            .await?,
            evaluation_prompts: Source::fetch("data.evaluation.prompts", &data.evaluation.prompts, uploads)
                .await?,
        })
    }

    /// Opens local files instead.
    pub(super) fn open(data: &spec::Data) -> Result<Self, ResolveError> {
        Ok(Self {
            sft: Source::open("data.sft", &data.sft)?,
            preferences: Source::open("data.preferences", &data.preferences)?,
            golden: Source::open("data.golden", &data.golden)?,
            prompts: Source::open("data.prompts", &data.prompts)?,
            evaluation_preferences: Source::open(
                "data.evaluation.preferences",
                &data.evaluation.preferences,
            )?,
            evaluation_prompts: Source::open("data.evaluation.prompts", &data.evaluation.prompts)?,
        })
    }
}

impl Source {
    fn open(field: &'static str, inputs: &[InputRef]) -> Result<Self, ResolveError> {
        let open = |input: &InputRef| match input {
            InputRef::Path(path) => match input_file::open(Path::new(path)) {
                Ok(file) => Ok((path.clone(), Content::Local(file))),
                Err(error) => Err(ResolveError::Unreadable {
                    field,
                    path: path.clone(),
                    what: error.to_string(),
                    absent: error.kind() == std::io::ErrorKind::NotFound,
                }),
            },
            InputRef::Input { name, .. } => Err(ResolveError::Uploaded { field, name: name.clone() }),
        };
        Ok(Self { field, files: inputs.iter().map(open).collect::<Result<_, _>>()? })
    }

    async fn fetch(
        field: &'static str,
        inputs: &[InputRef],
        uploads: Uploads<'_>,
    ) -> Result<Self, ResolveError> {
        let mut files = Vec::with_capacity(inputs.len());
        for input in inputs {
            let name = input.name().to_owned();
            let InputRef::Input { blake3, .. } = input else {
                return Err(ResolveError::NotUploaded { field, path: name });
            };
            let bytes = fetch(field, &name, &uploads.key(blake3), uploads.store).await?;
            files.push((name, Content::Uploaded(bytes)));
        }
        Ok(Self { field, files })
    }

    /// All rows of the files, at most the allowed fraction of them bad. None if there are no files.
    pub(super) fn parse<T: Wanted>(
        &self,
        max_bad_fraction: f64,
        budget: &mut Budget,
    ) -> Result<Option<Parsed<T>>, ResolveError> {
        if self.files.is_empty() {
            return Ok(None);
        }
        let fail = |fault| ResolveError::Data { field: self.field, fault };
        let files = self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.reader()));
        let parsed = parse_files(files, budget).map_err(fail)?;
        parsed.require(max_bad_fraction).map_err(fail)?;
        Ok(Some(parsed))
    }
}

impl Content {
    fn reader(&self) -> Box<dyn Read + '_> {
        match self {
            Self::Uploaded(bytes) => Box::new(&bytes[..]),
            Self::Local(file) => Box::new(file),
        }
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
