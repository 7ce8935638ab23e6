//! A coordinator for tests: a real gRPC server whose decisions are made by the test.

use std::pin::Pin;

use foil_proto::v1;
use foil_proto::v1::workers_server::{Workers, WorkersServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// The test's end of a stream.
pub(crate) struct Peer<Sent, Received> {
    pub(crate) received: mpsc::UnboundedReceiver<Received>,
    /// Dropping it ends the stream.
    pub(crate) commands: mpsc::UnboundedSender<Result<Sent, Status>>,
}

pub(crate) type AgentPeer = Peer<v1::AgentCommand, v1::AgentMessage>;
pub(crate) type RankPeer = Peer<v1::RankCommand, v1::RankMessage>;

pub(crate) struct FakeCoordinator {
    pub(crate) url: String,
    pub(crate) agents: mpsc::UnboundedReceiver<AgentPeer>,
    pub(crate) ranks: mpsc::UnboundedReceiver<RankPeer>,
    server: tokio::task::JoinHandle<()>,
}

impl FakeCoordinator {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (agents_in, agents) = mpsc::unbounded_channel();
        let (ranks_in, ranks) = mpsc::unbounded_channel();
        let service = WorkersServer::new(Service { agents: agents_in, ranks: ranks_in });
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { url, agents, ranks, server }
    }
}

impl Drop for FakeCoordinator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    agents: mpsc::UnboundedSender<AgentPeer>,
    ranks: mpsc::UnboundedSender<RankPeer>,
}

type Commands<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn join<Sent: Send + 'static, Received: Send + 'static>(
    mut stream: Streaming<Received>,
    peers: &mpsc::UnboundedSender<Peer<Sent, Received>>,
) -> Response<Commands<Sent>> {
    let (forward, received) = mpsc::unbounded_channel();
    let (commands, sent) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let _ = forward.send(message);
        }
    });
    peers.send(Peer { received, commands }).unwrap_or_else(|_| panic!("the test is over"));
    Response::new(Box::pin(UnboundedReceiverStream::new(sent)))
}

#[tonic::async_trait]
impl Workers for Service {
    type AgentStream = Commands<v1::AgentCommand>;
    type RankStream = Commands<v1::RankCommand>;

    async fn agent(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::AgentStream>, Status> {
        Ok(join(request.into_inner(), &self.agents))
    }

    async fn rank(
        &self,
        request: Request<Streaming<v1::RankMessage>>,
    ) -> Result<Response<Self::RankStream>, Status> {
        Ok(join(request.into_inner(), &self.ranks))
    }
}
