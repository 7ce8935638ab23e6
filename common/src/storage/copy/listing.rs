//! The keys of a store in ascending order, with few of them in memory: one page at a time if the store lists
//! in order, as object stores do, otherwise the entries of the directories above the current key.

use std::vec;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::ObjectMeta;
use object_store::path::Path;
use tokio::sync::Mutex;

use super::super::health::Ask;
use super::super::scan::modified;
use super::super::{Scanned, Store, StoreError};
use super::CopyError;

/// Number of keys read at a time.
pub(super) const PAGE: usize = 1000;

/// Keys below a prefix.
pub(super) struct Listing {
    store: Store,
    prefix: String,
    source: Source,
    last: Option<String>,
}

enum Source {
    Pages {
        /// The listing in progress; `None` before it begins and after it has failed.
        open: Option<BoxStream<'static, object_store::Result<ObjectMeta>>>,
        /// The key after which the listing continues, if it has to restart.
        after: Option<Path>,
        page: vec::IntoIter<Scanned>,
        over: bool,
    },
    /// The remaining entries of the last key's directory, and of those above it.
    Directories(Vec<vec::IntoIter<Entry>>),
}

#[derive(Debug)]
enum Entry {
    Key(Scanned),
    /// The common prefix of keys, without the slash at its end.
    Directory(String),
}

impl Entry {
    /// Its sort key among the entries of a directory.
    fn order(&self) -> (&str, &str) {
        match self {
            Self::Key(found) => (&found.key, ""),
            Self::Directory(path) => (path, "/"),
        }
    }
}

impl Listing {
    pub(super) fn new(store: &Store, prefix: &str) -> Self {
        let source = if store.lists_in_order() {
            Source::Pages { open: None, after: None, page: Vec::new().into_iter(), over: false }
        } else {
            Source::Directories(vec![vec![Entry::Directory(prefix.to_owned())].into_iter()])
        };
        Self { store: store.clone(), prefix: prefix.to_owned(), source, last: None }
    }

    /// The next key; `None` after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Scanned>, CopyError> {
        let found = match &mut self.source {
            Source::Pages { .. } => self.next_of_pages().await?,
            Source::Directories(_) => self.next_of_directories().await?,
        };
        let Some(found) = found else { return Ok(None) };
        if self.last.as_ref().is_some_and(|last| *last >= found.key) {
            let (location, last) = (self.store.location().to_owned(), self.last.take().unwrap_or_default());
            return Err(CopyError::Disorder { location, last, key: found.key });
        }
        self.last = Some(found.key.clone());
        Ok(Some(found))
    }

    async fn next_of_pages(&mut self) -> Result<Option<Scanned>, StoreError> {
        let Source::Pages { open, after, page, over } = &mut self.source else { return Ok(None) };
        loop {
            if let Some(found) = page.next() {
                return Ok(Some(found));
            }
            if *over {
                return Ok(None);
            }
            let listing = Mutex::new(open.take());
            let (store, listing, begin) = (&self.store, &listing, after.as_ref());
            let metas = store.with_retries("list", Ask::read(&self.prefix), |prefix| async move {
                let mut listing = listing.lock().await;
                let mut metas = listing.take().unwrap_or_else(|| match begin {
                    None => store.backend().list(Some(&prefix)),
                    Some(after) => store.backend().list_with_offset(Some(&prefix), after),
                });
                let mut found = Vec::new();
                while found.len() < PAGE {
                    let Some(meta) = metas.try_next().await? else { return Ok((found, true)) };
                    found.push(meta);
                }
                *listing = Some(metas);
                Ok((found, false))
            });
            let (metas, is_over) = metas.await?;
            *open = listing.lock().await.take();
            *over = is_over;
            *after = metas.last().map(|meta| meta.location.clone()).or_else(|| after.take());
            let found: Vec<Scanned> = metas.iter().filter_map(|meta| scanned(store, meta)).collect();
            *page = found.into_iter();
        }
    }

    async fn next_of_directories(&mut self) -> Result<Option<Scanned>, StoreError> {
        let Source::Directories(above) = &mut self.source else { return Ok(None) };
        loop {
            let Some(entries) = above.last_mut() else { return Ok(None) };
            match entries.next() {
                None => drop(above.pop()),
                Some(Entry::Key(found)) => return Ok(Some(found)),
                Some(Entry::Directory(path)) => above.push(directory(&self.store, &path).await?.into_iter()),
            }
        }
    }
}

/// The entries of a directory, in the order of the keys that they stand for; empty if it does not exist.
async fn directory(store: &Store, path: &str) -> Result<Vec<Entry>, StoreError> {
    let listed = store.with_retries("list", Ask::read(path), |path| async move {
        store.backend().list_with_delimiter(Some(&path)).await
    });
    let listed = match listed.await {
        Err(StoreError::NotFound { .. }) => return Ok(Vec::new()),
        listed => listed?,
    };
    let keys = listed.objects.iter().filter_map(|meta| scanned(store, meta)).map(Entry::Key);
    let directories = listed.common_prefixes.iter().filter_map(|path| store.key_of(path));
    let mut entries: Vec<Entry> = keys.chain(directories.map(Entry::Directory)).collect();
    entries.sort_by(|a, b| {
        let ((a, a_end), (b, b_end)) = (a.order(), b.order());
        a.bytes().chain(a_end.bytes()).cmp(b.bytes().chain(b_end.bytes()))
    });
    Ok(entries)
}

fn scanned(store: &Store, meta: &ObjectMeta) -> Option<Scanned> {
    let key = store.key_of(&meta.location)?;
    Some(Scanned { key, size: meta.size, modified: modified(meta) })
}
