//! The conformance suite for stores, which checks the guarantees that Foil relies on.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use foil_common::storage::object::Digest;
use foil_common::storage::{Listed, Put, Store, StoreError};
use futures::TryStreamExt;

/// Checks an empty store and panics at the first violation. Leaves objects in the store.
pub async fn check_store(store: &Store) {
    assert!(store.list("").await.is_err(), "no key is empty");
    store.probe().await.expect("the store keeps the first of two that create a key");
    assert!(store.list("meta").await.expect("a listing").is_empty(), "the probe tidies up");
    create_once(store).await;
    one_of_many_creates(store).await;
    ranges(store).await;
    listings(store).await;
    deletion(store).await;
    whole_objects(store).await;
    streamed_objects(store).await;
    objects_by_url(store).await;
}

/// Only some stores have URLs; those must lead to the object, and to ranges of it.
async fn objects_by_url(store: &Store) {
    store.create("a/by-url", "0123456789").await.expect("created");
    let valid = Duration::from_secs(60);
    let Some(url) = store.read_url("a/by-url", valid).await.expect("signed") else { return };
    let request = reqwest::Client::new().get(&url).header("range", "bytes=3-");
    let response = request.send().await.expect("answered");
    assert_eq!(response.status(), reqwest::StatusCode::PARTIAL_CONTENT);
    assert_eq!(response.bytes().await.expect("read"), "3456789");

    let key = "jobs/j/upload";
    let begun = store.begin_url_upload(key, (64 << 20) + 3, valid).await.expect("begun");
    let Some(upload) = begun else { return };
    let content = Bytes::from(vec![7; (64 << 20) + 3]);
    let mut etags = Vec::new();
    for (number, url) in upload.urls.iter().enumerate() {
        let start = number * usize::try_from(upload.part_bytes).expect("a size");
        let part = content.slice(start..content.len().min(start + (64 << 20)));
        let response = reqwest::Client::new().put(url).body(part).send().await.expect("answered");
        assert!(response.status().is_success(), "{response:?}");
        let etag = response.headers().get("etag").expect("an ETag");
        etags.push(etag.to_str().expect("text").to_owned());
    }
    let digest = Digest::of(&content);
    let object = store.finish_url_upload(key, &digest, &upload.id, etags.clone(), || true).await;
    let object = object.expect("finished").expect("wanted");
    assert_eq!(object, store.stat_object(key).await.expect("it exists"));
    store.verify_object(&object).await.expect("whole");
    let again = store.finish_url_upload(key, &digest, &upload.id, etags, || true).await;
    assert_eq!(again.expect("it exists already"), Some(object));
    let other = store.begin_url_upload("jobs/j/other", 10, valid).await.expect("begun").expect("an upload");
    store.abort_url_upload("jobs/j/other", &other.id).await;
    assert!(!store.exists("jobs/j/other").await.expect("answered"));
}

async fn create_once(store: &Store) {
    assert_eq!(store.create("a/x", "one").await.expect("created"), Put::Created);
    assert_eq!(store.create("a/x", "two").await.expect("answered"), Put::Exists);
    assert_eq!(store.create("a/x", "one").await.expect("answered"), Put::Exists, "also with the same bytes");
    assert_eq!(store.get("a/x").await.expect("there"), "one");
    assert_eq!(store.create("a/empty", "").await.expect("created"), Put::Created);
    assert_eq!(
        store.create("a/empty", "two").await.expect("answered"),
        Put::Exists,
        "an empty one is there too"
    );
    assert!(store.get("a/empty").await.expect("there").is_empty());
}

/// Safety of the log: exactly one of several writers wins, and its bytes stay.
async fn one_of_many_creates(store: &Store) {
    for round in 0..8 {
        let key = format!("race/{round}");
        let racers = (0..8).map(|racer| store.create(&key, format!("racer {racer}")));
        let puts = futures::future::try_join_all(racers).await.expect("answered");
        let winners: Vec<usize> = (0..8).filter(|&racer| puts[racer] == Put::Created).collect();
        assert_eq!(winners.len(), 1, "{key}: {puts:?}");
        assert_eq!(store.get(&key).await.expect("there"), format!("racer {}", winners[0]));
    }
}

async fn ranges(store: &Store) {
    assert_eq!(store.size("a/x").await.expect("there"), 3);
    for (range, expected) in [(0..3, "one"), (1..3, "ne"), (1..2, "n"), (2..9, "e")] {
        assert_eq!(store.get_range("a/x", range).await.expect("a range"), expected);
    }
    for (offset, rest) in [(0, "one"), (2, "e"), (3, ""), (9, "")] {
        let (size, stream) = store.stream("a/x", offset).await.expect("a stream");
        let parts: Vec<_> = stream.try_collect().await.expect("its bytes");
        assert_eq!((size, parts.concat()), (3, rest.as_bytes().to_vec()), "from {offset}");
    }
    let (size, stream) = store.stream("a/empty", 0).await.expect("a stream");
    assert_eq!((size, stream.try_collect::<Vec<_>>().await.expect("its bytes").len()), (0, 0));
}

/// Listings are sorted, consist of whole parts, and are complete. Stores list a thousand keys per page.
async fn listings(store: &Store) {
    store.create("a/b/y", "").await.expect("created");
    store.create("ab/z", "z").await.expect("created");
    let listed = |key: &str, size| Listed { key: key.to_owned(), size };
    let below = store.list("a").await.expect("a listing");
    assert_eq!(below, [listed("a/b/y", 0), listed("a/empty", 0), listed("a/x", 3)]);
    assert!(store.list("nothing").await.expect("a listing").is_empty());

    let names: Vec<String> = (0..1100).map(|number| format!("many/{number:05}")).collect();
    for some in names.chunks(50) {
        let created = some.iter().map(|name| store.create(name, "1"));
        futures::future::try_join_all(created).await.expect("created");
    }
    let many = store.list("many").await.expect("a listing");
    let found: Vec<&str> = many.iter().map(|one| one.key.as_str()).collect();
    assert_eq!(found, names, "all of them, in order");
}

async fn deletion(store: &Store) {
    store.delete("a/x").await.expect("deleted");
    store.delete("a/x").await.expect("a missing one is fine");
    assert!(matches!(store.get("a/x").await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.size("a/x").await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.get_range("a/x", 0..1).await, Err(StoreError::NotFound { .. })));
    assert!(!store.exists("a/x").await.expect("answered"));
    assert_eq!(store.create("a/x", "again").await.expect("created"), Put::Created);
    assert_eq!(store.get("a/x").await.expect("there"), "again", "read after write");
}

async fn whole_objects(store: &Store) {
    const KEY: &str = "objects/whole";
    let object = store.put_object(KEY, "first".into()).await.expect("written");
    assert_eq!(store.stat_object(KEY).await.expect("there"), object);
    store.put_object(KEY, "first".into()).await.expect("the same again is fine");
    assert!(matches!(store.put_object(KEY, "other".into()).await, Err(StoreError::Conflict { .. })));
    // A writer that died left incomplete bytes, which are overwritten.
    store.delete(&format!("{KEY}.b3")).await.expect("deleted");
    assert!(matches!(store.stat_object(KEY).await, Err(StoreError::NotFound { .. })));
    let object = store.put_object(KEY, "second".into()).await.expect("written over what was left");
    assert_eq!(store.read_object(&object).await.expect("there"), "second");
}

/// Multipart objects: invisible before the end, invisible if aborted, and complete if finished.
async fn streamed_objects(store: &Store) {
    const MIB: usize = 1 << 20;
    let mut text = String::new();
    while text.len() < 17 * MIB {
        writeln!(text, "line {}", text.len()).expect("a string takes all");
    }
    let bytes = bytes::Bytes::from(text);
    let digest = Digest::of(&bytes);
    let mut given_up = store.write_object("objects/given-up", digest.clone()).await.expect("begun");
    given_up.write(bytes.slice(..9 * MIB)).await.expect("taken");
    given_up.abandon().await;
    assert!(!store.exists("objects/given-up").await.expect("answered"));

    let mut writer = store.write_object("objects/streamed", digest).await.expect("begun");
    for start in (0..bytes.len()).step_by(MIB) {
        writer.write(bytes.slice(start..bytes.len().min(start + MIB))).await.expect("taken");
    }
    assert!(!store.exists("objects/streamed").await.expect("answered"), "not before it is whole");
    let object = writer.finish().await.expect("finished");
    assert_eq!(store.read_object(&object).await.expect("there"), bytes);
    let (_, rest) = store.stream_object("objects/streamed", 8 * MIB as u64 - 7).await.expect("a stream");
    let rest: Vec<_> = rest.try_collect().await.expect("its bytes");
    assert_eq!(rest.concat(), bytes[8 * MIB - 7..], "over the seam of two parts");
}
