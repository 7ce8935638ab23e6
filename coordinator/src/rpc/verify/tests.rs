use bytes::Bytes;

use super::*;
use crate::rpc::fuzzing::take_rank_message;

const KEY: &str = "jobs/j1/phases/r00.sft/a1/model.safetensors";

fn gang(objects: Vec<v1::Object>) -> Message {
    let parameters_blake3 = "ab".repeat(32);
    Message::Gang(v1::GangResult {
        phase: "r00.sft".into(),
        attempt: 1,
        objects,
        parameters_blake3,
        ..Default::default()
    })
}

async fn stored() -> (Store, v1::Object) {
    let store = Store::in_memory();
    let object = store.put_object(KEY, Bytes::from_static(b"weights")).await.unwrap();
    (store, v1::Object { path: "model.safetensors".into(), ..object })
}

async fn found(store: &Store, message: Message) -> String {
    match parse(message) {
        Ok(report) => find_flaw(store, &report).await.unwrap().unwrap_or_default(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn an_object_counts_only_as_it_was_uploaded() {
    let (store, object) = stored().await;
    assert_eq!(found(&store, gang(vec![object.clone()])).await, "");
    let absent = v1::Object { key: format!("{KEY}x"), ..object.clone() };
    assert!(
        found(&store, gang(vec![object.clone(), v1::Object { path: "x".into(), ..absent }]))
            .await
            .contains("not in the store")
    );
    let larger = v1::Object { size: 1 << 63, ..object.clone() };
    assert!(found(&store, gang(vec![larger])).await.contains("is reported with 9223372036854775808 bytes"));
    let other = v1::Object { blake3: "0".repeat(64), ..object.clone() };
    assert!(found(&store, gang(vec![other.clone()])).await.contains("is reported with"));
    let chunk = v1::ChunkResult { object: Some(other.clone()), ..Default::default() };
    assert!(found(&store, Message::Chunk(chunk)).await.contains("is reported with"));
    let shard = v1::CheckpointShard { object: Some(other), ..Default::default() };
    assert!(found(&store, Message::Checkpoint(shard)).await.contains("is reported with"));
    // The record exists, but the bytes do not.
    store.delete(KEY).await.unwrap();
    assert!(found(&store, gang(vec![object])).await.contains("not in the store"));
}

#[tokio::test]
async fn a_malformed_report_is_a_flaw() {
    let (store, object) = stored().await;
    let with_path = |path: &str| gang(vec![v1::Object { path: path.into(), ..object.clone() }]);
    for path in ["", "../../etc/passwd", "/etc/passwd", "a//b", "a/./b", "a\nb", "a\\b", &"x".repeat(256)] {
        assert!(found(&store, with_path(path)).await.contains("is not a valid path"), "{path:?}");
    }
    assert_eq!(found(&store, with_path("adapter/adapter_model.safetensors")).await, "");
    assert!(found(&store, gang(vec![object.clone(); 2])).await.contains("twice"));
    assert!(found(&store, gang(vec![object.clone(); 5000])).await.contains("the maximum is"));
    let short = v1::Object { blake3: "zz".into(), ..object.clone() };
    assert!(found(&store, gang(vec![short])).await.contains("64 lower-case hex digits"));
    let bad_key = v1::Object { key: "../meta/log".into(), ..object };
    assert!(found(&store, gang(vec![bad_key])).await.contains("is not a key"));
    let moments = |name: String| v1::Moments { name, ..Default::default() };
    let many = v1::ChunkResult { moments: vec![moments("x".into()); 1000], ..Default::default() };
    assert!(found(&store, Message::Chunk(many)).await.contains("metrics"));
    let long = v1::ChunkResult { moments: vec![moments("x".repeat(1 << 20))], ..Default::default() };
    assert!(found(&store, Message::Chunk(long)).await.len() < 1000);
    let bins = v1::Calibration { count: vec![1; 11], ..Default::default() };
    let calibrated = v1::ChunkResult { calibration: Some(bins), ..Default::default() };
    assert!(found(&store, Message::Chunk(calibrated)).await.contains("bins"));
    for (host, port) in [("", 9), ("h\n", 9), ("h", 0), ("h", 70_000)] {
        let offer = v1::RendezvousOffer { host: host.into(), port, ..Default::default() };
        assert!(!found(&store, Message::Rendezvous(offer)).await.is_empty(), "{host:?}:{port}");
    }
}

#[test]
fn a_report_with_too_many_metrics_is_rejected_rather_than_truncated() {
    for (count, is_accepted) in [(MAX_METRICS, true), (MAX_METRICS + 1, false)] {
        let metric = |number: usize| v1::Metric { name: format!("metric {number}"), ..Default::default() };
        let metrics = (0..count).map(metric).collect();
        let step = Message::Step(v1::StepReport { metrics, ..Default::default() });
        let taken = take_rank_message(step.clone());
        assert_eq!(taken, is_accepted.then_some(step), "{count} metrics");
    }
}
