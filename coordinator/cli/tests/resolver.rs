//! Reading of inputs in child processes of the real program.

#![allow(clippy::disallowed_methods, reason = "tests own their clock")]
// A test that cannot set itself up has failed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foil_common::rpc::artifacts::input_key;
use foil_common::spec;
use foil_common::storage::Store;
use foil_common::storage::object::Digest;
use foil_coordinator::resolve::{ChildConfig, ModelArtifacts, Request, Resolver};
use foil_proto::v1;

const MEMORY: u64 = 4 << 30;
const PATIENCE: Duration = Duration::from_secs(120);

fn resolver(store: &Path, memory: u64, deadline: Duration) -> Resolver {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_foil"));
    Resolver::in_children(ChildConfig { program, store: store.display().to_string(), memory, deadline })
}

async fn upload(store: &Store, bytes: Bytes) -> v1::Object {
    store.put_object(&input_key(&Digest::of(&bytes).blake3), bytes).await.unwrap()
}

/// The letters job with `rows` prompts, with its model uploaded.
async fn request(store: &Store, rows: u32) -> Request {
    let letters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/jobs/letters");
    let mut listing = v1::Artifact::default();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let object = upload(store, fs::read(letters.join(name)).unwrap().into()).await;
        listing.objects.push(v1::Object { path: name.to_owned(), ..object });
    }
    let listing = upload(store, serde_json::to_vec(&listing).unwrap().into()).await;
    let generator = v1::GeneratorSpec {
        name: "letters".into(),
        sft: Some(20),
        golden: Some(20),
        prompts: Some(rows),
        evaluation: Some(20),
    };
    let wire = v1::JobSpec {
        name: "apart".into(),
        policy: Some(v1::PolicySpec {
            model: format!("model:{}:letters", listing.blake3),
            init: "random".into(),
        }),
        text: Some(v1::TextSpec { max_length: Some(24), ..Default::default() }),
        sampling: Some(v1::SamplingSpec { max_new_tokens: Some(16), ..Default::default() }),
        reward_step: Some(v1::RewardStepSpec { human_weight: Some(0.0), ..Default::default() }),
        data: Some(v1::DataSpec { generator: Some(generator), ..Default::default() }),
        ..Default::default()
    };
    Request::new("j", &spec::Job::try_from(wire).unwrap(), &ModelArtifacts::new(), true)
}

/// Child processes of this test that are not reaped yet.
fn children(of: &str) -> usize {
    let mut found = 0;
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        found += usize::from(String::from_utf8_lossy(&arguments).contains(of));
    }
    found
}

/// Each test gives its children a distinct memory limit, by which they are found.
async fn wait_for_children(memory: u64, count: usize) {
    let started = Instant::now();
    while children(&format!("--memory\0{memory}\0")) != count {
        assert!(
            started.elapsed() < PATIENCE,
            "there are not {count} children with a limit of {memory} bytes"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_child_resolves_like_this_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    let request = request(&store, 30).await;
    let here = Resolver::here(store.clone()).resolve(request.clone()).await.unwrap();
    let apart = resolver(dir.path(), MEMORY, PATIENCE).resolve(request.clone()).await.unwrap();
    assert_eq!(apart, here);
    assert!(apart.datasets.iter().all(|set| set.object.is_some()));

    let mut lost = request;
    lost.spec.policy.as_mut().unwrap().model = format!("model:{}:lost", "0".repeat(64));
    let error = resolver(dir.path(), MEMORY, PATIENCE).resolve(lost).await.unwrap_err();
    assert_eq!(error.field(), Some("policy.model"));
    assert!(error.to_string().contains("was not uploaded"), "{error}");
}

#[tokio::test]
async fn a_child_that_exceeds_its_memory_limit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    let mut request = request(&store, 1_000_000).await;
    let generator = request.spec.data.as_mut().and_then(|data| data.generator.as_mut()).unwrap();
    (generator.sft, generator.golden, generator.evaluation) =
        (Some(1_000_000), Some(1_000_000), Some(1_000_000));
    // Enough for the program itself, not for four million rows.
    let error = resolver(dir.path(), 256 << 20, PATIENCE).resolve(request).await.unwrap_err().to_string();
    assert!(error.contains("256 MiB of memory"), "{error}");
}

#[tokio::test]
async fn a_child_ends_with_its_deadline_and_with_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    let request = request(&store, 1_000_000).await;
    let error = resolver(dir.path(), MEMORY + 1, Duration::from_secs(1)).resolve(request.clone()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("more than the 1s"), "{error}");
    wait_for_children(MEMORY + 1, 0).await;

    let resolver = resolver(dir.path(), MEMORY + 2, PATIENCE);
    let call = tokio::spawn(async move { resolver.resolve(request).await });
    wait_for_children(MEMORY + 2, 1).await;
    call.abort();
    wait_for_children(MEMORY + 2, 0).await;
}

#[tokio::test]
async fn more_submissions_than_may_wait_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    let request = request(&store, 1_000_000).await;
    let resolver = resolver(dir.path(), MEMORY + 3, Duration::from_millis(300));
    let calls = (0..20).map(|_| resolver.resolve(request.clone()));
    let results = futures::future::join_all(calls).await;
    let told = |text: &str| {
        results.iter().filter(|result| result.as_ref().is_err_and(|e| e.to_string().contains(text))).count()
    };
    assert_eq!((told("waiting to be read"), told("300ms")), (2, 18));
}
