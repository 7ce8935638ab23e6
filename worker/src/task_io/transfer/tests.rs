use std::pin::Pin;
use std::time::Duration;

use foil_common::rpc::{DATA_BYTES, connect};
use foil_proto::v1;
use foil_proto::v1::artifacts_server::{Artifacts, ArtifactsServer};
use foil_proto::v1::put_request::Part;
use foil_proto::v1::rank_message::Message;
use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// Longer than the interval between two reports.
const PAUSE: Duration = Duration::from_millis(300);

/// A store that sends and receives objects slowly, one message at a time.
struct SlowStore {
    body: Vec<u8>,
}

impl SlowStore {
    fn object(&self) -> v1::Object {
        Digest::of(&self.body).object("jobs/j/data/rows")
    }
}

#[tonic::async_trait]
impl Artifacts for SlowStore {
    type GetStream = Pin<Box<dyn Stream<Item = Result<v1::GetResponse, Status>> + Send>>;

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let pieces: Vec<Vec<u8>> = self.body.chunks(DATA_BYTES).map(<[u8]>::to_vec).collect();
        let object = self.object();
        let messages = futures::stream::iter(pieces).then(move |data| {
            let object = Some(object.clone());
            async {
                tokio::time::sleep(PAUSE).await;
                Ok(v1::GetResponse { object, data: data.into(), ..Default::default() })
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn put(
        &self,
        request: Request<Streaming<v1::PutRequest>>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let mut parts = request.into_inner();
        while let Some(part) = parts.message().await? {
            if matches!(part.part, Some(Part::Data(_))) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(Response::new(v1::PutResponse { object: Some(self.object()) }))
    }

    async fn begin_upload(
        &self,
        _: Request<v1::PutBegin>,
    ) -> Result<Response<v1::BeginUploadResponse>, Status> {
        Ok(Response::new(v1::BeginUploadResponse::default()))
    }

    async fn finish_upload(
        &self,
        _: Request<v1::FinishUploadRequest>,
    ) -> Result<Response<v1::FinishUploadResponse>, Status> {
        Err(Status::unimplemented("not used here"))
    }

    async fn stat(&self, _: Request<v1::StatRequest>) -> Result<Response<v1::Object>, Status> {
        Err(Status::unimplemented("not used here"))
    }
}

async fn slow(bytes: usize) -> (Transfer, Object, UnboundedReceiver<v1::RankMessage>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = connect(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let slow = SlowStore { body: vec![7; bytes] };
    let object = slow.object().into();
    let server = tonic::transport::Server::builder().add_service(ArtifactsServer::new(slow));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let (messages, received) = unbounded_channel();
    let writer = Writer::rank("j", 1, "s", "secret");
    let transfer = Transfer::new(Handle::current(), channel, writer, Reporter::new(messages));
    (transfer, object, received)
}

/// The counts reported in `unit`.
fn reported(received: &mut UnboundedReceiver<v1::RankMessage>, unit: &str) -> Vec<u64> {
    let mut counts = Vec::new();
    while let Ok(message) = received.try_recv() {
        match message.message {
            Some(Message::Progress(progress)) if progress.unit == unit => counts.push(progress.done),
            other => panic!("{other:?}"),
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_download_is_reported_as_it_moves() {
    let (transfer, object, mut received) = slow(4 * DATA_BYTES).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows");
    let download = move || transfer.download(&object, &file);
    tokio::task::spawn_blocking(download).await.unwrap().unwrap();
    let counts = reported(&mut received, "bytes downloaded");
    assert!(counts.len() >= 4 && counts.is_sorted_by(|a, b| a < b), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_is_reported_as_it_moves() {
    // Exceeds a connection's flow-control window.
    let (transfer, object, mut received) = slow(16 * DATA_BYTES).await;
    let upload = move || transfer.upload(&object.key, vec![7; 16 * DATA_BYTES]);
    tokio::task::spawn_blocking(upload).await.unwrap().unwrap();
    let counts = reported(&mut received, "bytes uploaded");
    assert!(counts.len() >= 4 && counts.is_sorted_by(|a, b| a < b), "{counts:?}");
}
