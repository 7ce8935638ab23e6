//! OTLP over HTTP.

use std::io::Read;

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const PROTOBUF: &str = "content-type: application/x-protobuf\r\n";

/// An answer of a server.
#[derive(Debug, Clone)]
enum Answer {
    /// Status, lines of the head, body.
    Give(u16, &'static str, Vec<u8>),
    Hang,
}

/// A request that the server received.
#[derive(Debug)]
struct Received {
    /// In lower case.
    head: String,
    body: Vec<u8>,
}

impl Received {
    /// The names of the spans in it.
    fn spans(&self) -> Vec<String> {
        let request = ExportTraceServiceRequest::decode(&self.body[..]).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect()
    }
}

/// Starts a server with these answers, the last of which repeats forever; returns its address and the
/// requests it receives.
async fn server(answers: &[Answer]) -> (String, mpsc::UnboundedReceiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::unbounded_channel();
    let mut answers = answers.to_vec();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // A client that waits no longer may close a connection before its request.
            let Some(received) = receive(&mut stream).await else { continue };
            let _ = sender.send(received);
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            let Answer::Give(status, head, body) = answer else {
                tokio::spawn(async move {
                    let _held = stream;
                    std::future::pending::<()>().await;
                });
                continue;
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} Answer\r\n{head}content-length: {length}\r\nconnection: close\r\n\r\n"
            );
            // The client does not read an answer that is too large to its end.
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    });
    (url, requests)
}

async fn receive(stream: &mut TcpStream) -> Option<Received> {
    let mut received = Vec::new();
    loop {
        let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let head = String::from_utf8_lossy(&received[..end.unwrap_or(0)]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        if let Some(body) = end.map(|end| &received[end + 4..]).filter(|body| body.len() == length) {
            return Some(Received { head, body: body.to_vec() });
        }
        if stream.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    }
}

fn over_http(url: &str, more: &[(&str, &str)]) -> Collector {
    spans_to(url, &[&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], more].concat())
}

#[tokio::test]
async fn spans_arrive_as_the_specification_says() {
    for compression in ["none", "gzip"] {
        let (url, mut requests) = server(&[Answer::Give(200, PROTOBUF, Vec::new())]).await;
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2");
        let collector =
            over_http(&format!("{url}/behind"), &[headers, ("OTEL_EXPORTER_OTLP_COMPRESSION", compression)]);
        sent(collector, &["a", "b"]).await;
        let mut request = requests.recv().await.unwrap();
        let lines: Vec<&str> = request.head.lines().collect();
        assert_eq!(lines[0], "post /behind/v1/traces http/1.1");
        assert!(lines.contains(&"content-type: application/x-protobuf"), "{lines:?}");
        assert!(lines.contains(&"authorization: bearer hunter2"), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("user-agent: foil/")), "{lines:?}");
        let is_compressed = lines.contains(&"content-encoding: gzip");
        assert_eq!(is_compressed, compression == "gzip", "{lines:?}");
        if is_compressed {
            let mut plain = Vec::new();
            GzDecoder::new(&request.body[..]).read_to_end(&mut plain).unwrap();
            request.body = plain;
        }
        assert_eq!(request.spans(), ["a", "b"]);
        assert!(requests.try_recv().is_err());
    }
}

#[tokio::test]
async fn what_a_collector_does_not_take_over_http_is_counted() {
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "too old".into() };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let html = "content-type: text/html; charset=utf-8\r\n";
    let elsewhere = "location: http://127.0.0.1:1/\r\n";
    for (answer, lost, tries) in [
        (Answer::Give(200, PROTOBUF, partial), 1, 1),
        (Answer::Give(200, PROTOBUF, b"\xff".to_vec()), 2, 1),
        (Answer::Give(200, html, b"<html>".to_vec()), 2, 1),
        (Answer::Give(200, PROTOBUF, vec![0; 1 << 20]), 2, 1),
        // A server with an answer in its own form has accepted them.
        (Answer::Give(200, "content-type: application/json\r\n", b"{}".to_vec()), 0, 1),
        (Answer::Give(307, elsewhere, Vec::new()), 2, 1),
        (Answer::Give(400, PROTOBUF, Vec::new()), 2, 1),
        (Answer::Give(500, "", Vec::new()), 2, 1),
        // A try, and four more.
        (Answer::Give(503, "", Vec::new()), 2, 5),
    ] {
        let recorder = exposition::builder().unwrap().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let (url, mut requests) = server(std::slice::from_ref(&answer)).await;
        sent(over_http(&url, &[]), &["a", "b"]).await;
        let come = std::iter::from_fn(|| requests.try_recv().ok()).count();
        assert_eq!((dropped(&recorder.handle().render()), come), (lost, tries), "{answer:?}");
    }
}

#[tokio::test]
async fn a_collector_that_does_not_answer_over_http_is_given_up() {
    let recorder = exposition::builder().unwrap().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (url, _requests) = server(&[Answer::Hang]).await;
    let collector = over_http(&url, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "50")]);
    let failure = collector.send_spans(&[span("a")]).await.unwrap_err();
    assert!(failure.is_transient && failure.reason == "it did not answer in time", "{failure:?}");
    sent(collector, &["a", "b"]).await;
    assert_eq!(dropped(&recorder.handle().render()), 2);
}

#[tokio::test]
async fn a_failure_tells_the_servers_words_without_secrets() {
    let status = tonic_types::Status {
        message: "quota of\nteam at https://me:hunter2@host/ is used up".into(),
        ..Default::default()
    };
    for (answer, reason) in [
        (
            Answer::Give(403, PROTOBUF, status.encode_to_vec()),
            "it answers 403 Forbidden: quota of team at https://…@host/ is used up; check OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (
            Answer::Give(404, "content-type: text/plain\r\n", b"404 page not found\n".to_vec()),
            "it answers 404 Not Found: 404 page not found; is this the address of OTLP over HTTP?",
        ),
        (
            Answer::Give(302, "content-type: text/html\r\n", b"<html>".to_vec()),
            "it answers 302 Found, a redirection, which is not followed; give the address that it leads to",
        ),
    ] {
        let (url, _requests) = server(&[answer]).await;
        let failure = over_http(&url, &[]).send_spans(&[span("a")]).await.unwrap_err();
        assert_eq!(failure.reason, reason);
    }
    let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2,x-org=all")];
    let quoted = over_http("http://127.0.0.1:1", &headers).shown("all know of hunter2".to_owned());
    assert_eq!(quoted, "all know of …");
    let away = over_http("http://127.0.0.1:1", &[]).send_spans(&[span("a")]).await.unwrap_err();
    assert!(away.is_transient && away.reason.starts_with("it cannot be reached: "), "{away:?}");
}

#[tokio::test]
async fn a_pause_is_as_long_as_the_collector_asks_and_ends_with_the_process() {
    let take = Answer::Give(200, PROTOBUF, Vec::new());
    let later = |head| Answer::Give(429, head, Vec::new());
    let (url, mut requests) = server(&[later("retry-after: 2\r\n"), take.clone()]).await;
    let sending = tokio::spawn(async move { sent(over_http(&url, &[]), &["a"]).await });
    assert_eq!(requests.recv().await.unwrap().spans(), ["a"]);
    // Without the header, the retry comes within 20 milliseconds.
    assert!(timeout(Duration::from_secs(1), requests.recv()).await.is_err(), "too soon");
    assert_eq!(timeout(PATIENCE, requests.recv()).await.unwrap().unwrap().spans(), ["a"]);
    sending.await.unwrap();

    let (url, mut requests) = server(&[later("retry-after: 3600\r\n"), take]).await;
    let (queue, waiting) = mpsc::channel(1);
    enqueue(&queue, span("a"));
    let stop = CancellationToken::new();
    let sending = tokio::spawn(send_spans(over_http(&url, &[]), waiting, PAUSE, stop.clone()));
    assert_eq!(requests.recv().await.unwrap().spans(), ["a"]);
    stop.cancel();
    timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert_eq!(requests.recv().await.unwrap().spans(), ["a"], "one last try");
}

#[tokio::test]
async fn metrics_have_a_path_of_their_own() {
    let (url, mut requests) = server(&[Answer::Give(200, PROTOBUF, Vec::new())]).await;
    let config = config(&url, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
    let collector = Collector::new(config.metrics.unwrap(), &config.resource).unwrap();
    let page = "# TYPE foil_jobs gauge\nfoil_jobs{state=\"running\"} 1\n";
    assert_eq!(collector.send_metrics(crate::otlp::page::metrics(page, 0, 1)).await, Ok(None));
    let request = requests.recv().await.unwrap();
    assert!(request.head.starts_with("post /v1/metrics http/1.1"), "{}", request.head);
    let request = ExportMetricsServiceRequest::decode(&request.body[..]).unwrap();
    let [resource] = &request.resource_metrics[..] else { panic!("one resource") };
    assert_eq!(resource.scope_metrics[0].metrics[0].name, "foil_jobs");
}
