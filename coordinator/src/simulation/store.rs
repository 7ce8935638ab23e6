//! The object store behind a network: each request and each reply waits until the simulator delivers it.

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

use super::PlantedBug;

/// The fate of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Delivered,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Reply,
}

/// One message between a process and the store.
#[derive(Debug)]
pub(super) struct StoreMessage {
    pub(super) process: u64,
    pub(super) direction: Direction,
    pub(super) go: oneshot::Sender<Delivery>,
}

/// All messages in flight; shared by all processes.
#[derive(Debug, Clone, Default)]
pub(super) struct Network(Arc<Mutex<Vec<StoreMessage>>>);

impl Network {
    pub(super) fn take(&self) -> Vec<StoreMessage> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// The store as one process sees it.
#[derive(Debug, Clone)]
pub(super) struct SimStore {
    pub(super) inner: Arc<InMemory>,
    pub(super) network: Network,
    pub(super) process: u64,
    pub(super) bug: Option<PlantedBug>,
}

impl SimStore {
    async fn pass(&self, direction: Direction) -> Result<()> {
        let (go, told) = oneshot::channel();
        self.network.0.lock().unwrap().push(StoreMessage { process: self.process, direction, go });
        match told.await {
            Ok(Delivery::Delivered) => Ok(()),
            Ok(Delivery::Lost) => {
                Err(Error::Generic { store: "simulated", source: "connection reset".into() })
            }
            // Its process is dead.
            Err(_) => std::future::pending().await,
        }
    }

    /// Planted bug: a log without the nonce check mistakes every taken name for its own append.
    async fn settle(&self, location: &Path, mode: &PutMode, result: Result<PutResult>) -> Result<PutResult> {
        let taken = matches!(result, Err(Error::AlreadyExists { .. })) && matches!(mode, PutMode::Create);
        if taken && self.bug == Some(PlantedBug::NoNonceCheck) && in_log(location) {
            return self.pretend().await;
        }
        result
    }

    /// The result of a successful put to some other key.
    async fn pretend(&self) -> Result<PutResult> {
        self.inner.put(&Path::from("pretended"), PutPayload::default()).await
    }
}

fn in_log(location: &Path) -> bool {
    location.as_ref().starts_with("meta/log/")
}

impl fmt::Display for SimStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("simulated store")
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.pass(Direction::Request).await?;
        let (mode, empty) = (options.mode.clone(), payload.content_length() == 0);
        let result = if empty && self.bug == Some(PlantedBug::FreedNames) && in_log(location) {
            self.inner.delete(location).await?;
            self.pretend().await
        } else {
            self.inner.put_opts(location, payload, options).await
        };
        self.pass(Direction::Reply).await?;
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
        self.pass(Direction::Request).await?;
        let result = self.inner.get_opts(location, options).await;
        self.pass(Direction::Reply).await?;
        result
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let passed = store.pass(Direction::Request).await;
            let listed: Vec<_> = store.inner.list(prefix.as_ref()).collect().await;
            let passed = match passed {
                Ok(()) => store.pass(Direction::Reply).await,
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
