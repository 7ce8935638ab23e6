use std::path::{Path, PathBuf};

use bytes::Bytes;
use foil_common::data::rows::{DemonstrationRow, GoldenRow, PairRow, Prompt, PromptRow, Row, read};
use foil_common::model::HeadKind;
use foil_common::rpc::artifacts::input_key;
use foil_common::storage::object::Digest;
use foil_common::test_models;

use super::*;

fn letters_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs/letters")
}

async fn upload(store: &Store, bytes: impl Into<Bytes>) -> v1::Object {
    let bytes = bytes.into();
    store.put_object(&input_key(&Digest::of(&bytes).blake3), bytes).await.unwrap()
}

/// Uploads a file and gives its reference.
async fn input(store: &Store, name: &str, bytes: impl Into<Bytes>) -> String {
    format!("input:{}:{name}", upload(store, bytes).await.blake3)
}

/// Uploads a model directory as a client does and gives its reference.
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
    Request::new("j", &spec::Job::try_from(wire).unwrap(), &Made::new(), write)
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
    assert_eq!(object.key, format!("jobs/j/data/{name}.jsonl"));
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
async fn bad_rows_are_counted_shown_and_bounded() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let mut lines = vec![r#"{"prompt":"ab"}"#.to_owned(); 1];
    lines.extend((0..30).map(|n| {
        format!(
            "{{\"prompt\":\"{}\"}}",
            "abcdefgh".chars().cycle().skip(n % 8).take(n / 8 + 2).collect::<String>()
        )
    }));
    lines[3] = r#"{"prompt":7}"#.to_owned();
    let data = wire.data.as_mut().unwrap();
    data.prompts = vec![input(&store, "prompts.jsonl", lines.join("\n")).await];
    let some = resolved(wire.clone(), &store).await.unwrap();
    let summary = some.summaries.iter().find(|summary| summary.name == "prompts").unwrap();
    assert_eq!(summary.bad_rows, 1);
    assert!(summary.first_bad[0].starts_with("prompts.jsonl:4: "), "{:?}", summary.first_bad);
    assert!(some.warnings.iter().any(|warning| warning.contains("duplicate")), "{:?}", some.warnings);

    wire.data.as_mut().unwrap().max_bad_fraction = Some(0.01);
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.prompts") && message.contains("prompts.jsonl:4"), "{message}");

    let all_bad = input(&store, "bad.jsonl", "{\"x\":1}\nnonsense\n").await;
    wire.data.as_mut().unwrap().golden = vec![all_bad];
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.golden") && message.contains("bad.jsonl:1"), "{message}");
    wire.data.as_mut().unwrap().max_bad_fraction = Some(1.0);
    let message = failure(wire, &store).await;
    assert!(message.contains("no row is left for golden"), "{message}");
}

#[tokio::test]
async fn rows_that_the_model_cannot_encode_are_bad_rows() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let poisoned = input(&store, "sft.jsonl", "{\"prompt\":\"ab\",\"answer\":\"ab</s>c\"}").await;
    wire.data.as_mut().unwrap().sft = vec![poisoned];
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.sft") && message.contains("</s>"), "{message}");
    let long = format!("{{\"prompt\":\"ab\",\"answer\":\"{}\"}}", "ab".repeat(12));
    wire.data.as_mut().unwrap().sft = vec![input(&store, "sft.jsonl", long).await];
    let cut = resolved(wire, &store).await.unwrap();
    assert!(cut.warnings.iter().any(|warning| warning.contains("in 24 tokens")), "{:?}", cut.warnings);
}

#[tokio::test]
async fn overlaps_are_reported() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let data = wire.data.as_mut().unwrap();
    data.evaluation = Some(v1::EvaluationDataSpec { prompts: data.prompts.clone(), preferences: vec![] });
    data.prompts.push(data.golden[0].clone());
    let resolved = resolved(wire, &store).await.unwrap();
    let warned = |text: &str| resolved.warnings.iter().any(|warning| warning.contains(text));
    assert!(warned("evaluation_prompts: 10 of its 10 prompts"), "{:?}", resolved.warnings);
    assert!(warned("reward model's own prompts"), "{:?}", resolved.warnings);
    // One file for both, as a first job often has it: the reward model is trained on prompts that are measured on.
    let mut wire = file_job(&store).await;
    let data = wire.data.as_mut().unwrap();
    let lines: Vec<String> = (0..40)
        .map(|n| {
            let prompt: String = "abcdefgh".chars().cycle().skip(n % 8).take(n / 8 + 2).collect();
            format!("{{\"prompt\":\"{prompt}\",\"chosen\":\"a!!\",\"rejected\":\"w\"}}")
        })
        .collect();
    data.preferences = vec![input(&store, "pairs.jsonl", lines.join("\n")).await];
    data.prompts = data.preferences.clone();
    let warnings = request(wire, false).run(&store).await.unwrap().warnings;
    let shared =
        |line: &&String| line.starts_with("evaluation_prompts: ") && line.contains("are in preferences too");
    let found = warnings.iter().find(shared);
    assert!(found.is_some_and(|line| line.contains("reward measured there flatters")), "{warnings:?}");
}

/// Any two sets of a job, made to share one prompt and no other sets, are reported by both their names, and no others.
#[test]
fn every_two_sets_that_share_a_prompt_are_reported() {
    type Put = fn(&mut Sets, u64);
    fn prompt(number: u64) -> Prompt {
        Prompt::user(number.to_string())
    }
    fn pair(id: u64) -> PairRow {
        PairRow { id, prompt: prompt(id), chosen: "a".into(), rejected: "b".into(), margin: None }
    }
    fn golden(id: u64) -> GoldenRow {
        GoldenRow { id, prompt: prompt(id), golden: "a".into() }
    }
    fn lone(id: u64) -> PromptRow {
        PromptRow { id, prompt: prompt(id) }
    }
    let fill: [(&str, Put); 9] = [
        ("sft", |sets, id| {
            sets.sft.push(DemonstrationRow { id, prompt: prompt(id), answer: "a".into() });
        }),
        ("preferences", |sets, id| sets.preferences.push(pair(id))),
        ("evaluation_preferences", |sets, id| sets.evaluation_preferences.push(pair(id))),
        ("gold_preference_prompts", |sets, id| sets.gold_preference_prompts.push(lone(id))),
        ("gold_preference_evaluation_prompts", |sets, id| {
            sets.gold_preference_evaluation_prompts.push(lone(id));
        }),
        ("golden", |sets, id| sets.golden.push(golden(id))),
        ("golden_holdout", |sets, id| sets.golden_holdout.push(golden(id))),
        ("prompts", |sets, id| sets.prompts.push(lone(id))),
        ("evaluation_prompts", |sets, id| sets.evaluation_prompts.push(lone(id))),
    ];
    let none = Sets::default();
    assert_eq!(fill.map(|(name, _)| name), none.counts().map(|(name, _)| name), "a set is not walked");
    for first in 0..fill.len() {
        for second in first + 1..fill.len() {
            let mut sets = Sets::default();
            fill.iter().zip(1..).for_each(|((_, put), own)| put(&mut sets, own));
            [first, second].into_iter().for_each(|set| fill[set].1(&mut sets, 100));
            let lines = overlaps::of_pairs(&sets);
            let (first, second) = (fill[first].0, fill[second].0);
            assert_eq!(lines.len(), 1, "{first} and {second}: {lines:?}");
            let either = |a: &str, b: &str| {
                lines[0].starts_with(&format!("{a}: 1 of its 2 prompts (1 rows) are in {b} too, "))
            };
            assert!(either(first, second) || either(second, first), "{first} and {second}: {lines:?}");
        }
    }
}

#[tokio::test]
async fn what_the_specification_warns_of_is_passed_on() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.reward_step.get_or_insert_default().loss = "wgan".to_owned();
    let resolved = resolved(wire, &store).await.unwrap();
    let warned = resolved.warnings.iter().any(|warning| warning.contains("weight_clip"));
    assert!(warned, "{:?}", resolved.warnings);
}

#[tokio::test]
async fn limits_bound_each_set() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let limits = v1::LimitSpec { prompts: 4, golden: 5, ..Default::default() };
    wire.data.as_mut().unwrap().limits = Some(limits);
    let resolved = resolved(wire, &store).await.unwrap();
    let rows = |name| resolved.datasets.iter().find(|set| set.name == name).map(|set| set.rows);
    assert_eq!((rows("prompts"), rows("evaluation_prompts")), (Some(3), Some(1)));
    assert_eq!((rows("golden"), rows("golden_holdout")), (Some(4), Some(1)));
}

#[tokio::test]
async fn incomplete_models_are_named() {
    let store = Store::in_memory();
    let wire = file_job(&store).await;
    let with = |model: String, init: &str| v1::JobSpec {
        policy: Some(v1::PolicySpec { model, init: init.to_owned() }),
        ..wire.clone()
    };
    let no_tokenizer = model(&store, &letters_files()[..1]).await;
    assert!(failure(with(no_tokenizer, "random"), &store).await.contains("has no tokenizer.json"));
    let no_weights = model(&store, &letters_files()).await;
    assert!(failure(with(no_weights, "weights"), &store).await.contains("neither model.safetensors"));

    let mut sharded = letters_files();
    let tensors = letters_tensors();
    let half = tensors.len() / 2;
    let map = tensors.iter().enumerate().map(|(index, (name, _))| {
        let shard = if index < half { "model-1.safetensors" } else { "model-2.safetensors" };
        (name.clone(), serde_json::Value::from(shard))
    });
    let index = serde_json::json!({ "weight_map": map.collect::<serde_json::Map<_, _>>() }).to_string();
    sharded.push(("model.safetensors.index.json", index.into()));
    sharded.push(("model-1.safetensors", safetensors(&tensors[..half])));
    let one = model(&store, &sharded).await;
    assert!(failure(with(one, "weights"), &store).await.contains("no model-2.safetensors"));
    sharded.push(("model-2.safetensors", safetensors(&tensors[half..])));
    let whole = with(model(&store, &sharded).await, "weights");
    assert_eq!(resolved(whole, &store).await.unwrap().policy.objects.len(), 6);

    let mut sneaky = letters_files();
    sneaky.push(("../evil", "x".into()));
    let sneaky = model(&store, &sneaky).await;
    assert!(failure(with(sneaky, "random"), &store).await.contains("plain name"));
}

/// The tensors of the letters model with their shapes.
fn letters_tensors() -> Vec<(String, Vec<i64>)> {
    DecoderConfig::load(&letters_directory()).unwrap().tensors(HeadKind::LanguageModel)
}

/// A safetensors file of zeros.
fn safetensors(tensors: &[(String, Vec<i64>)]) -> Bytes {
    let mut at = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let start = at;
        at += 4 * shape.iter().product::<i64>();
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, at] });
        (name.clone(), entry)
    });
    let header = serde_json::Value::Object(entries.collect()).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + usize::try_from(at).unwrap(), 0);
    file.into()
}

/// What is said of the letters model with some fields of its config.json and its tensors changed, by submission and
/// again by what looks at the same directory on a client's machine.
async fn model_refusal(
    config: serde_json::Value,
    change: impl FnOnce(&mut Vec<(String, Vec<i64>)>),
    job: impl FnOnce(&mut v1::JobSpec),
) -> Option<String> {
    let mut files = letters_files();
    let mut settings: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
    for (field, value) in config.as_object().unwrap() {
        settings[field] = value.clone();
    }
    files[0].1 = settings.to_string().into();
    let mut tensors = letters_tensors();
    change(&mut tensors);
    files.push(("model.safetensors", safetensors(&tensors)));

    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    job(&mut wire);
    wire.policy = Some(v1::PolicySpec { model: model(&store, &files).await, init: "weights".to_owned() });
    let submitted = resolved(wire.clone(), &store).await.err().map(|error| error.to_string());

    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in &files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let path = dir.path().display().to_string();
    wire.policy.as_mut().unwrap().model.clone_from(&path);
    let local = local_models(&spec::Job::try_from(wire).unwrap()).err().map(|error| error.to_string());
    // Pad tokens are known with the tokenizer only.
    if let (Some(submitted), Some(local)) = (&submitted, &local) {
        assert_eq!(
            submitted.replace("letters", ""),
            local.replace(&format!("{path}/"), "").replace(&path, "")
        );
    }
    assert!(local.is_none() || submitted.is_some(), "{local:?}");
    submitted
}

#[tokio::test]
async fn what_a_rank_would_refuse_of_a_model_is_refused_at_submission() {
    use serde_json::json;
    assert_eq!(model_refusal(json!({}), |_| {}, |_| {}).await, None);
    let configs = [
        (json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } }), "rope scaling \"yarn\""),
        (json!({ "quantization_config": { "quant_method": "gptq" } }), "quantization_config (gptq)"),
        (json!({ "model_type": "mistral", "sliding_window": 8 }), "sliding_window 8"),
        (json!({ "pad_token_id": -1 }), "pad_token_id: found -1"),
        (json!({ "model_type": "mixtral" }), "model_type \"mixtral\""),
        (json!({ "architectures": ["LlamaForSequenceClassification"], "num_labels": 2 }), "2 labels"),
        (
            json!({ "architectures": ["LlamaForSequenceClassification"], "num_labels": 1 }),
            "cannot write text",
        ),
        (json!({ "vocab_size": 18 }), "asks for [18, "),
        (json!({ "bos_token_id": 0 }), "begin-of-text"),
    ];
    for (config, expected) in configs {
        let told = model_refusal(config.clone(), |_| {}, |_| {}).await.unwrap_or_default();
        assert!(told.starts_with("policy.model: ") && told.contains(expected), "{config}: {told}");
    }
    let bare = |tensors: &mut Vec<(String, Vec<i64>)>| {
        tensors.iter_mut().for_each(|(name, _)| *name = name.trim_start_matches("model.").to_owned());
    };
    let told = model_refusal(json!({}), bare, |_| {}).await.unwrap();
    assert!(told.contains("lack the prefix"), "{told}");
    let lost = |tensors: &mut Vec<(String, Vec<i64>)>| drop(tensors.pop());
    assert!(model_refusal(json!({}), lost, |_| {}).await.unwrap().contains("is missing from the checkpoint"));
    let long = |wire: &mut v1::JobSpec| wire.text.as_mut().unwrap().max_length = Some(33);
    let told = model_refusal(json!({}), |_| {}, long).await.unwrap();
    assert!(told.starts_with("text.max_length: found 33, expected at most 32"), "{told}");
}

#[tokio::test]
async fn what_was_not_uploaded_is_named() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.data.as_mut().unwrap().golden = vec![format!("input:{}:golden.jsonl", "0".repeat(64))];
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.golden") && message.contains("submit the job again"), "{message}");
    wire.data.as_mut().unwrap().golden = vec!["golden.jsonl".to_owned()];
    let message = failure(wire, &store).await;
    assert!(message.contains("foil submit"), "{message}");
}

/// Real preferences and golden answers through a real tokenizer, if the test models are there.
#[tokio::test]
async fn real_data_resolves() {
    let Some(pairs) = test_models::read("data/hh/preferences.train.jsonl.gz") else { return };
    let golden = test_models::read("data/golden/golden.jsonl.gz").unwrap();
    let files = ["config.json", "tokenizer.json", "model.safetensors"]
        .map(|name| (name, Bytes::from(test_models::read(&format!("models/stories260K/{name}")).unwrap())));
    let store = Store::in_memory();
    let golden = input(&store, "golden.jsonl.gz", golden).await;
    let wire = v1::JobSpec {
        name: "hh".into(),
        policy: Some(v1::PolicySpec { model: model(&store, &files).await, ..Default::default() }),
        data: Some(v1::DataSpec {
            preferences: vec![input(&store, "pairs.jsonl.gz", pairs).await],
            golden: vec![golden.clone()],
            prompts: vec![golden],
            limits: Some(v1::LimitSpec { preferences: 300, golden: 64, prompts: 64, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let resolved = resolved(wire, &store).await.unwrap();
    let rows: u64 = resolved.datasets.iter().map(|set| set.rows).sum();
    assert!(rows > 400, "{:?} {:?}", resolved.summaries, resolved.warnings);
    assert_eq!(resolved.policy.name, "policy@0");
}

#[tokio::test]
async fn what_encoding_drops_is_named_by_file_and_line() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.text.as_mut().unwrap().template = "{% if messages[0].content == 'bcdef' %}{{ raise_exception('no b') }}{% endif %}\
         {% for message in messages %}{{ message.content }}{{ eos_token if message.role == 'assistant' else '>' }}{% endfor %}"
        .to_owned();
    wire.data.as_mut().unwrap().max_bad_fraction = Some(0.5);
    let named = |lines: &[String]| lines.iter().any(|line| line.contains("prompts.jsonl:2: "));
    let some = resolved(wire.clone(), &store).await.unwrap();
    assert!(named(&some.warnings), "{:?}", some.warnings);
    wire.data.as_mut().unwrap().max_bad_fraction = Some(0.0);
    let message = failure(wire, &store).await;
    assert!(message.starts_with("data.prompts: ") && named(std::slice::from_ref(&message)), "{message}");
}

#[tokio::test]
async fn pairs_that_are_equal_after_the_cut_are_left_out_and_counted() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        format!(
            "{{\"prompt\":\"{prompt}\",\"chosen\":\"{chosen}\",\"rejected\":\"{rejected}\",\"source\":\"s\"}}"
        )
    };
    let long = "ab".repeat(20);
    let equal = pair("abc", &format!("{long}c"), &format!("{long}d"));
    let pairs = [pair("bcd", "b!!", "c"), equal.clone(), pair("cde", "c!!", "d")].join("\n");
    let data = wire.data.as_mut().unwrap();
    data.preferences = vec![input(&store, "pairs.jsonl", pairs).await];
    data.evaluation =
        Some(v1::EvaluationDataSpec { preferences: data.preferences.clone(), ..Default::default() });
    let some = resolved(wire.clone(), &store).await.unwrap();
    assert_eq!(rows::<PairRow>(&some, "preferences", &store).await.len(), 2);
    let told = |line: &String| {
        line.starts_with("preferences: 1 of 3 pairs are left out") && line.ends_with("pairs.jsonl:2")
    };
    assert!(some.warnings.iter().any(told), "{:?}", some.warnings);
    let summary = some.summaries.iter().find(|summary| summary.name == "preferences").unwrap();
    assert_eq!((summary.bad_rows, summary.ignored_columns.as_slice()), (0, &["source".to_owned()][..]));

    // Where none is left, the refusal says why.
    wire.data.as_mut().unwrap().preferences = vec![input(&store, "equal.jsonl", equal).await];
    let message = failure(wire, &store).await;
    assert!(message.contains("no row is left") && message.contains("the same tokens"), "{message}");
}

#[tokio::test]
async fn settings_that_the_data_makes_pointless_are_told() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.text.as_mut().unwrap().truncation_side = "right".to_owned();
    let long = format!("{{\"prompt\":\"{}\"}}", "abcd".repeat(8));
    wire.data.as_mut().unwrap().prompts.push(input(&store, "long.jsonl", long).await);
    let schedule = v1::ScheduleSpec { warmup_steps: Some(50), ..Default::default() };
    wire.sft_step = Some(v1::SftStepSpec { schedule: Some(schedule), ..Default::default() });
    let some = resolved(wire, &store).await.unwrap();
    for text in ["lose their end", "sft_step.schedule.warmup_steps: 50 is more than the "] {
        assert!(some.warnings.iter().any(|warning| warning.contains(text)), "{text}: {:?}", some.warnings);
    }
}

#[tokio::test]
async fn a_set_of_bad_answers_alone_says_why_it_is_empty() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let labelled = input(&store, "kto.jsonl", r#"{"prompt":"ab","completion":"x","label":false}"#).await;
    wire.data.as_mut().unwrap().golden = vec![labelled];
    let message = failure(wire, &store).await;
    assert!(message.contains("1 answers labelled as bad ones are left out"), "{message}");
}
