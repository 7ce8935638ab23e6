//! A small HTTP/1.1 server that answers with a function, as a stand-in for services of other programs.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Certificate;

/// A request. The names of headers are in lower case.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    pub method: String,
    /// The path, including the query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The status with which a handler makes its client wait forever.
pub const NO_ANSWER: u16 = 0;

type Handler = dyn Fn(HttpRequest) -> (u16, String) + Send + Sync;

/// A server in this process that ends when it is dropped.
pub struct HttpServer {
    address: SocketAddr,
    _runtime: Runtime,
}

impl HttpServer {
    /// Starts a server that answers with a status and a JSON body, over TLS if there is a certificate.
    pub fn start(
        certificate: Option<&Certificate>,
        handler: impl Fn(HttpRequest) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let address = listener.local_addr().expect("an address");
        let tls = certificate.map(acceptor);
        let handler: Arc<Handler> = Arc::new(handler);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, handler) = (tls.clone(), Arc::clone(&handler));
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &*handler).await,
                            Err(error) => eprintln!("a TLS handshake failed: {error}"),
                        },
                        None => serve(stream, &*handler).await,
                    }
                });
            }
        });
        Self { address, _runtime: runtime }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn acceptor(files: &Certificate) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(&files.certificate).expect("a file of certificates");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate with its key");
    TlsAcceptor::from(Arc::new(config))
}

/// Serves the requests of one connection.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, handler: &Handler) {
    let mut received = Vec::new();
    while let Some(request) = next(&mut stream, &mut received).await {
        let (status, body) = handler(request);
        if status == NO_ANSWER {
            std::future::pending::<()>().await;
        }
        let head = format!(
            "HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answer = [head.as_bytes(), body.as_bytes()].concat();
        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// The next request; `None` once the client has closed the connection.
async fn next(stream: &mut (impl AsyncRead + Unpin), received: &mut Vec<u8>) -> Option<HttpRequest> {
    const END: &[u8] = b"\r\n\r\n";
    let head = loop {
        if let Some(at) = received.windows(END.len()).position(|window| window == END) {
            break at;
        }
        if stream.read_buf(received).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(received[..head].to_vec()).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers: Vec<(String, String)> = lines.filter_map(header).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let whole = head + END.len() + length;
    while received.len() < whole {
        if stream.read_buf(received).await.ok()? == 0 {
            return None;
        }
    }
    let body = received[head + END.len()..whole].to_vec();
    received.drain(..whole);
    Some(HttpRequest { method, path, headers, body })
}
