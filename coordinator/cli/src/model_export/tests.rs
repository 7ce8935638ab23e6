use std::cell::Cell;
use std::collections::HashMap;
use std::fs;

use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;

const COUNTS: [(&str, usize); 3] =
    [("model.b.weight", 700_000), ("model.a.weight", 500), ("lm_head.weight", 3)];

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A model directory with random weights, and its provenance.
fn model(dir: &Path) -> (HashMap<&'static str, Vec<f32>>, Provenance) {
    let weights: HashMap<&str, Vec<f32>> = COUNTS
        .iter()
        .map(|(name, count)| (*name, (0..*count).map(|_| rand::random_range(-2.0..2.0)).collect()))
        .collect();
    let data: Vec<(&str, Vec<u8>)> = weights.iter().map(|(name, numbers)| (*name, bytes(numbers))).collect();
    let views = data
        .iter()
        .map(|(name, data)| (*name, TensorView::new(Dtype::F32, vec![data.len() / 4], data).unwrap()));
    let views: Vec<_> = views.collect();
    safetensors::serialize_to_file(views.clone(), None, &dir.join("model.safetensors")).unwrap();
    fs::create_dir_all(dir.join(ADAPTER)).unwrap();
    safetensors::serialize_to_file(views, None, &dir.join(ADAPTER).join(ADAPTER_TENSORS)).unwrap();
    let files = [
        ("config.json", r#"{"model_type": "llama", "torch_dtype": "float32"}"#),
        ("tokenizer.json", "{}"),
        ("chat_template.jinja", "{{ messages }}"),
        ("private.txt", "mine"),
        ("adapter/adapter_config.json", r#"{"r": 4, "base_model_name_or_path": null}"#),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    let names = ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"];
    let adapter = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"];
    let object = |name: &&str| {
        let content = fs::read(dir.join(name)).unwrap();
        let blake3 = blake3::hash(&content).to_hex().to_string();
        v1::Object { path: (*name).into(), size: content.len() as u64, blake3, ..Default::default() }
    };
    let objects = names.iter().chain(&adapter).map(object).collect();
    let artifact = v1::Artifact {
        name: "policy@1".into(),
        kind: "policy".into(),
        round: 1,
        objects,
        ..Default::default()
    };
    (weights, Provenance::new(&v1::Job { name: "hh".into(), ..Default::default() }, &artifact, &[]))
}

fn job(from: &Path, made: Provenance) -> Job {
    Job {
        from: from.to_owned(),
        made: Some(made),
        base: None,
        dtype: Some(ExportDtype::Fp16),
        limit: 1_000_000,
        force: false,
    }
}

fn run(job: &Job, target: &Path, is_stopped: &dyn Fn() -> bool) -> Result<String> {
    job.run(Work::open(target, json!("one"))?, &|_| {}, &|_| {}, is_stopped)
}

/// The numbers of all tensors of an export, as fp16.
fn read(target: &Path) -> HashMap<String, Vec<f16>> {
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(target.join("model.safetensors.index.json")).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let read = |(name, file): (&String, &serde_json::Value)| {
        let content = fs::read(target.join(file.as_str().unwrap())).unwrap();
        let file = SafeTensors::deserialize(&content).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F16);
        let numbers = view.data().as_chunks::<2>().0.iter().map(|number| f16::from_le_bytes(*number));
        (name.clone(), numbers.collect())
    };
    map.iter().map(read).collect()
}

#[test]
fn an_export_has_the_rounded_weights_and_the_files_of_text() {
    let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (weights, made) = model(from.path());
    let target = out.path().join("export");
    let told = run(&job(from.path(), made), &target, &|| false).unwrap();
    assert!(told.contains("700503 parameters in 2 weight files"), "{told}");
    let found = read(&target);
    assert_eq!(found.len(), 3);
    for (name, numbers) in &weights {
        let expected: Vec<f16> = numbers.iter().map(|number| f16::from_f32(*number)).collect();
        assert!(found[*name] == expected, "{name}");
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(target.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "float16");
    assert!(target.join("chat_template.jinja").is_file() && !target.join("private.txt").exists());
    // Its provenance is correct, and an export of it is verified again.
    let again = Provenance::read(&target).unwrap().unwrap();
    for object in &again.artifact.objects {
        let content = fs::read(target.join(&object.path)).unwrap();
        assert_eq!(object.blake3, blake3::hash(&content).to_hex().as_str(), "{}", object.path);
    }
    let card = fs::read_to_string(target.join(card::README)).unwrap();
    assert!(card.contains("`model-00002-of-00002.safetensors`"), "{card}");
    let second = Job { dtype: None, ..job(&target, again) };
    run(&second, &out.path().join("second"), &|| false).unwrap();
    assert!(read(&out.path().join("second")) == found);
}

#[test]
fn a_stopped_export_goes_on_to_the_same_files() {
    let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, made) = model(from.path());
    let job = job(from.path(), made);
    let whole = out.path().join("whole");
    run(&job, &whole, &|| false).unwrap();
    // There are five pieces. The second ends the first shard.
    for stop in 0..5 {
        let target = out.path().join(format!("stopped-{stop}"));
        let asked = Cell::new(0);
        let stopped = run(&job, &target, &|| asked.replace(asked.get() + 1) == stop);
        assert!(stopped.unwrap_err().is::<Stopped>() && !target.exists());
        run(&job, &target, &|| false).unwrap();
        for entry in fs::read_dir(&whole).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                fs::read(whole.join(&name)).unwrap() == fs::read(target.join(&name)).unwrap(),
                "{name:?}"
            );
        }
    }
}

#[test]
fn weights_that_were_changed_are_refused_and_nothing_is_left() {
    let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, made) = model(from.path());
    let target = out.path().join("export");
    let file = from.path().join("model.safetensors");
    let mut content = fs::read(&file).unwrap();
    let last = content.len() - 2;
    content[last] ^= 1;
    fs::write(&file, &content).unwrap();
    let error = run(&job(from.path(), made.clone()), &target, &|| false).unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors has BLAKE3") && error.contains("Pull the model again"),
        "{error}"
    );
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    content[last] ^= 1;
    fs::write(&file, &content).unwrap();
    fs::write(from.path().join("tokenizer.json"), "{ }").unwrap();
    let error = run(&job(from.path(), made), &target, &|| false).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json has BLAKE3"), "{error}");
}

#[test]
fn an_adapter_is_exported_in_pefts_layout_with_its_base() {
    let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, made) = model(from.path());
    let target = out.path().join("adapter");
    let adapter = Job { base: Some("org/base".into()), dtype: None, limit: 8, ..job(from.path(), made) };
    run(&adapter, &target, &|| false).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(target.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["r"]), (&json!("org/base"), &json!(4)));
    assert!(target.join(ADAPTER_TENSORS).is_file() && !target.join("config.json").exists());
    let card = fs::read_to_string(target.join(card::README)).unwrap();
    assert!(
        card.contains("library_name: peft") && card.contains("PeftModel.from_pretrained(base, folder)"),
        "{card}"
    );
    fs::remove_dir_all(from.path().join(ADAPTER)).unwrap();
    let error = run(&adapter, &out.path().join("none"), &|| false).unwrap_err().to_string();
    assert!(error.contains("has no adapter"), "{error}");
}

#[test]
fn only_the_files_of_the_wanted_form_are_downloaded() {
    let object = |path: &str| v1::Object { path: path.into(), ..Default::default() };
    let objects = ["model.safetensors", "config.json", "tokenizer.json", "adapter/adapter_model.safetensors"]
        .map(object);
    let artifact = v1::Artifact { objects: objects.to_vec(), ..Default::default() };
    let names = |adapter| {
        let found = wanted(&artifact, adapter).unwrap().objects;
        found.into_iter().map(|object| object.path).collect::<Vec<_>>()
    };
    assert_eq!(names(false), ["model.safetensors", "config.json", "tokenizer.json"]);
    assert_eq!(names(true), ["config.json", "tokenizer.json", "adapter/adapter_model.safetensors"]);
    let plain = v1::Artifact { objects: vec![object("model.safetensors")], ..Default::default() };
    assert!(wanted(&plain, true).unwrap_err().to_string().contains("trained all weights"));
}
