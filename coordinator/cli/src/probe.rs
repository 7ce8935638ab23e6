//! `foil probe`: whether a coordinator or an agent on this machine answers, for health checks of containers,
//! whose images contain no other client.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use url::{Host, Url};

/// Within the 30 seconds that container engines give to a health check.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of an answer; health pages have one line.
const MAX_ANSWER: u64 = 16 << 10;

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 if the answer is 200; 1 for another answer or none within 5 seconds; 2 for wrong usage.

Examples:
  foil probe https://127.0.0.1:7070/readyz     a coordinator with TLS
  foil probe http://127.0.0.1:9100/healthz     an agent with --metrics-listen 127.0.0.1:9100")]
pub(crate) struct ProbeArgs {
    /// Page on this machine, http:// or https://, /healthz or /readyz. Its certificate is not verified, as
    /// with Kubernetes probes: no certificate names 127.0.0.1, and no secret is sent.
    #[arg(value_name = "URL", default_value = "https://127.0.0.1:7070/healthz", value_parser = Page::parse)]
    page: Page,
}

/// A page of a server on this machine.
#[derive(Debug, Clone)]
struct Page {
    address: SocketAddr,
    uses_tls: bool,
    path: String,
}

impl Page {
    fn parse(text: &str) -> Result<Self, String> {
        let url =
            Url::parse(text).map_err(|error| format!("{error}; write http://127.0.0.1:9100/healthz"))?;
        let uses_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(format!("found {other}://, expected http:// or https://")),
        };
        let ip: IpAddr = match url.host() {
            Some(Host::Domain("localhost")) => [127, 0, 0, 1].into(),
            Some(Host::Ipv4(ip)) => ip.into(),
            Some(Host::Ipv6(ip)) => ip.into(),
            _ => return Err("expected an address of this machine, such as 127.0.0.1".to_owned()),
        };
        if !ip.is_loopback() {
            return Err(format!(
                "{ip} may be another machine's, whose certificate would have to be verified"
            ));
        }
        let port = url.port_or_known_default().unwrap_or_default();
        Ok(Self { address: (ip, port).into(), uses_tls, path: url.path().to_owned() })
    }
}

pub(crate) async fn probe(args: &ProbeArgs) -> Result<()> {
    let page = &args.page;
    let what = || format!("{} on {}", page.path, page.address);
    let answer = tokio::time::timeout(TIMEOUT, fetch(page)).await;
    let answer = answer.map_err(|_| anyhow!("no answer within {} seconds", TIMEOUT.as_secs()));
    let answer = answer.flatten().with_context(what)?;
    check(&answer).with_context(what)
}

/// The server's answer, up to [`MAX_ANSWER`] bytes.
async fn fetch(page: &Page) -> Result<String> {
    let stream = TcpStream::connect(page.address).await.context("cannot connect")?;
    if !page.uses_tls {
        return exchange(stream, page).await;
    }
    let name = ServerName::IpAddress(page.address.ip().into());
    let stream = connector()?.connect(name, stream).await.context("the TLS handshake failed")?;
    exchange(stream, page).await
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, page: &Page) -> Result<String> {
    let Page { address, path, .. } = page;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("cannot send the request")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await.context("the answer was interrupted")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Fails with the server's message unless its status is 200.
fn check(answer: &str) -> Result<()> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').collect::<Vec<_>>()[..] {
        [version, "200", ..] if version.starts_with("HTTP/1.") => Ok(()),
        [version, code, ..] if version.starts_with("HTTP/1.") => bail!("status {code}: {}", body.trim()),
        _ => bail!("the answer is not HTTP/1.1; if it is a server with TLS, write https://"),
    }
}

fn connector() -> Result<TlsConnector> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// Accepts every certificate: the peer is this machine, and no secret is sent.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Probes a server that gives this answer to the first connection and closes it.
    async fn probe_answer(answer: &str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let args = ProbeArgs { page: Page::parse(&url).unwrap() };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(stream);
            String::from_utf8_lossy(&request[..read]).into_owned()
        };
        let (probed, request) = tokio::join!(probe(&args), serve);
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        probed.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn only_200_is_healthy_and_other_answers_are_told() {
        probe_answer("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").await.unwrap();
        let unready =
            probe_answer("HTTP/1.1 503 Service Unavailable\r\n\r\nno leader yet\n").await.unwrap_err();
        assert!(
            unready.contains("/readyz on 127.0.0.1:") && unready.ends_with("status 503: no leader yet"),
            "{unready}"
        );
        for strange in ["", "\x15\x03\x03\0\x02\x02\x46", "SSH-2.0-x\r\n", "200 OK\r\n\r\n"] {
            let error = probe_answer(strange).await.unwrap_err();
            assert!(error.contains("not HTTP/1.1"), "{strange:?}: {error}");
        }
    }

    #[test]
    fn only_this_machine_is_probed() {
        for own in ["http://127.0.0.1:9100/healthz", "https://localhost:7070/readyz", "http://[::1]:9100/"] {
            Page::parse(own).unwrap();
        }
        for other in ["http://10.0.0.7:9100/healthz", "https://example.com/healthz", "https://0.0.0.0:7070/"]
        {
            let error = Page::parse(other).unwrap_err();
            assert!(error.contains("machine"), "{other}: {error}");
        }
        assert!(Page::parse("ftp://127.0.0.1/x").unwrap_err().contains("expected http:// or https://"));
        assert!(Page::parse("127.0.0.1:70").is_err());
    }
}
