use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

mod failing;

fn record(method: &str) -> Record {
    Record { principal: "ada".into(), ..Record::new(SystemTime::UNIX_EPOCH, method, Outcome::Ok) }
}

fn methods(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| line["method"].as_str().unwrap().to_owned()).collect()
}

/// The methods of all records in the store, in order.
async fn stored(store: &Store) -> Vec<String> {
    let mut keys: Vec<String> =
        store.list("audit").await.unwrap().into_iter().map(|listed| listed.key).collect();
    keys.sort();
    let mut found = Vec::new();
    for key in keys {
        found.extend(methods(std::str::from_utf8(&store.get(&key).await.unwrap()).unwrap()));
    }
    found
}

#[tokio::test]
async fn records_reach_the_file_and_the_store_and_the_file_may_be_moved() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Store::in_memory());
    let path = dir.path().join("audit.jsonl");
    let (log, task) = AuditLog::start(Some(&AuditFile::Path(path.clone())), store.clone()).unwrap();
    let wait = async |path: &Path, count: usize| {
        while fs::read_to_string(path).unwrap_or_default().lines().count() < count {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    log.record(record("a"), SystemTime::UNIX_EPOCH);
    wait(&path, 1).await;
    let moved = dir.path().join("audit.1");
    fs::rename(&path, &moved).unwrap();
    log.record(record("b"), SystemTime::UNIX_EPOCH);
    drop(log);
    task.await.unwrap();
    assert_eq!(methods(&fs::read_to_string(&moved).unwrap()), ["a"]);
    assert_eq!(methods(&fs::read_to_string(&path).unwrap()), ["b"]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(stored(&store).await, ["a", "b"]);
}

#[tokio::test]
async fn many_records_become_several_objects_of_bounded_size() {
    let store = Store::in_memory();
    let (log, task) = AuditLog::start(None, store.clone()).unwrap();
    let sent: Vec<String> = (0..4000).map(|number| format!("/{number}/{}", "x".repeat(100))).collect();
    for method in &sent {
        log.record(record(method), SystemTime::UNIX_EPOCH);
    }
    drop(log);
    task.await.unwrap();
    assert_eq!(stored(&store).await, sent);
    let objects = store.list("audit").await.unwrap();
    assert!(objects.len() > 1 && objects.iter().all(|object| object.size < 300 << 10), "{objects:?}");
}

#[tokio::test]
async fn a_file_that_others_read_or_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = |path: &Path| {
        AuditLog::start(Some(&AuditFile::Path(path.to_owned())), Store::in_memory()).unwrap_err().to_string()
    };
    assert!(refused(&path).contains("chmod 600"), "{}", refused(&path));
    assert!(refused(&dir.path().join("no/audit")).contains("cannot append to the audit log"));
}

#[test]
fn a_record_is_one_line_whatever_it_holds() {
    let odd =
        Record { resource: "a\nb\u{1b}[2J\"".into(), reason: "R".into(), suppressed: 3, ..record("/m") };
    let line = String::from_utf8(odd.line()).unwrap();
    assert_eq!(line.matches('\n').count(), 1);
    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(read["resource"], "a\nb\u{1b}[2J\"");
    assert_eq!(
        (read["time"].as_str(), read["outcome"].as_str()),
        (Some("1970-01-01T00:00:00.000Z"), Some("OK"))
    );
    assert!(read.get("tenant").is_none() && read["suppressed"] == 3);
}
