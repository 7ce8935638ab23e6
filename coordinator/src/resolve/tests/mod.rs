use std::path::{Path, PathBuf};

use bytes::Bytes;
use foil_common::data::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow, Row, read};
use foil_common::rpc::artifacts::input_key;
use foil_common::storage::object::Digest;

use super::*;

mod data;
mod models;
mod overlaps;
mod sources;

fn letters_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs/letters")
}

async fn upload(store: &Store, bytes: impl Into<Bytes>) -> v1::Object {
    let bytes = bytes.into();
    store.put_object(&input_key(&Digest::of(&bytes).blake3), bytes).await.unwrap()
}

/// Uploads a file and returns its reference.
async fn input(store: &Store, name: &str, bytes: impl Into<Bytes>) -> String {
    format!("input:{}:{name}", upload(store, bytes).await.blake3)
}

/// Uploads a model directory the way a client does and returns its reference.
async fn model(store: &Store, files: &[(&str, Bytes)]) -> String {
    let mut listing = v1::Artifact::default();
    for (path, bytes) in files {
        let object = upload(store, bytes.clone()).await;
        listing.objects.push(v1::Object { path: (*path).to_owned(), ..object });
    }
    format!("model:{}:letters", upload(store, serde_json::to_vec(&listing).unwrap()).await.blake3)
}

fn letters_files() -> Vec<(&'static str, Bytes)> {
    ["config.json", "tokenizer.json", "tokenizer_config.json"]
        .into_iter()
        .map(|name| (name, std::fs::read(letters_directory().join(name)).unwrap().into()))
        .collect()
}

/// A job on the letters model with data from files.
async fn file_job(store: &Store) -> v1::JobSpec {
    let prompts: Vec<String> =
        ["abcde", "bcdef", "cdefg", "defgh", "acegh", "bdfha", "aceba", "hgfed", "hgfec", "hgfeb"]
            .iter()
            .map(|prompt| format!("{{\"prompt\":\"{prompt}\"}}"))
            .collect();
    let pairs: Vec<String> = ["abc", "bcd", "cde", "def", "efg"]
        .iter()
        .map(|prompt| format!("{{\"prompt\":\"{prompt}\",\"chosen\":\"{prompt}!!\",\"rejected\":\"w\"}}"))
        .collect();
    let golden: Vec<String> =
        ["abcd", "bcde", "cdef", "defg", "efgh", "aceg", "bdfh", "gfed", "gfec", "gfeb"]
            .iter()
            .map(|prompt| format!("{{\"prompt\":\"{prompt}\",\"golden\":\"{prompt}!!\"}}"))
            .collect();
    let sft = vec![r#"{"prompt":"ab","answer":"ab!"}"#.to_owned()];
    let mut data = v1::DataSpec::default();
    for (list, name, lines) in [
        (&mut data.prompts, "prompts.jsonl", prompts),
        (&mut data.preferences, "pairs.jsonl", pairs),
        (&mut data.golden, "golden.jsonl", golden),
        (&mut data.sft, "sft.jsonl", sft),
    ] {
        list.push(input(store, name, lines.join("\n")).await);
    }
    let policy = v1::PolicySpec { model: model(store, &letters_files()).await, init: "random".into() };
    v1::JobSpec {
        name: "test".into(),
        policy: Some(policy),
        text: Some(v1::TextSpec { max_length: Some(24), ..Default::default() }),
        sampling: Some(v1::SamplingSpec { max_new_tokens: Some(16), ..Default::default() }),
        data: Some(data),
        ..Default::default()
    }
}

fn request(wire: v1::JobSpec, write: bool) -> Request {
    Request::new("j", &spec::Job::try_from(wire).unwrap(), &ModelArtifacts::new(), write)
}

async fn resolved(wire: v1::JobSpec, store: &Store) -> Result<Resolved, ResolveError> {
    request(wire, true).run(store).await
}

async fn failure(wire: v1::JobSpec, store: &Store) -> String {
    resolved(wire, store).await.unwrap_err().to_string()
}

async fn rows<T: Row>(resolved: &Resolved, name: &str, store: &Store) -> Vec<T> {
    let dataset = resolved.datasets.iter().find(|dataset| dataset.name == name).unwrap();
    let object = dataset.object.as_ref().unwrap();
    assert!(object.key.starts_with("jobs/j"), "{}", object.key);
    assert!(object.key.ends_with(&format!("/data/{name}.jsonl")), "{}", object.key);
    let rows: Vec<T> = read(name, &store.read_object(object).await.unwrap()).unwrap();
    assert_eq!(rows.len() as u64, dataset.rows);
    rows
}

#[tokio::test]
async fn files_become_sets_with_parts_held_out() {
    let store = Store::in_memory();
    let resolved = resolved(file_job(&store).await, &store).await.unwrap();
    let names: Vec<_> =
        resolved.summaries.iter().map(|summary| (summary.name.as_str(), summary.rows)).collect();
    let expected = [
        ("sft", 1),
        ("preferences", 4),
        ("evaluation_preferences", 1),
        ("golden", 9),
        ("golden_holdout", 1),
        ("prompts", 9),
        ("evaluation_prompts", 1),
    ];
    assert_eq!(names, expected);
    assert_eq!(resolved.policy.name, "policy@input");
    assert_eq!(resolved.policy.objects.len(), 3);
    assert_eq!(rows::<DemonstrationRow>(&resolved, "sft", &store).await[0].answer, "ab!");
    let golden: Vec<GoldenRow> = rows(&resolved, "golden", &store).await;
    let held: Vec<GoldenRow> = rows(&resolved, "golden_holdout", &store).await;
    assert!(golden.iter().all(|row| row.prompt != held[0].prompt));
    rows::<PairRow>(&resolved, "evaluation_preferences", &store).await;
    rows::<PromptRow>(&resolved, "evaluation_prompts", &store).await;
}

#[tokio::test]
async fn a_jobs_uploads_are_those_of_its_tenant() {
    let store = Store::in_memory();
    let wire = file_job(&store).await;
    let vision: crate::tenant::Tenant = "vision".parse().unwrap();
    let of_vision = async || request(wire.clone(), true).of_tenant(&vision).run(&store).await;
    let missing = of_vision().await.unwrap_err();
    assert!(matches!(missing, ResolveError::Missing { .. }), "{missing}");
    for listed in store.list("inputs").await.unwrap() {
        let bytes = store.get(&listed.key).await.unwrap();
        store.create(&listed.key.replacen("inputs/", "inputs/vision/", 1), bytes).await.unwrap();
    }
    let resolved = of_vision().await.unwrap();
    assert!(resolved.policy.objects.iter().all(|object| object.key.starts_with("inputs/vision/")));
    let default = request(wire, true).run(&store).await.unwrap();
    assert_eq!(default.datasets, resolved.datasets);
    assert!(default.policy.objects.iter().all(|object| object.key.matches('/').count() == 1));
}

#[tokio::test]
async fn a_list_of_files_names_uploads_of_its_own_tenant_only() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let foreign = store.put_object("inputs/vision/secret", Bytes::from_static(b"weights")).await.unwrap();
    for (key, blake3) in [
        ("inputs/vision/secret".to_owned(), foreign.blake3.clone()),
        ("inputs/vision/secret".to_owned(), "vision/secret".to_owned()),
        ("jobs/j1/phases/p/model".to_owned(), foreign.blake3.clone()),
    ] {
        let mut listing = v1::Artifact::default();
        for (path, bytes) in letters_files() {
            let object = upload(&store, bytes).await;
            listing.objects.push(v1::Object { path: path.into(), ..object });
        }
        listing.objects.push(v1::Object { key, blake3, path: "model.safetensors".into(), ..foreign.clone() });
        let hash = upload(&store, serde_json::to_vec(&listing).unwrap()).await.blake3;
        wire.policy.as_mut().unwrap().model = format!("model:{hash}:letters");
        let refused = resolved(wire.clone(), &store).await.unwrap_err();
        assert!(matches!(refused, ResolveError::Missing { .. }), "{refused}");
    }
}

#[tokio::test]
async fn the_same_job_gives_the_same_bytes() {
    let store = Store::in_memory();
    let wire = file_job(&store).await;
    let first = resolved(wire.clone(), &store).await.unwrap();
    assert_eq!(resolved(wire.clone(), &store).await.unwrap(), first);
    let other = v1::JobSpec { seed: Some(5), ..wire };
    let described = request(other, false).run(&store).await.unwrap();
    assert_eq!(described.datasets.len(), first.datasets.len());
    assert!(described.datasets.iter().all(|set| set.object.is_none()));
    assert_eq!(described.summaries, first.summaries);
}

#[tokio::test]
async fn the_generator_fills_every_set() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.evaluation = Some(v1::EvaluationSpec { gold: "letters".into(), ..Default::default() });
    wire.data = Some(v1::DataSpec {
        generator: Some(v1::GeneratorSpec {
            name: "letters".into(),
            sft: Some(40),
            golden: Some(30),
            prompts: Some(20),
            evaluation: Some(10),
        }),
        gold_preferences: Some(v1::GoldPreferencesSpec {
            pairs: Some(25),
            evaluation_pairs: Some(15),
            beta: None,
        }),
        ..Default::default()
    });
    let small = resolved(wire.clone(), &store).await.unwrap();
    let counts: Vec<_> = small.datasets.iter().map(|set| (set.name.as_str(), set.rows)).collect();
    let expected = [
        ("sft", 40),
        ("gold_preference_prompts", 25),
        ("gold_preference_evaluation_prompts", 15),
        ("golden", 27),
        ("golden_holdout", 3),
        ("prompts", 20),
        ("evaluation_prompts", 10),
    ];
    assert_eq!(counts, expected);

    // More prompts than there are sets of letters.
    wire.data.as_mut().unwrap().generator.as_mut().unwrap().prompts = Some(2_000);
    let large = request(wire, false).run(&store).await.unwrap();
    assert!(large.warnings.iter().any(|warning| warning.contains("56 sets")), "{:?}", large.warnings);
}

#[tokio::test]
async fn warnings_about_the_specification_are_passed_on() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let wgan = v1::reward_step_spec::Loss::Wgan(v1::WganSpec::default());
    wire.reward_step.get_or_insert_default().loss = Some(wgan);
    let resolved = resolved(wire, &store).await.unwrap();
    let warned = resolved.warnings.iter().any(|warning| warning.contains("weight_clip"));
    assert!(warned, "{:?}", resolved.warnings);
}

#[tokio::test]
async fn a_missing_upload_is_named() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.data.as_mut().unwrap().golden = vec![format!("input:{}:golden.jsonl", "0".repeat(64))];
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.golden") && message.contains("submit the job again"), "{message}");
    wire.data.as_mut().unwrap().golden = vec!["golden.jsonl".to_owned()];
    let message = failure(wire, &store).await;
    assert!(message.contains("foil submit"), "{message}");
}
