//! Keys behind a URL.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;

/// A server that answers with the current value of `body`, over TLS if it has an acceptor, and counts its
/// answers.
async fn key_server(body: Arc<Mutex<String>>, tls: Option<TlsAcceptor>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{}/keys", listener.local_addr().unwrap().port());
    let answers = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&answers);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let text = body.lock().unwrap().clone();
            match &tls {
                None => answer(stream, &text, &counted).await,
                Some(tls) => {
                    // A client that does not trust the certificate aborts the handshake.
                    let Ok(stream) = tls.accept(stream).await else { continue };
                    answer(stream, &text, &counted).await;
                }
            }
        }
    });
    (url, answers)
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, body: &str, answers: &AtomicUsize) {
    let mut request = [0; 4096];
    if !stream.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {
        return;
    }
    answers.fetch_add(1, Ordering::SeqCst);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all((head + body).as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A CA whose certificate is written to `path`, and the TLS acceptor of a server at `localhost` with a
/// certificate that it signed.
fn private_ca(path: &Path) -> TlsAcceptor {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let signed = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&own, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.der().clone()], PrivateKeyDer::try_from(own.serialize_der()).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn start(config: &JwtConfig) -> Result<Verifier, ConfigError> {
    Verifier::start(config, &Changes::default(), &CancellationToken::new())
}

#[tokio::test]
async fn keys_of_a_private_ca_are_fetched_by_tls_and_rotate() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, other) = (directory.path().join("ca.pem"), directory.path().join("other.pem"));
    let tls = private_ca(&ca);
    private_ca(&other);
    let (old, new) = (Signer::p256(), Signer::p256());
    let body = Arc::new(Mutex::new(set(&[old.jwk("old")])));
    let (url, answers) = key_server(Arc::clone(&body), Some(tls)).await;
    let with_ca = |ca: Option<&Path>| {
        let keys_ca = ca.map(Path::to_owned);
        start(&JwtConfig { keys_ca, ..config(KeySource::Url(url.clone())) }).unwrap()
    };
    let (of_old, of_new) = (old.issue("old", &claims()), new.issue("new", &claims()));

    let verifier = with_ca(Some(&ca));
    verifier.verify(&of_old, now()).await.unwrap();
    assert!(verifier.verify(&of_new, now()).await.unwrap_err().contains("no such key"));
    *body.lock().unwrap() = set(&[new.jwk("new")]);
    verifier.rewind_fetch().await;
    verifier.verify(&of_new, now()).await.unwrap();
    assert!(
        verifier.verify(&of_old, now()).await.unwrap_err().contains("no such key"),
        "the key was withdrawn"
    );
    assert_eq!(answers.load(Ordering::SeqCst), 2);

    // Neither the system's CAs nor another private CA signed this server's certificate.
    for ca in [None, Some(&*other)] {
        assert!(with_ca(ca).verify(&of_new, now()).await.is_err(), "{ca:?}");
    }
    assert_eq!(answers.load(Ordering::SeqCst), 2, "an untrusted server gets no request");
    // A renewed CA takes effect with the next fetch.
    let verifier = with_ca(Some(&other));
    verifier.verify(&of_new, now()).await.unwrap_err();
    fs::copy(&ca, &other).unwrap();
    verifier.rewind_fetch().await;
    verifier.verify(&of_new, now()).await.unwrap();
}

#[tokio::test]
async fn a_ca_that_cannot_be_used_is_an_error_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let told = |keys: KeySource| {
        start(&JwtConfig { keys_ca: Some(path.clone()), ..config(keys) }).unwrap_err().to_string()
    };
    let url = || KeySource::Url("https://id.example.com/keys".into());
    assert!(told(url()).contains(&format!("cannot read {}", path.display())), "{}", told(url()));
    fs::write(&path, "no certificate").unwrap();
    assert!(told(url()).contains("no certificate in PEM format"), "{}", told(url()));
    fs::write(directory.path().join("jwks.json"), set(&[Signer::p256().jwk("k")])).unwrap();
    let of_file = told(KeySource::File(directory.path().join("jwks.json")));
    assert!(of_file.contains("--jwks names a file"), "{of_file}");
}

#[tokio::test]
async fn keys_behind_a_url_rotate_and_unknown_ones_cause_no_flood() {
    let (old, new) = (Signer::ed25519(), Signer::ed25519());
    let body = Arc::new(Mutex::new(set(&[old.jwk("old")])));
    let (url, answers) = key_server(Arc::clone(&body), None).await;
    let fetched = || answers.load(Ordering::SeqCst);
    let verifier = start(&config(KeySource::Url(url))).unwrap();
    assert_eq!(fetched(), 0, "no fetch before the first token");
    for _ in 0..3 {
        verifier.verify(&old.issue("old", &claims()), now()).await.unwrap();
    }
    assert_eq!(fetched(), 1);
    *body.lock().unwrap() = set(&[new.jwk("new")]);
    for number in 0..50 {
        let refused = verifier.verify(&new.issue(&format!("invented-{number}"), &claims()), now()).await;
        assert!(refused.unwrap_err().contains("no such key"));
    }
    assert_eq!(fetched(), 1, "not again so soon");
    verifier.rewind_fetch().await;
    verifier.verify(&new.issue("new", &claims()), now()).await.unwrap();
    assert_eq!(fetched(), 2);
    assert!(verifier.verify(&old.issue("old", &claims()), now()).await.is_err(), "the key was withdrawn");
    // An unreadable set of keys changes nothing.
    for broken in ["nonsense".to_owned(), "x".repeat(300 << 10)] {
        *body.lock().unwrap() = broken;
        verifier.rewind_fetch().await;
        assert!(verifier.verify(&old.issue("old", &claims()), now()).await.is_err());
        verifier.verify(&new.issue("new", &claims()), now()).await.unwrap();
    }
    assert_eq!(fetched(), 4);
}
