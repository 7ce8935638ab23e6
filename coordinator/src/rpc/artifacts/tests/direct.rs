//! Reads from the store itself, by URL.

use foil_common::rpc::artifacts::{DirectReads, download_to_cache};
use object_store::path::Path;
use object_store::signer::{Method, Signer, Url};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// What the store's own server does with a request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Whole,
    /// Closes the connection after so many bytes.
    Part(usize),
    Refusal,
}

/// An HTTP server of a store's objects, and the signer of its URLs.
#[derive(Debug, Clone)]
struct Bucket {
    store: Store,
    answer: Answer,
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Signer for Bucket {
    async fn signed_url(&self, method: Method, path: &Path, _: Duration) -> object_store::Result<Url> {
        assert_eq!(method, Method::GET);
        Ok(Url::parse(&format!("http://{}/{path}?signature=s4s", self.address)).unwrap())
    }
}

impl Bucket {
    async fn start(store: Store, answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bucket = Self { store, answer, address, requests: Arc::default() };
        let serving = bucket.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.requests.fetch_add(1, Ordering::SeqCst);
                serving.answer(stream).await;
            }
        });
        bucket
    }

    async fn answer(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let request = String::from_utf8(request).unwrap().to_lowercase();
        let key = request.strip_prefix("get /").unwrap().split('?').next().unwrap();
        let from = request.split("range: bytes=").nth(1).unwrap().split('-').next().unwrap();
        let whole = self.store.get(key).await.unwrap();
        let rest = whole.slice(from.parse::<usize>().unwrap()..);
        let (status, sent) = match self.answer {
            Answer::Whole => ("206 Partial Content", rest.clone()),
            Answer::Part(bytes) => ("206 Partial Content", rest.slice(..bytes)),
            Answer::Refusal => ("403 Forbidden", Bytes::new()),
        };
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len());
        // The reader of a refusal need not wait for its body.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&sent).await;
    }
}

/// Downloads an object twice as a rank would; returns its bytes, the bytes that were reported, and the number
/// of requests to the bucket.
async fn read_twice(answer: Answer, is_rank: bool) -> (Vec<Bytes>, u64, usize) {
    let store = Store::in_memory();
    let bucket = Bucket::start(store.clone(), answer).await;
    let object = store.put_object("jobs/j1/data/model", body(3 << 20, 7)).await.unwrap();
    let signing = store.with_signer(Arc::new(bucket.clone()));
    let (attempt, principal) = (Arc::new(AtomicU32::new(3)), Principal::local());
    let service = ArtifactsService::new(signing, OneJob { current: attempt }, InUse::default());
    let channel = serve_with(principal, service.with_direct_reads(Some(1 << 20))).await;
    let channel = if is_rank { channel.as_rank("s1", "s3cret") } else { channel };
    let dir = tempfile::tempdir().unwrap();
    let (count, moved) = counter();
    let (direct, mut found) = (DirectReads::default(), Vec::new());
    for name in ["a", "b"] {
        let path = dir.path().join(name);
        download_to_cache(&channel, &object, &direct, &path, &moved).await.unwrap();
        found.push(Bytes::from(std::fs::read(path).unwrap()));
    }
    (found, count.load(Ordering::SeqCst), bucket.requests.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_rank_reads_a_large_object_from_the_store() {
    let expected = vec![body(3 << 20, 7); 2];
    assert_eq!(read_twice(Answer::Whole, true).await, (expected.clone(), 6 << 20, 2));
    assert_eq!(read_twice(Answer::Whole, false).await, (expected, 6 << 20, 0), "no URL for others");
}

#[tokio::test]
async fn what_the_store_does_not_give_comes_through_the_coordinator() {
    let expected = vec![body(3 << 20, 7); 2];
    for answer in [Answer::Refusal, Answer::Part(0), Answer::Part(1_000_000)] {
        assert_eq!(read_twice(answer, true).await, (expected.clone(), 6 << 20, 1), "{answer:?}");
    }
}

#[tokio::test]
async fn small_objects_and_stores_without_urls_are_read_as_ever() {
    let server = server().await;
    let object = server.store.put_object("jobs/j1/data/rows", body(1000, 1)).await.unwrap();
    let service = ArtifactsService::new(
        server.store.clone(),
        OneJob { current: Arc::clone(&server.attempt) },
        InUse::default(),
    );
    let channel =
        serve_with(Principal::local(), service.with_direct_reads(Some(1))).await.as_rank("s1", "s3cret");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows");
    download_to_cache(&channel, &object, &DirectReads::default(), &path, &unfollowed()).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), body(1000, 1));
}
