//! Streams of callers whose credentials are revoked while the streams are open.

use foil_proto::v1::artifacts_client::ArtifactsClient;
use tonic::Streaming;

use super::site::Site;
use super::*;
use crate::auth::Role;
use crate::cluster::LinkView;
use crate::driver::core::Core;

/// Size of an object, most of which cannot be sent before it is read.
const LARGE: usize = 32 << 20;

/// The status with which a stream ends, within a while.
async fn end_of<T>(mut stream: Streaming<T>) -> Status {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => break status,
            }
        }
    };
    timeout(Duration::from_secs(20), end).await.expect("the stream ends")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_streams_of_a_token_end_when_it_is_taken_away_and_no_others() {
    let site = Site::start().await;
    site.submit("j1", "vision", "vision-submitter").await;
    site.store.put_object("jobs/j1/data/large", vec![7; LARGE].into()).await.unwrap();
    let watch = async |role: Role| {
        let request = v1::WatchJobRequest { id: "j1".into(), after_revision: 0 };
        site.jobs("vision", role).watch(request).await.unwrap().into_inner()
    };
    let (watched, mut other) = (watch(Role::Viewer).await, watch(Role::Submitter).await);
    let request = v1::LogsRequest { job_id: "j1".into(), follow: true, ..Default::default() };
    let logs = site.jobs("vision", Role::Viewer).logs(request).await.unwrap().into_inner();
    let device = v1::Device { id: "cpu:0".into(), kind: "cpu".into(), ..Default::default() };
    let hello = v1::AgentRegister {
        agent_id: "a".into(),
        devices: vec![device],
        version: VERSION.into(),
        ..Default::default()
    };
    let register = v1::AgentMessage { message: Some(agent_message::Message::Register(hello)) };
    let messages = tokio_stream::once(register).chain(tokio_stream::pending());
    let agent = WorkersClient::new(site.of("vision", Role::Agent));
    let mut commands = { agent }.agent(messages).await.unwrap().into_inner();
    assert!(commands.message().await.unwrap().is_some(), "the agent is welcomed");
    let request = v1::GetRequest { key: "jobs/j1/data/large".into(), ..Default::default() };
    let download = ArtifactsClient::new(site.of("vision", Role::Viewer)).max_decoding_message_size(2 << 20);
    let download = { download }.get(request).await.unwrap().into_inner();

    site.revoke(&["vision-viewer", "vision-agent"]);
    let (watched, logs, commands) = tokio::join!(end_of(watched), end_of(logs), end_of(commands));
    // Read only here: until then, the part already sent has filled the window.
    for status in [watched, logs, commands, end_of(download).await] {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unauthenticated, "CREDENTIALS_INVALID"),
            "{status:?}"
        );
    }
    let is_connected = || async {
        let connected =
            |core: &Core| core.cluster().agents("").any(|agent| agent.link == LinkView::Connected);
        site.coordinator.handle.survey(connected).await.unwrap()
    };
    while is_connected().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    // Another principal's stream continues to its end.
    let cancel = v1::CancelJobRequest { id: "j1".into() };
    site.jobs("vision", Role::Submitter).cancel(cancel).await.unwrap();
    while timeout(Duration::from_secs(20), other.message()).await.unwrap().unwrap().is_some() {}
    site.coordinator.stop().await;
}
