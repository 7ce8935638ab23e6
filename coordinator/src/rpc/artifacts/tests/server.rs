//! The service and its clients in one process.

use super::*;

pub(super) const KEY: &str = "jobs/j1/phases/r01.policy.train/a3/model.safetensors";

pub(super) struct TestServer {
    pub(super) store: Store,
    pub(super) attempt: Arc<AtomicU32>,
    pub(super) address: SocketAddr,
    pub(super) channel: LeaderChannel,
}

/// A job with the process s1 as a rank.
pub(super) struct OneJob {
    pub(super) current: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl AttemptCheck for OneJob {
    fn current_attempt(&self, job: &str) -> Option<u32> {
        (job == "j1").then(|| self.current.load(Ordering::SeqCst))
    }

    fn is_rank(&self, job: &str, session: &str, secret: &str) -> bool {
        (job, session, secret) == ("j1", "s1", "s3cret")
    }

    async fn log_writer(&self, job: &str, session: &str, secret: &str) -> Option<(u32, u32)> {
        // Access to the logs of the attempt before the current one.
        self.is_rank(job, session, secret).then_some((2, 0))
    }

    fn rank_job(&self, session: &str, secret: &str) -> Option<String> {
        self.is_rank("j1", session, secret).then(|| "j1".to_owned())
    }

    async fn tenant_of(&self, job: &str) -> Result<Option<String>, Status> {
        Ok((job == "j1").then(|| "vision".to_owned()))
    }

    async fn starts_from(&self, job: &str, key: &str) -> Result<bool, Status> {
        Ok(job == "j1" && key == "jobs/j0/phases/p/model")
    }
}

pub(super) fn rank(job: &str, attempt: u32) -> Writer {
    Writer::rank(job, attempt, "s1", "s3cret")
}

/// The service on a loopback port; job j1 of the tenant vision runs attempt 3.
pub(super) async fn server() -> TestServer {
    server_on(Store::in_memory()).await
}

pub(super) async fn server_on(store: Store) -> TestServer {
    server_for(Principal::local(), store).await
}

/// The same service for calls by this principal.
pub(super) async fn server_for(principal: Principal, store: Store) -> TestServer {
    let attempt = Arc::new(AtomicU32::new(3));
    let current = Arc::clone(&attempt);
    let channel = serve(principal, store.clone(), OneJob { current }).await;
    let address = channel.url().trim_start_matches("http://").parse().unwrap();
    TestServer { store, attempt, address, channel }
}

/// A channel to the service for calls by this principal.
pub(super) async fn serve(principal: Principal, store: Store, attempts: impl AttemptCheck) -> LeaderChannel {
    serve_with(principal, ArtifactsService::new(store, attempts, InUse::default())).await
}

pub(super) async fn serve_with(principal: Principal, service: ArtifactsService) -> LeaderChannel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let caller = Caller::new(principal);
    let identify = move |mut request: Request<()>| {
        request.extensions_mut().insert(caller.clone());
        Ok(request)
    };
    let service = InterceptedService::new(service.into_server(), identify);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    connect(&format!("http://{address}")).unwrap()
}

pub(super) async fn upload_bytes(
    channel: &LeaderChannel,
    key: &str,
    writer: &Writer,
    bytes: Bytes,
) -> Result<v1::Object, TransferError> {
    artifacts::upload_bytes(channel, key, writer, bytes, &unfollowed()).await
}

/// A counter of bytes, and a callback that adds to it.
pub(super) fn counter() -> (Arc<AtomicU64>, Moved) {
    let count = Arc::new(AtomicU64::new(0));
    let adds = Arc::clone(&count);
    let moved = Arc::new(move |bytes| {
        adds.fetch_add(bytes, Ordering::SeqCst);
    });
    (count, moved)
}

pub(super) fn body(bytes: usize, seed: u8) -> Bytes {
    let mut body = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut body);
    body.into()
}

/// Sends a raw upload, with messages that the client library would not send.
pub(super) async fn put_raw(
    channel: &LeaderChannel,
    begin: v1::PutBegin,
    data: Vec<Bytes>,
) -> Result<v1::Object, Status> {
    let first = v1::PutRequest { part: Some(Part::Begin(begin)) };
    let rest = data.into_iter().map(|data| v1::PutRequest { part: Some(Part::Data(data)) });
    let parts: Vec<_> = std::iter::once(first).chain(rest).collect();
    let response = ArtifactsClient::new(channel.clone()).put(futures::stream::iter(parts)).await?;
    Ok(response.into_inner().object.unwrap())
}

pub(super) fn begin(key: &str, bytes: &Bytes) -> v1::PutBegin {
    let Digest { size, blake3 } = Digest::of(bytes);
    v1::PutBegin { key: key.to_owned(), size, blake3, ..Default::default() }
}
