//! The object store at the end of a network: each request and each reply waits until the world lets it pass.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot;

use super::Bug;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leg {
    Request,
    Reply,
}

/// One message between a process and the store.
#[derive(Debug)]
pub(super) struct Passage {
    pub(super) process: u64,
    pub(super) leg: Leg,
    pub(super) go: oneshot::Sender<Fate>,
}

/// All messages that wait; shared by all processes.
#[derive(Debug, Clone, Default)]
pub(super) struct Network(Arc<Mutex<Vec<Passage>>>);

impl Network {
    pub(super) fn take(&self) -> Vec<Passage> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// The store as one process sees it.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) inner: Arc<InMemory>,
    pub(super) network: Network,
    pub(super) process: u64,
    pub(super) bug: Option<Bug>,
}

impl Disk {
    async fn pass(&self, leg: Leg) -> Result<()> {
        let (go, told) = oneshot::channel();
        self.network.0.lock().unwrap().push(Passage { process: self.process, leg, go });
        match told.await {
            Ok(Fate::Passes) => Ok(()),
            Ok(Fate::Lost) => Err(Error::Generic { store: "simulated", source: "connection reset".into() }),
            // Its process is dead: nothing comes after.
            Err(_) => std::future::pending().await,
        }
    }

    /// A log whose nonce check is gone takes every taken name for its own append.
    async fn settle(&self, location: &Path, mode: &PutMode, result: Result<PutResult>) -> Result<PutResult> {
        let taken = matches!(result, Err(Error::AlreadyExists { .. })) && matches!(mode, PutMode::Create);
        if taken && self.bug == Some(Bug::NoNonceCheck) && in_log(location) {
            return self.pretend().await;
        }
        result
    }

    /// The answer to a put that took place, elsewhere.
    async fn pretend(&self) -> Result<PutResult> {
        self.inner.put(&Path::from("pretended"), PutPayload::default()).await
    }
}

fn in_log(location: &Path) -> bool {
    location.as_ref().starts_with("meta/log/")
}

impl fmt::Display for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("simulated store")
    }
}

#[async_trait]
impl ObjectStore for Disk {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.pass(Leg::Request).await?;
        let (mode, empty) = (options.mode.clone(), payload.content_length() == 0);
        let result = if empty && self.bug == Some(Bug::FreedNames) && in_log(location) {
            self.inner.delete(location).await?;
            self.pretend().await
        } else {
            self.inner.put_opts(location, payload, options).await
        };
        self.pass(Leg::Reply).await?;
        self.settle(location, &mode, result).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.pass(Leg::Request).await?;
        let result = self.inner.get_opts(location, options).await;
        self.pass(Leg::Reply).await?;
        result
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (disk, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let passed = disk.pass(Leg::Request).await;
            let listed: Vec<_> = disk.inner.list(prefix.as_ref()).collect().await;
            let passed = match passed {
                Ok(()) => disk.pass(Leg::Reply).await,
                lost => lost,
            };
            match passed {
                Ok(()) => stream::iter(listed).boxed(),
                Err(error) => stream::once(async { Err(error) }).boxed(),
            }
        };
        stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
