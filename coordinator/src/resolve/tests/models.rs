use foil_common::model::HeadKind;

use super::*;

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

/// The error for the letters model with modified config.json fields and tensors, from submission and again
/// from the check of the same directory on a client's machine.
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
    // Pad tokens are known only with the tokenizer.
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
async fn a_model_that_a_rank_would_reject_is_rejected_at_submission() {
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
        let message = model_refusal(config.clone(), |_| {}, |_| {}).await.unwrap_or_default();
        assert!(message.starts_with("policy.model: ") && message.contains(expected), "{config}: {message}");
    }
    let bare = |tensors: &mut Vec<(String, Vec<i64>)>| {
        tensors.iter_mut().for_each(|(name, _)| *name = name.trim_start_matches("model.").to_owned());
    };
    let message = model_refusal(json!({}), bare, |_| {}).await.unwrap();
    assert!(message.contains("lack the prefix"), "{message}");
    let lost = |tensors: &mut Vec<(String, Vec<i64>)>| drop(tensors.pop());
    assert!(model_refusal(json!({}), lost, |_| {}).await.unwrap().contains("is missing from the checkpoint"));
    let long = |wire: &mut v1::JobSpec| wire.text.as_mut().unwrap().max_length = Some(33);
    let message = model_refusal(json!({}), |_| {}, long).await.unwrap();
    assert!(message.starts_with("text.max_length: found 33, expected at most 32"), "{message}");
}
