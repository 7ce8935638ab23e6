//! Reading and writing model directories, and the errors of damaged ones.

use std::collections::HashMap;
use std::path::Path;

use foil_common::storage::object::Digest;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use super::super::{LanguageModel, ModelError, RewardModel, SaveDtype};
use super::{llama, model, qwen3};

type Stored = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn stored(path: &Path) -> Stored {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect()
}

fn store(path: &Path, tensors: &Stored) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Saves a Qwen3, applies `change` to its tensors and reads it again.
fn reload(change: impl FnOnce(&mut Stored)) -> Result<LanguageModel, ModelError> {
    let dir = TempDir::new().unwrap();
    model(&qwen3()).save(dir.path(), SaveDtype::Fp32).unwrap();
    let path = dir.path().join("model.safetensors");
    let mut tensors = stored(&path);
    change(&mut tensors);
    store(&path, &tensors);
    LanguageModel::load(dir.path(), Device::Cpu)
}

fn reload_error(change: impl FnOnce(&mut Stored)) -> String {
    reload(change).unwrap_err().to_string()
}

fn rename(tensors: &mut Stored, from: &str, to: &str) {
    tensors.iter_mut().find(|tensor| tensor.0 == from).unwrap().0 = to.to_owned();
}

#[test]
fn a_saved_model_reads_back_bit_for_bit() {
    for config in [llama(), qwen3()] {
        let dir = TempDir::new().unwrap();
        let model = model(&config);
        let saved = model.save(dir.path(), SaveDtype::Fp32).unwrap();
        assert_eq!(saved.parameters_blake3, model.parameters().blake3().unwrap());
        let again = LanguageModel::load(dir.path(), Device::Cpu).unwrap();
        assert_eq!(again.config(), model.config());
        assert_eq!(again.parameters().names(), model.parameters().names());
        assert_eq!(again.parameters().blake3().unwrap(), model.parameters().blake3().unwrap());

        let twice = TempDir::new().unwrap();
        again.save(twice.path(), SaveDtype::Fp32).unwrap();
        for file in ["config.json", "model.safetensors"] {
            assert_eq!(
                std::fs::read(dir.path().join(file)).unwrap(),
                std::fs::read(twice.path().join(file)).unwrap(),
                "{file}"
            );
        }
    }
}

#[test]
fn bf16_export_rounds_to_nearest_and_is_idempotent() {
    let (once, twice) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let model = model(&llama());
    let saved = model.save(once.path(), SaveDtype::Bf16).unwrap();
    assert_eq!(saved.parameters_blake3, model.parameters().blake3().unwrap(), "it is of the masters");
    let rounded = LanguageModel::load(once.path(), Device::Cpu).unwrap();
    for ((name, exact), (_, rounded)) in model.parameters().iter().zip(rounded.parameters().iter()) {
        assert_eq!(rounded.kind(), Kind::Float, "{name}");
        assert!(exact.to_kind(Kind::BFloat16).to_kind(Kind::Float).equal(rounded), "{name}");
    }
    rounded.save(twice.path(), SaveDtype::Bf16).unwrap();
    let bytes = |dir: &TempDir| std::fs::read(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(bytes(&once), bytes(&twice));
    assert_eq!(saved.file, Digest::of(&bytes(&once)));
    model.parameters().round_to(SaveDtype::Fp32);
    assert_eq!(saved.parameters_blake3, model.parameters().blake3().unwrap());
    model.parameters().round_to(SaveDtype::Bf16);
    assert_eq!(model.parameters().blake3().unwrap(), rounded.parameters().blake3().unwrap());
}

#[test]
fn a_reward_model_reads_back_bit_for_bit_with_the_pad_id_it_was_given() {
    let dir = TempDir::new().unwrap();
    let reward = RewardModel::with_fresh_head(model(&qwen3()), 9);
    reward.save(dir.path(), SaveDtype::Fp32, 7).unwrap();
    let again = RewardModel::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(again.parameters().blake3().unwrap(), reward.parameters().blake3().unwrap());
    assert_eq!(again.config().pad_token_id, Some(7));
    assert!(again.parameters().get("lm_head.weight").is_none());
}

#[test]
fn a_pad_id_that_can_occur_is_refused() {
    let dir = TempDir::new().unwrap();
    let reward = RewardModel::with_fresh_head(model(&llama()), 9);
    // In this config BOS is 1 and EOS is 2; there are 41 ids.
    for (pad, reason) in [(2, "end-of-text"), (1, "begin-of-text"), (41, "outside the vocabulary")] {
        let message = reward.save(dir.path(), SaveDtype::Fp32, pad).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
    assert!(!dir.path().join("config.json").exists());
}

#[test]
fn a_language_model_becomes_a_reward_model_and_the_two_are_not_confused() {
    let dir = TempDir::new().unwrap();
    model(&qwen3()).save(dir.path(), SaveDtype::Fp32).unwrap();
    let a = RewardModel::from_language_model(dir.path(), 1, Device::Cpu).unwrap();
    let b = RewardModel::from_language_model(dir.path(), 2, Device::Cpu).unwrap();
    let head = |model: &RewardModel| model.parameters().get("score.weight").unwrap().shallow_clone();
    assert_eq!(head(&a).size(), [1, 24]);
    assert!(!head(&a).equal(&head(&b)));
    let deviation = head(&a).std(false).double_value(&[]);
    assert!((deviation / (0.1 / 24f64.sqrt()) - 1.0).abs() < 0.5, "{deviation}");

    let message = RewardModel::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("lm_head.weight") && message.contains("language model"), "{message}");
    a.save(dir.path(), SaveDtype::Fp32, 0).unwrap();
    let message = LanguageModel::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("score.weight") && message.contains("reward model"), "{message}");
}

#[test]
fn a_wrong_tensor_is_named_with_its_shapes() {
    let missing = reload_error(|tensors| tensors.retain(|tensor| tensor.0 != "model.norm.weight"));
    assert!(missing.contains("model.norm.weight") && missing.contains("[24]"), "{missing}");

    let unexpected = reload_error(|tensors| rename(tensors, "model.norm.weight", "model.norm.bias"));
    assert!(unexpected.contains("model.norm.bias") && unexpected.contains("[24]"), "{unexpected}");

    let misshapen = reload_error(|tensors| {
        let tensor =
            tensors.iter_mut().find(|tensor| tensor.0.ends_with("layers.1.mlp.up_proj.weight")).unwrap();
        tensor.2 = vec![24, 40];
    });
    assert!(misshapen.contains("layers.1.mlp.up_proj.weight"), "{misshapen}");
    assert!(misshapen.contains("[24, 40]") && misshapen.contains("[40, 24]"), "{misshapen}");

    let integers = reload_error(|tensors| {
        let tensor = tensors.iter_mut().find(|tensor| tensor.0 == "model.norm.weight").unwrap();
        tensor.1 = Dtype::I32;
    });
    assert!(integers.contains("I32"), "{integers}");
}

#[test]
fn obsolete_tensors_are_ignored() {
    let with_inv_freq = reload(|tensors| {
        tensors.push((
            "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(),
            Dtype::F32,
            vec![1],
            vec![0; 4],
        ));
    });
    with_inv_freq.unwrap();
}

#[test]
fn a_tied_head_may_be_stored_only_if_it_equals_the_embeddings() {
    let dir = TempDir::new().unwrap();
    model(&llama()).save(dir.path(), SaveDtype::Fp32).unwrap();
    let path = dir.path().join("model.safetensors");
    let mut tensors = stored(&path);
    let (_, dtype, shape, data) =
        tensors.iter().find(|tensor| tensor.0 == "model.embed_tokens.weight").unwrap().clone();
    tensors.push(("lm_head.weight".to_owned(), dtype, shape, data));
    store(&path, &tensors);
    assert!(
        LanguageModel::load(dir.path(), Device::Cpu).unwrap().parameters().get("lm_head.weight").is_none()
    );

    tensors.last_mut().unwrap().3[0] ^= 1;
    store(&path, &tensors);
    let message = LanguageModel::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("tie_word_embeddings"), "{message}");
}

#[test]
fn sharded_weights_are_read_through_their_index() {
    let dir = TempDir::new().unwrap();
    let model = model(&qwen3());
    model.save(dir.path(), SaveDtype::Fp32).unwrap();
    let single = dir.path().join("model.safetensors");
    let mut first = stored(&single);
    let second = first.split_off(first.len() / 2);
    store(&dir.path().join("a.safetensors"), &first);
    store(&dir.path().join("b.safetensors"), &second);
    std::fs::remove_file(single).unwrap();
    let mut map: HashMap<&str, &str> =
        first.iter().map(|tensor| (tensor.0.as_str(), "a.safetensors")).collect();
    map.extend(second.iter().map(|tensor| (tensor.0.as_str(), "b.safetensors")));
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let again = LanguageModel::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(again.parameters().blake3().unwrap(), model.parameters().blake3().unwrap());

    map.insert(first[0].0.as_str(), "b.safetensors");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let message = LanguageModel::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(message.contains(&first[0].0) && message.contains("b.safetensors"), "{message}");

    map.insert(first[0].0.as_str(), "../a.safetensors");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let message = LanguageModel::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("a file beside it"), "{message}");
}

#[test]
fn fp16_checkpoints_are_read() {
    let half = Tensor::from_slice(&[0.5_f32, -2.0, 65504.0, 1.0 / 3.0]).to_kind(Kind::Half);
    let loaded = reload(|tensors| {
        let tensor = tensors.iter_mut().find(|tensor| tensor.0 == "model.norm.weight").unwrap();
        tensor.1 = Dtype::F16;
        tensor.3 = super::super::writer::HostBytes::default().of(&half.repeat([6]), Kind::Half).to_vec();
    });
    let norm = loaded.unwrap().parameters().get("model.norm.weight").unwrap().narrow(0, 0, 4);
    assert!(norm.equal(&half.to_kind(Kind::Float)));
}

#[test]
fn damaged_files_are_errors_not_crashes() {
    let dir = TempDir::new().unwrap();
    model(&llama()).save(dir.path(), SaveDtype::Fp32).unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut claims = [whole.clone(), whole.clone(), whole.clone()];
    claims[0][..8].copy_from_slice(&u64::MAX.to_le_bytes());
    claims[1][..8].copy_from_slice(&90_000_000_u64.to_le_bytes());
    claims[2][8] = b'[';
    let cut = [0, 7, 8, 8 + header / 2, 8 + header, whole.len() - 1].map(|length| whole[..length].to_vec());
    let grown = [&whole[..], b"!"].concat();
    for bytes in claims.into_iter().chain(cut).chain([grown]) {
        std::fs::write(&path, bytes).unwrap();
        let message = LanguageModel::load(dir.path(), Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("model.safetensors"), "{message}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(
        LanguageModel::load(dir.path(), Device::Cpu).unwrap_err().to_string().contains("model.safetensors")
    );
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(LanguageModel::load(dir.path(), Device::Cpu).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn non_finite_weights_are_refused_at_loading() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let message = reload_error(|tensors| {
            let norm = tensors.iter_mut().find(|tensor| tensor.0 == "model.norm.weight").unwrap();
            norm.3[4..8].copy_from_slice(&value.to_le_bytes());
        });
        assert!(message.contains("model.norm.weight: some of its 24 numbers"), "{message}");
    }
}
