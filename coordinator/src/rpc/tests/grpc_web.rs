//! gRPC-Web as used by browsers, over HTTP/1.1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prost::Message;
use reqwest::{Client, Response};

use super::site::Site;
use super::*;
use crate::auth::Role;
use crate::job::Submitted;

const PROTO: &str = "application/grpc-web+proto";

/// A message in the frame used by requests.
fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes].concat()
}

/// The messages and the trailers of a response.
fn unframed(mut body: &[u8]) -> (Vec<Vec<u8>>, Vec<(String, String)>) {
    let (mut messages, mut trailers) = (Vec::new(), Vec::new());
    while !body.is_empty() {
        let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
        let (flags, content) = (body[0], &body[5..5 + length]);
        match flags {
            0 => messages.push(content.to_vec()),
            0x80 => {
                let lines = String::from_utf8(content.to_vec()).unwrap();
                let pair =
                    |line: &str| line.split_once(':').map(|(a, b)| (a.to_owned(), b.trim().to_owned()));
                trailers.extend(lines.lines().filter_map(pair));
            }
            other => panic!("a frame of the kind {other}"),
        }
        body = &body[5 + length..];
    }
    (messages, trailers)
}

async fn post(address: SocketAddr, path: &str, body: Vec<u8>, headers: &[(&str, &str)]) -> Response {
    let client = Client::builder().http1_only().build().unwrap();
    let mut request = client.post(format!("http://{address}{path}")).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    timeout(Duration::from_secs(30), request.send()).await.expect("an answer").unwrap()
}

fn value<'a>(trailers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    trailers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_makes_unary_calls_and_reads_streams_and_errors() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let job = Submitted { request_id: "r".into(), ..submitted(&[]) };
    coordinator.handle.submit(JOB.into(), job).await.unwrap();
    let address = coordinator.address;
    let origin = format!("http://{address}");
    let kind = [("content-type", PROTO), ("x-grpc-web", "1"), ("origin", origin.as_str())];

    let get = framed(&v1::GetJobRequest { id: JOB.into() });
    let answer = post(address, "/foil.v1.Jobs/Get", get, &kind).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (200, &PROTO.parse().unwrap()));
    assert!(answer.headers().contains_key("foil-version"));
    let (messages, trailers) = unframed(&answer.bytes().await.unwrap());
    assert_eq!(v1::Job::decode(messages[0].as_slice()).unwrap().id, JOB);
    assert_eq!((messages.len(), value(&trailers, "grpc-status")), (1, Some("0")));

    let watch = framed(&v1::WatchJobRequest { id: JOB.into(), after_revision: 0 });
    let mut answer = post(address, "/foil.v1.Jobs/Watch", watch, &kind).await;
    let first = timeout(Duration::from_secs(30), answer.chunk()).await.unwrap().unwrap().unwrap();
    assert!(first.len() > 5 && first[0] == 0, "an event comes before the job has ended");
    let mut rest = first.to_vec();
    let cancel = framed(&v1::CancelJobRequest { id: JOB.into() });
    post(address, "/foil.v1.Jobs/Cancel", cancel, &kind).await;
    while let Some(more) = timeout(Duration::from_secs(30), answer.chunk()).await.unwrap().unwrap() {
        rest.extend_from_slice(&more);
    }
    let (events, trailers) = unframed(&rest);
    let last = v1::JobEvent::decode(events.last().unwrap().as_slice()).unwrap();
    let Some(job_event::Event::Job(job)) = last.event else { panic!("the last event is the job's end") };
    assert_eq!((job.state(), value(&trailers, "grpc-status")), (v1::JobState::Cancelled, Some("0")));

    let missing = framed(&v1::GetJobRequest { id: "none".into() });
    let answer = post(address, "/foil.v1.Jobs/Get", missing, &kind).await;
    // An error without a message is sent in the headers alone.
    let code = answer.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
    let details = answer.headers().get("grpc-status-details-bin").cloned();
    assert_eq!((answer.status().as_u16(), code.as_deref()), (200, Some("5")));
    let details = STANDARD_NO_PAD.decode(details.unwrap().as_bytes()).unwrap();
    assert!(String::from_utf8_lossy(&details).contains("JOB_NOT_FOUND"));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gates_of_grpc_hold_for_browsers() {
    let site = Site::start().await;
    site.submit("own", "vision", "vision-submitter").await;
    site.submit("foreign", "speech", "speech-submitter").await;
    let address = site.coordinator.address;
    let bearer = |role: Role| format!("Bearer {}", site.token("vision", role));
    let call = async |path: &str, id: &str, token: Option<String>| {
        let mut headers = vec![("content-type", PROTO)];
        headers.extend(token.as_deref().map(|token| ("authorization", token)));
        let answer = post(address, path, framed(&v1::GetJobRequest { id: id.into() }), &headers).await;
        let code = answer.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
        let (_, trailers) = unframed(&answer.bytes().await.unwrap());
        code.or_else(|| value(&trailers, "grpc-status").map(str::to_owned)).unwrap()
    };
    const GET: &str = "/foil.v1.Jobs/Get";
    let code = |code: Code| (code as i32).to_string();
    assert_eq!(call(GET, "own", None).await, code(Code::Unauthenticated));
    assert_eq!(call(GET, "own", Some("Bearer foil_0".into())).await, code(Code::Unauthenticated));
    assert_eq!(call(GET, "own", Some(bearer(Role::Viewer))).await, code(Code::Ok));
    assert_eq!(call(GET, "foreign", Some(bearer(Role::Viewer))).await, code(Code::NotFound));
    assert_eq!(
        call("/foil.v1.Jobs/Cancel", "own", Some(bearer(Role::Viewer))).await,
        code(Code::PermissionDenied)
    );
    assert_eq!(
        call("/foil.v1.Jobs/Steal", "own", Some(bearer(Role::Admin))).await,
        code(Code::Unimplemented)
    );
    assert_eq!(
        call("/foil.v1.Results/GetTimeline", "own", Some(bearer(Role::Agent))).await,
        code(Code::PermissionDenied)
    );
    site.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sites_and_other_encodings_are_refused() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let address = coordinator.address;
    let own = format!("http://{address}");
    let list = || framed(&v1::ListJobsRequest::default());
    for (kind, origin, expected) in [
        (PROTO, own.as_str(), 200),
        ("application/grpc-web", own.as_str(), 200),
        (PROTO, "https://evil.example", 403),
        (PROTO, "null", 403),
        // Requests that a form on another site can send without a preflight.
        ("text/plain", "https://evil.example", 403),
        ("application/grpc", "https://evil.example", 403),
        ("application/grpc-web-text", own.as_str(), 415),
        ("text/plain", own.as_str(), 415),
    ] {
        let headers = [("content-type", kind), ("origin", origin)];
        let answer = post(address, "/foil.v1.Jobs/List", list(), &headers).await;
        assert_eq!(answer.status().as_u16(), expected, "{kind} from {origin}");
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
    }
    // A public DNS name that points at this machine.
    let rebound = [
        ("content-type", PROTO),
        ("host", "rebound.evil.example"),
        ("origin", "http://rebound.evil.example"),
    ];
    let answer = post(address, "/foil.v1.Jobs/List", list(), &rebound).await;
    assert_eq!(answer.status().as_u16(), 403);
    assert!(answer.text().await.unwrap().contains("--advertise"));
    // The preflight that a browser sends before it lets another site's page call.
    let client = Client::builder().http1_only().build().unwrap();
    let asked = client.request(reqwest::Method::OPTIONS, format!("{own}/foil.v1.Jobs/List"));
    let asked =
        asked.header("origin", "https://evil.example").header("access-control-request-method", "POST");
    let answer = asked.send().await.unwrap();
    assert!(!answer.status().is_success() && !answer.headers().contains_key("access-control-allow-origin"));
    coordinator.stop().await;
}
