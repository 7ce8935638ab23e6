//! Connections cannot starve others.

use foil_proto::v1::artifacts_client::ArtifactsClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;
use crate::rpc::Limits;

/// A client's HTTP/2 preface with an empty settings frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn list(address: SocketAddr) {
    let mut client = JobsClient::connect(format!("http://{address}")).await.unwrap();
    client.list(v1::ListJobsRequest::default()).await.unwrap();
}

/// True if the coordinator closes the connection soon.
async fn ends(mut socket: TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(Duration::from_secs(20), socket.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_block_nobody_and_are_closed() {
    let limits = Limits { connections: 8, first_request: Duration::from_secs(2), ..Limits::default() };
    let coordinator = Coordinator::start_within(&Store::in_memory(), limits).await;
    let mut silent = Vec::new();
    for number in 0..100 {
        // Connecting may fail if the connection is already closed.
        let Ok(mut socket) = TcpStream::connect(coordinator.address).await else { continue };
        if number % 2 == 0 {
            let _ = socket.write_all(PREFACE).await;
        }
        silent.push(socket);
        if number % 10 == 0 {
            list(coordinator.address).await;
        }
    }
    list(coordinator.address).await;
    for socket in silent {
        assert!(ends(socket).await, "it stays open forever");
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_is_disconnected() {
    let store = Store::in_memory();
    let limits = Limits { unread: Duration::from_secs(2), ..Limits::default() };
    let coordinator = Coordinator::start_within(&store, limits).await;
    let object = store.put_object("jobs/j/x", vec![7; 32 << 20].into()).await.unwrap();
    let slow =
        Channel::from_shared(format!("http://{}", coordinator.address)).unwrap().connect().await.unwrap();
    let mut slow = ArtifactsClient::new(slow).max_decoding_message_size(2 << 20);
    let request = v1::GetRequest { key: object.key, ..Default::default() };
    let mut stream = slow.get(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let end = timeout(Duration::from_secs(20), async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                end => break end.map(drop),
            }
        }
    });
    end.await.expect("an end").expect_err("the connection was closed");
    coordinator.stop().await;
}

#[tokio::test]
async fn statuses_are_short_and_have_the_right_codes() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut client = coordinator.jobs().await;
    let id = "坏".repeat(100_000);
    for status in [
        client.get(v1::GetJobRequest { id: id.clone() }).await.unwrap_err(),
        client.cancel(v1::CancelJobRequest { id: id.clone() }).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().len() < 1200);
    }
    let mut wrong = spec(&[]);
    wrong.name = "x".repeat(200_000);
    let request = v1::SubmitRequest { spec: Some(wrong), request_id: "r".into(), dry_run: true };
    let status = client.submit(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().len() <= 1200);

    let large = client.get(v1::GetJobRequest { id: "x".repeat(5 << 20) }).await.unwrap_err();
    assert_eq!(large.code(), Code::ResourceExhausted, "{large:?}");
    let mut grpc = tonic::client::Grpc::new(coordinator.channel().await);
    grpc.ready().await.unwrap();
    let path = "/foil.v1.Jobs/Get".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<pbjson_types::Timestamp, v1::Job>::default();
    // A timestamp has a number in field 1, where a GetJobRequest has a string, so it cannot be decoded.
    let message = pbjson_types::Timestamp { seconds: 7, nanos: 0 };
    let status = grpc.unary(tonic::Request::new(message), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    coordinator.stop().await;
}

#[tokio::test]
async fn every_service_reports_its_health() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut health = HealthClient::new(coordinator.channel().await);
    for service in
        ["", "foil.v1.Jobs", "foil.v1.Workers", "foil.v1.Artifacts", "grpc.reflection.v1.ServerReflection"]
    {
        health.check(HealthCheckRequest { service: service.into() }).await.expect(service);
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn services_and_messages_are_found_by_reflection() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut client = ServerReflectionClient::new(coordinator.channel().await);
    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("foil.v1.JobSpec".into()),
    ];
    let asked =
        asked.map(|request| ServerReflectionRequest { message_request: Some(request), ..Default::default() });
    let answers = client.server_reflection_info(tokio_stream::iter(asked)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let [MessageResponse::ListServicesResponse(services), MessageResponse::FileDescriptorResponse(files)] =
        answers.as_slice()
    else {
        panic!("{answers:?}");
    };
    for name in ["foil.v1.Jobs", "foil.v1.Artifacts", "foil.v1.Workers"] {
        assert!(services.service.iter().any(|service| service.name == name), "{services:?}");
    }
    assert!(!files.file_descriptor_proto.is_empty());
    coordinator.stop().await;
}
