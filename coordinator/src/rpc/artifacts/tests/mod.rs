use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use foil_common::logs::{LINE_BYTES, PART_BYTES};
use foil_common::rpc::artifacts::{
    self, Moved, TransferError, Writer, digest_of_file, download_bytes, download_to_file, input_key, stat,
    unfollowed, upload_file, upload_input, upload_input_bytes,
};
use foil_common::rpc::{LeaderChannel, connect};
use foil_proto::v1::artifacts_client::ArtifactsClient;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic_types::StatusExt;

use super::*;
use crate::auth::Principal;
use crate::rpc::auth::Caller;

mod broken;
mod direct;
mod quota;
mod server;
mod tenants;

use self::server::*;

#[tokio::test]
async fn an_uploaded_object_can_be_downloaded() {
    let server = server().await;
    for size in [0, 1, DATA_BYTES, 5 << 20, (17 << 20) + 3] {
        let bytes = body(size, 1);
        let key = format!("jobs/j1/phases/p/a3/{size}");
        let object = upload_bytes(&server.channel, &key, &rank("j1", 3), bytes.clone()).await.unwrap();
        assert_eq!(Digest::from(&object), Digest::of(&bytes));
        assert_eq!(stat(&server.channel, &key).await.unwrap(), Some(object.clone()));
        assert_eq!(download_bytes(&server.channel, &object).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn files_can_be_uploaded_and_downloaded() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pairs.jsonl");
    std::fs::write(&path, body(5 << 20, 2)).unwrap();
    let object = upload_input(&server.channel, &path, &unfollowed()).await.unwrap();
    assert_eq!(
        (object.key.as_str(), object.path.as_str()),
        (input_key(&object.blake3).as_str(), "pairs.jsonl")
    );
    assert_eq!(upload_input(&server.channel, &path, &unfollowed()).await.unwrap(), object);
    let (writer, digest) = (rank("j1", 3), digest_of_file(&path).await.unwrap());
    let again =
        upload_file(&server.channel, KEY, &writer, (&path, &digest), None, &unfollowed()).await.unwrap();
    assert_eq!(again.blake3, object.blake3);
    let copy = directory.path().join("new/dir/copy.jsonl");
    download_to_file(&server.channel, &object, &copy, &unfollowed()).await.unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&path).unwrap());
    assert_eq!(std::fs::read_dir(copy.parent().unwrap()).unwrap().count(), 1);
}

#[tokio::test]
async fn every_byte_is_reported_as_it_moves() {
    const SIZE: u64 = (5 << 20) + 3;
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    std::fs::write(&path, body(SIZE as usize, 14)).unwrap();
    let (up, on_upload) = counter();
    let (writer, digest) = (rank("j1", 3), digest_of_file(&path).await.unwrap());
    let object =
        upload_file(&server.channel, KEY, &writer, (&path, &digest), None, &on_upload).await.unwrap();
    let (down, calls) = (counter(), Arc::new(AtomicUsize::new(0)));
    let (report, count) = (down.1, Arc::clone(&calls));
    let on_download: Moved = Arc::new(move |bytes| {
        count.fetch_add(1, Ordering::SeqCst);
        report(bytes);
    });
    download_to_file(&server.channel, &object, &path, &on_download).await.unwrap();
    assert_eq!((up.load(Ordering::SeqCst), down.0.load(Ordering::SeqCst)), (SIZE, SIZE));
    assert!(calls.load(Ordering::SeqCst) > 4, "progress is not reported only at the end");
}

#[tokio::test]
async fn a_download_starts_at_any_offset() {
    let server = server().await;
    let bytes = body(5 << 20, 3);
    let object = upload_input_bytes(&server.channel, bytes.clone()).await.unwrap();
    for offset in [0, 1, (3 << 20) + 7, 5 << 20] {
        let request = v1::GetRequest { key: object.key.clone(), offset, by_url: false };
        let mut stream =
            ArtifactsClient::new(server.channel.clone()).get(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert_eq!(first.object, Some(object.clone()));
        let mut rest = first.data.to_vec();
        while let Some(message) = stream.message().await.unwrap() {
            assert!(message.data.len() <= DATA_BYTES);
            rest.extend_from_slice(&message.data);
        }
        assert_eq!(rest, bytes[usize::try_from(offset).unwrap()..]);
    }
    let beyond = v1::GetRequest { key: object.key, offset: (5 << 20) + 1, by_url: false };
    let status = ArtifactsClient::new(server.channel).get(beyond).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn content_that_differs_from_the_announcement_is_rejected_and_leaves_nothing() {
    let server = server().await;
    for size in [5 << 20, 9 << 20] {
        let (announced, sent) = (body(size, 4), body(size, 5));
        let key = input_key(&Digest::of(&announced).blake3);
        let begin = begin(&key, &announced);
        let chunks = |bytes: &Bytes| bytes.chunks(DATA_BYTES).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let wrong = put_raw(&server.channel, begin.clone(), chunks(&sent)).await.unwrap_err();
        assert_eq!(wrong.code(), Code::DataLoss, "{wrong:?}");
        let short =
            put_raw(&server.channel, begin.clone(), chunks(&announced)[1..].to_vec()).await.unwrap_err();
        assert_eq!(short.code(), Code::DataLoss);
        let mut long = chunks(&announced);
        long.push(Bytes::from_static(b"x"));
        assert!(put_raw(&server.channel, begin.clone(), long).await.is_err());
        assert!(!server.store.exists(&key).await.unwrap());
        put_raw(&server.channel, begin, chunks(&announced)).await.unwrap();
    }
}

#[tokio::test]
async fn the_same_content_again_is_fine_and_other_content_is_rejected() {
    let server = server().await;
    let (rank, bytes) = (rank("j1", 3), body(5 << 20, 6));
    let first = upload_bytes(&server.channel, KEY, &rank, bytes.clone()).await.unwrap();
    assert_eq!(upload_bytes(&server.channel, KEY, &rank, bytes.clone()).await.unwrap(), first);
    let other = upload_bytes(&server.channel, KEY, &rank, body(5 << 20, 7)).await.unwrap_err();
    let TransferError::Refused { status, .. } = other else { panic!("{other}") };
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, KEY);
    assert_eq!(download_bytes(&server.channel, &first).await.unwrap(), bytes);
}

#[tokio::test]
async fn concurrent_writers_of_one_key_leave_one_complete_object() {
    let server = server().await;
    let rank = rank("j1", 3);
    let uploads = (0..6).map(|n| upload_bytes(&server.channel, KEY, &rank, body(9 << 20, n % 3)));
    let results = futures::future::join_all(uploads).await;
    let mut winners: Vec<_> = results.into_iter().flatten().collect();
    winners.dedup();
    assert_eq!(winners.len(), 1);
    download_bytes(&server.channel, &winners[0]).await.unwrap();
}

#[tokio::test]
async fn keys_are_confined() {
    let server = server().await;
    let bytes = body(10, 8);
    let client = Writer::client();
    for key in [
        "inputs/x",
        "jobs/j1/phases/p/x",
        "meta/log/00000000000000000000",
        "../x",
        "/etc/x",
        "inputs/../x",
        "",
    ] {
        let error = upload_bytes(&server.channel, key, &client, bytes.clone()).await.unwrap_err();
        let TransferError::Refused { status, .. } = error else { panic!("{key}: {error}") };
        assert_eq!(status.code(), Code::InvalidArgument, "{key}");
        assert!(status.get_details_bad_request().is_some(), "{key}");
    }
    let elsewhere = upload_bytes(&server.channel, "jobs/j2/phases/p/x", &rank("j1", 3), bytes).await;
    assert!(matches!(elsewhere, Err(TransferError::Refused { .. })));
    server.store.put_object("meta/secret", body(3, 0)).await.unwrap();
    assert_eq!(stat(&server.channel, "meta/secret").await.unwrap(), None);
}

#[tokio::test]
async fn a_stale_attempt_cannot_write() {
    let server = server().await;
    for writer in [rank("j1", 2), rank("unknown", 1)] {
        let key = if writer == rank("j1", 2) { KEY } else { "jobs/unknown/phases/p/x" };
        let error = upload_bytes(&server.channel, key, &writer, body(10, 9)).await.unwrap_err();
        assert!(matches!(error, TransferError::Stale { .. }), "{error}");
    }
    server.attempt.store(4, Ordering::SeqCst);
    let late = upload_bytes(&server.channel, KEY, &rank("j1", 3), body(10, 9)).await;
    assert!(matches!(late, Err(TransferError::Stale { .. })));
    assert!(server.store.list("jobs").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stranger_who_knows_job_and_attempt_cannot_write() {
    let server = server().await;
    for (session, secret) in [("s1", "guessed"), ("s1", ""), ("", ""), ("s2", "s3cret")] {
        let writer = Writer::rank("j1", 3, session, secret);
        assert!(!format!("{writer:?}").contains("s3cret"));
        let error = upload_bytes(&server.channel, KEY, &writer, body(10, 9)).await.unwrap_err();
        let TransferError::Refused { status, .. } = error else { panic!("{error}") };
        assert_eq!(status.code(), Code::PermissionDenied);
    }
    assert!(server.store.list("jobs").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_input_is_repaired_by_uploading_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_on(Store::open(directory.path().to_str().unwrap()).unwrap()).await;
    let bytes = body((9 << 20) + 1, 15);
    let object = upload_input_bytes(&server.channel, bytes.clone()).await.unwrap();
    let file = directory.path().join(&object.key);
    let sidecar = directory.path().join(format!("{}.b3", object.key));
    let mut flipped = bytes.to_vec();
    flipped[77] ^= 1;
    let damages: [&dyn Fn(); 5] = [
        &|| std::fs::write(&file, &flipped).unwrap(),
        &|| std::fs::write(&file, &bytes[..9 << 20]).unwrap(),
        &|| std::fs::remove_file(&file).unwrap(),
        &|| std::fs::write(&sidecar, "{").unwrap(),
        &|| std::fs::write(&sidecar, format!(r#"{{"size":1,"blake3":"{}"}}"#, "0".repeat(64))).unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        let again = upload_input_bytes(&server.channel, bytes.clone()).await.unwrap();
        assert_eq!(again, object, "damage {number}");
        assert_eq!(server.store.read_object(&object).await.unwrap(), bytes, "damage {number}");
    }
    // An intact object is not written again.
    let written = std::fs::metadata(&file).unwrap().modified().unwrap();
    upload_input_bytes(&server.channel, bytes).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written);
}

#[tokio::test]
async fn an_oversized_message_is_rejected() {
    let server = server().await;
    let bytes = body(DATA_BYTES + 1, 10);
    let begin = begin(&input_key(&Digest::of(&bytes).blake3), &bytes);
    let status = put_raw(&server.channel, begin, vec![bytes]).await.unwrap_err();
    assert!(matches!(status.code(), Code::InvalidArgument | Code::OutOfRange), "{status:?}");
}

#[tokio::test]
async fn damage_in_the_store_is_noticed_by_the_reader() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().to_str().unwrap()).unwrap();
    let object = store.put_object("inputs/x", body(100, 11)).await.unwrap();
    let mut damaged = body(100, 11).to_vec();
    damaged[50] ^= 1;
    std::fs::write(directory.path().join("inputs/x"), damaged).unwrap();
    let error = store.read_object(&object).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    let object = upload_input_bytes(&server.channel, body(100, 12)).await.unwrap();
    let wrong = v1::Object { blake3: "0".repeat(64), ..object };
    assert!(matches!(download_bytes(&server.channel, &wrong).await, Err(TransferError::Corrupt { .. })));
}

#[tokio::test]
async fn a_process_writes_its_own_log_only_and_after_its_attempt_too() {
    let server = server().await;
    let text = Bytes::from_static(b"{}\n");
    let key = |attempt: u32, rank: u32, session: &str, end: u64| {
        let process = logs::Process { attempt, rank, session: session.into() };
        logs::Part { process, start: 0, end, is_last: false }.key("j1")
    };
    // Attempt 3 is the current one.
    let own = key(2, 0, "s1", 3);
    upload_bytes(&server.channel, &own, &rank("j1", 2), text.clone()).await.unwrap();
    assert_eq!(server.store.get(&own).await.unwrap(), text);
    let large = body((PART_BYTES + LINE_BYTES) + 1, 3);
    for (key, writer, bytes, code) in [
        (key(3, 0, "s1", 3), rank("j1", 3), &text, Code::PermissionDenied),
        (key(2, 1, "s1", 3), rank("j1", 2), &text, Code::PermissionDenied),
        (key(2, 0, "s2", 3), rank("j1", 2), &text, Code::PermissionDenied),
        (own.clone(), Writer::rank("j1", 2, "s1", "guess"), &text, Code::PermissionDenied),
        (own.clone(), rank("j2", 2), &text, Code::InvalidArgument),
        (key(2, 0, "s1", 4), rank("j1", 2), &text, Code::InvalidArgument),
        (own.replace("-0000", "-00000"), rank("j1", 2), &text, Code::InvalidArgument),
        (key(2, 0, "s1", large.len() as u64), rank("j1", 2), &large, Code::InvalidArgument),
    ] {
        match upload_bytes(&server.channel, &key, &writer, bytes.clone()).await {
            Err(TransferError::Refused { status, .. }) => {
                assert_eq!(status.code(), code, "{key}: {status:?}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}
