//! Reads and writes in the store itself, by URL.

use foil_common::rpc::artifacts::{DirectAccess, download_to_cache, upload_file};
use foil_common::storage::Urls;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer, Url};
use object_store::{MultipartId, PutPayload, PutResult};
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
    /// Takes parts, but does not make an object of them.
    Incomplete,
    /// Signs no URL.
    Unsigned,
}

/// An HTTP server of a store's objects, and the signer of its URLs.
#[derive(Debug, Clone)]
struct Bucket {
    backend: Arc<InMemory>,
    answer: Answer,
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    /// Number of uploads that were begun and not removed or completed.
    open: Arc<AtomicUsize>,
}

fn refusal() -> object_store::Error {
    object_store::Error::Generic { store: "bucket", source: "no".into() }
}

#[tonic::async_trait]
impl MultipartStore for Bucket {
    async fn create_multipart(&self, path: &Path) -> object_store::Result<MultipartId> {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.backend.create_multipart(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part: usize,
        data: PutPayload,
    ) -> object_store::Result<PartId> {
        self.backend.put_part(path, id, part, data).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        if matches!(self.answer, Answer::Incomplete) {
            return Err(refusal());
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.backend.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> object_store::Result<()> {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.backend.abort_multipart(path, id).await
    }
}

#[tonic::async_trait]
impl Signer for Bucket {
    async fn signed_url(&self, method: Method, path: &Path, _: Duration) -> object_store::Result<Url> {
        assert_eq!(method, Method::GET);
        Ok(Url::parse(&format!("http://{}/{path}?signature=s4s", self.address)).unwrap())
    }

    async fn signed_url_opts(
        &self,
        method: Method,
        path: &Path,
        _: Duration,
        options: &SignedUrlOptions,
    ) -> object_store::Result<Url> {
        assert_eq!(method, Method::PUT);
        if matches!(self.answer, Answer::Unsigned) {
            return Err(refusal());
        }
        let url = format!("http://{}/{path}", self.address);
        Ok(Url::parse_with_params(&url, &options.extra_query).unwrap())
    }
}

impl Bucket {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bucket =
            Self { backend: Arc::default(), answer, address, requests: Arc::default(), open: Arc::default() };
        let serving = bucket.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.requests.fetch_add(1, Ordering::SeqCst);
                serving.answer(stream).await;
            }
        });
        bucket
    }

    /// The bucket as a store with URLs.
    fn store(&self) -> Store {
        let nap: foil_common::storage::Nap = |_| Box::pin(async {});
        let urls = Urls::new(Arc::new(self.clone()), Some(Arc::new(self.clone())));
        Store::over(self.backend.clone(), "bucket", nap).with_urls(urls)
    }

    async fn answer(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let (line, headers) = head.split_once("\r\n").unwrap();
        let header = |name: &str| {
            let of_line = |line: &str| {
                line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            };
            headers.lines().filter_map(of_line).find_map(|(found, value)| (found == name).then_some(value))
        };
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let url = Url::parse(&format!("http://bucket{target}")).unwrap();
        let path = Path::from(url.path().trim_start_matches('/'));
        // The peer need not wait for all that is sent.
        if method == "GET" {
            let from: usize =
                header("range").unwrap().trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
            let whole = self.store().get(path.as_ref()).await.unwrap();
            let rest = whole.slice(from..);
            let (status, sent) = match self.answer {
                Answer::Part(bytes) => ("206 Partial Content", rest.slice(..bytes)),
                Answer::Refusal => ("403 Forbidden", Bytes::new()),
                _ => ("206 Partial Content", rest.clone()),
            };
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len());
            let _ = stream.write_all(&[head.as_bytes(), &sent].concat()).await;
            return;
        }
        let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
        if let Answer::Part(bytes) = self.answer {
            let _ = stream.read_exact(&mut body[..bytes]).await;
            return;
        }
        stream.read_exact(&mut body).await.unwrap();
        let query = |name: &str| url.query_pairs().find(|(found, _)| found == name).unwrap().1.into_owned();
        let (number, id): (usize, String) = (query("partNumber").parse().unwrap(), query("uploadId"));
        let answer = match self.answer {
            Answer::Refusal => {
                "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
            }
            _ => {
                assert_eq!(header("content-md5").unwrap().len(), 24);
                self.backend.put_part(&path, &id, number - 1, body.into()).await.unwrap();
                format!(
                    "HTTP/1.1 200 OK\r\netag: \"p{number}\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
            }
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

/// The channel of a rank or of a user to a service of the bucket.
async fn channel(bucket: &Bucket, is_rank: bool) -> LeaderChannel {
    let attempt = Arc::new(AtomicU32::new(3));
    let service = ArtifactsService::new(bucket.store(), OneJob { current: attempt }, InUse::default());
    let channel = serve_with(Principal::local(), service.with_direct_transfers(Some(1 << 20))).await;
    if is_rank { channel.as_rank("s1", "s3cret") } else { channel }
}

/// Downloads an object twice as a rank would; returns its bytes, the bytes that were reported, and the number
/// of requests to the bucket.
async fn read_twice(answer: Answer, is_rank: bool) -> (Vec<Bytes>, u64, usize) {
    let bucket = Bucket::start(answer).await;
    let object = bucket.store().put_object("jobs/j1/data/model", body(3 << 20, 7)).await.unwrap();
    let channel = channel(&bucket, is_rank).await;
    let dir = tempfile::tempdir().unwrap();
    let (count, moved) = counter();
    let (direct, mut found) = (DirectAccess::default(), Vec::new());
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
        serve_with(Principal::local(), service.with_direct_transfers(Some(1))).await.as_rank("s1", "s3cret");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows");
    download_to_cache(&channel, &object, &DirectAccess::default(), &path, &unfollowed()).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), body(1000, 1));
}

/// Uploads a file as a rank with new access would; returns the object, its content, the bytes that were
/// reported, and the number of requests to the bucket.
async fn upload(
    bucket: &Bucket,
    writer: &Writer,
    size: usize,
) -> Result<(v1::Object, Bytes, u64, usize), TransferError> {
    upload_by(&DirectAccess::default(), bucket, writer, size).await
}

async fn upload_by(
    direct: &DirectAccess,
    bucket: &Bucket,
    writer: &Writer,
    size: usize,
) -> Result<(v1::Object, Bytes, u64, usize), TransferError> {
    let channel = channel(bucket, true).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let bytes = body(size, 3);
    std::fs::write(&path, &bytes).unwrap();
    let (count, moved) = counter();
    let file = (path.as_path(), &Digest::of(&bytes));
    let object = upload_file(&channel, KEY, writer, file, Some(direct), &moved).await?;
    let stored = bucket.store().read_object(&object).await.unwrap();
    assert_eq!(stored, bytes);
    Ok((object, stored, count.load(Ordering::SeqCst), bucket.requests.load(Ordering::SeqCst)))
}

#[tokio::test]
async fn a_rank_writes_a_large_object_to_the_store() {
    let bucket = Bucket::start(Answer::Whole).await;
    // Two parts.
    let size = (64 << 20) + 1000;
    let (object, _, moved, requests) = upload(&bucket, &rank("j1", 3), size).await.unwrap();
    assert_eq!((object.size, object.path.as_str(), moved, requests), (size as u64, "model", size as u64, 2));
    assert_eq!(bucket.store().stat_object(KEY).await.unwrap().blake3, object.blake3);
    // It exists now, and nothing is sent.
    let again = upload(&bucket, &rank("j1", 3), size).await.unwrap();
    assert_eq!((again.0, again.3), (object, 2));
    let stale = upload(&bucket, &rank("j1", 2), size).await.unwrap_err();
    assert!(matches!(stale, TransferError::Stale { .. }), "{stale}");
    let small = Bucket::start(Answer::Whole).await;
    assert_eq!(upload(&small, &rank("j1", 3), 1000).await.unwrap().3, 0);
}

#[tokio::test]
async fn what_the_store_does_not_take_goes_through_the_coordinator() {
    for (answer, requests) in [(Answer::Refusal, 1), (Answer::Part(100_000), 5)] {
        let bucket = Bucket::start(answer).await;
        let (object, _, moved, found) = upload(&bucket, &rank("j1", 3), 2 << 20).await.unwrap();
        assert_eq!((object.size, moved, found), (2 << 20, 2 << 20, requests), "{answer:?}");
        assert_eq!(bucket.open.load(Ordering::SeqCst), 0, "{answer:?}");
    }
}

#[tokio::test]
async fn an_upload_that_cannot_be_begun_or_finished_leaves_nothing_and_says_nothing_of_the_next() {
    for (answer, requests) in [(Answer::Unsigned, 0), (Answer::Incomplete, 1)] {
        let (bucket, direct) = (Bucket::start(answer).await, DirectAccess::default());
        for round in 1..3 {
            let (object, _, moved, found) =
                upload_by(&direct, &bucket, &rank("j1", 3), 2 << 20).await.unwrap();
            assert_eq!((object.size, moved, found), (2 << 20, 2 << 20, round * requests), "{answer:?}");
            assert_eq!(bucket.open.load(Ordering::SeqCst), 0, "{answer:?}");
            bucket.store().delete_object(KEY).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_the_announced_one_becomes_no_object() {
    let bucket = Bucket::start(Answer::Whole).await;
    let (channel, dir) = (channel(&bucket, true).await, tempfile::tempdir().unwrap());
    let path = dir.path().join("model");
    let announced = Digest::of(&body(2 << 20, 3));
    let other = body(2 << 20, 4);
    for found in [&other[..], &other[..1 << 20], &[&other[..], b"more"].concat()] {
        std::fs::write(&path, found).unwrap();
        let file = (path.as_path(), &announced);
        let direct = DirectAccess::default();
        let error =
            upload_file(&channel, KEY, &rank("j1", 3), file, Some(&direct), &unfollowed()).await.unwrap_err();
        assert!(matches!(error, TransferError::Changed { .. }), "{}: {error}", found.len());
        assert!(bucket.store().stat_object(KEY).await.is_err());
        assert_eq!(bucket.open.load(Ordering::SeqCst), 0);
    }
    std::fs::remove_file(&path).unwrap();
    let (file, direct) = ((path.as_path(), &announced), DirectAccess::default());
    let gone =
        upload_file(&channel, KEY, &rank("j1", 3), file, Some(&direct), &unfollowed()).await.unwrap_err();
    assert!(matches!(gone, TransferError::File { .. }), "{gone}");
}

#[tokio::test]
async fn an_upload_is_finished_by_its_rank_alone_and_with_its_size() {
    let bucket = Bucket::start(Answer::Whole).await;
    let mut client = ArtifactsClient::new(channel(&bucket, true).await);
    let begin = |attempt: u32, secret: &str| v1::PutBegin {
        key: KEY.into(),
        size: 2 << 20,
        blake3: "ab".repeat(32),
        job_id: "j1".into(),
        attempt,
        session_id: "s1".into(),
        secret: secret.into(),
    };
    let begun = client.begin_upload(begin(3, "s3cret")).await.unwrap().into_inner();
    assert_eq!((begun.urls.len(), begun.object), (1, None));
    let upload_id = begun.upload_id;
    bucket.backend.put_part(&Path::from(KEY), &upload_id, 0, body(1 << 20, 1).into()).await.unwrap();
    let finish = |begin: v1::PutBegin, etags: &[&str]| v1::FinishUploadRequest {
        begin: Some(begin),
        upload_id: upload_id.clone(),
        etags: etags.iter().map(|etag| (*etag).to_owned()).collect(),
    };
    let etag = "\"p1\"";
    for (request, code) in [
        (finish(begin(2, "s3cret"), &[etag]), Code::Aborted),
        (finish(begin(3, "guess"), &[etag]), Code::PermissionDenied),
        (
            finish(v1::PutBegin { job_id: String::new(), ..begin(3, "s3cret") }, &[etag]),
            Code::InvalidArgument,
        ),
        (finish(begin(3, "s3cret"), &[""]), Code::InvalidArgument),
        (v1::FinishUploadRequest::default(), Code::InvalidArgument),
        // Half of the announced size.
        (finish(begin(3, "s3cret"), &[etag]), Code::DataLoss),
    ] {
        assert_eq!(client.finish_upload(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
    assert!(bucket.store().stat_object(KEY).await.is_err());
    let removed = client.finish_upload(finish(begin(3, "s3cret"), &[])).await.unwrap().into_inner();
    assert_eq!(removed.object, None);
}
