//! Objects at URLs outside Foil's store: data files that a user names.

use futures::{StreamExt, TryStreamExt};
use glob::Pattern;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::store::ByteStream;
use super::{Store, StoreError};

/// An object that a URL names.
pub struct RemoteFile {
    store: Store,
    path: Path,
}

impl RemoteFile {
    /// The objects of a URL `s3://bucket/path/name`, or `gs://` or `az://` alike: that object, or, if `name`
    /// is a pattern (`*`, `?`, `[0-9]`), all objects in the same folder whose names match, sorted.
    /// Credentials come from the environment, as in [`Store::open`].
    ///
    /// # Errors
    /// The URL names no object, the store refuses to list, or no object matches.
    pub async fn find(url: &str) -> Result<Vec<Self>, StoreError> {
        let fault = |reason: &str| StoreError::Open {
            location: crate::redact::secrets(url).into_owned(),
            reason: reason.to_owned(),
            advice: "give the URL of an object, such as s3://bucket/path/rows.jsonl or s3://bucket/path/*.parquet",
        };
        let (base, name) = url.rsplit_once('/').unwrap_or((url, ""));
        if name.is_empty() || base.ends_with('/') {
            return Err(fault("it names no object"));
        }
        if !name.contains(['*', '?', '[']) {
            let store = Store::open(url)?;
            let path = store.prefix().clone();
            return Ok(vec![Self { store, path }]);
        }
        let pattern = Pattern::new(name).map_err(|error| fault(&format!("its pattern is none ({error})")))?;
        let store = Store::open(base)?;
        let listed = store.backend().list_with_delimiter(Some(store.prefix())).await;
        let listed = listed.map_err(|error| store.failure("list", name, &error))?;
        let paths = listed.objects.into_iter().map(|meta| meta.location);
        let fits = |path: &Path| path.filename().is_some_and(|name| pattern.matches(name));
        let mut paths: Vec<Path> = paths.filter(fits).collect();
        paths.sort();
        if paths.is_empty() {
            return Err(fault("no object fits the pattern"));
        }
        Ok(paths.into_iter().map(|path| Self { store: store.clone(), path }).collect())
    }

    /// Its name without its path.
    pub fn name(&self) -> &str {
        self.path.filename().unwrap_or("object")
    }

    /// Its size and its bytes.
    pub async fn stream(&self) -> Result<(u64, ByteStream), StoreError> {
        let (store, key) = (self.store.clone(), self.path.to_string());
        let failed = move |error| store.failure("get", &key, &error);
        let result = self.store.backend().get(&self.path).await.map_err(&failed)?;
        Ok((result.meta.size, result.into_stream().map_err(failed).boxed()))
    }
}
