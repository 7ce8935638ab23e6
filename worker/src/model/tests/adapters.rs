//! Compares LoRA adapters with PEFT's, and merged with unmerged ones.

use std::path::{Path, PathBuf};

use foil_common::spec::{Lora, LoraTarget};
use tch::{Device, Kind, Tensor};

use super::super::{
    Adapter, DecoderConfig, HeadKind, LanguageModel, PackedBatch, Parameters, Precision, RewardModel,
};
use super::{distance, llama, model, rows};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// PEFT's adapter for a model of tests/fixtures/model, with the results computed by
/// scripts/fixtures/adapter.py.
struct Case {
    base: PathBuf,
    adapter: PathBuf,
    expected: Vec<(String, Tensor)>,
}

impl Case {
    fn open(name: &str) -> Self {
        let (base, adapter) = (fixtures().join("model").join(name), fixtures().join("adapter").join(name));
        let expected = Tensor::read_safetensors(adapter.join("expected.safetensors")).unwrap();
        Self { base, adapter, expected }
    }

    fn get(&self, name: &str) -> &Tensor {
        let found = self.expected.iter().find(|(key, _)| key == name);
        &found.unwrap_or_else(|| panic!("the fixture has no {name}")).1
    }

    fn sequences(&self) -> Vec<Vec<u32>> {
        let lengths = Vec::<i64>::try_from(self.get("lengths")).unwrap();
        let row = |(row, length): (usize, i64)| {
            let ids = Vec::<i64>::try_from(self.get("tokens").get(row as i64).narrow(0, 0, length)).unwrap();
            ids.into_iter().map(|id| id as u32).collect()
        };
        lengths.into_iter().enumerate().map(row).collect()
    }

    fn load(&self, head: HeadKind) -> Adapter {
        let config = DecoderConfig::load(&self.base).unwrap();
        Adapter::load(&self.adapter, &config, head, Device::Cpu).unwrap()
    }

    /// Compares the gradients of `loss` with PEFT's.
    fn assert_gradients(&self, loss: &Tensor, trained: &Parameters) {
        assert!((loss.double_value(&[]) - self.get("loss").double_value(&[])).abs() < 1e-5);
        let gradients = Tensor::run_backward(&[loss], trained.tensors(), false, false);
        assert_eq!(
            trained.names().len(),
            self.expected.iter().filter(|(key, _)| key.starts_with("grad.")).count()
        );
        for (name, gradient) in trained.names().iter().zip(&gradients) {
            let relative = distance(gradient, self.get(&format!("grad.{name}")));
            assert!(relative < 1e-5, "{name}: {relative}");
        }
    }
}

/// The log-probability of every next token, by sequence, and the logits at every token.
fn language_model_loss(model: &LanguageModel, sequences: &[Vec<u32>]) -> (Tensor, Vec<Tensor>) {
    let batch = PackedBatch::from_sequences(sequences, Device::Cpu).unwrap();
    let mut logits = Vec::new();
    let mut losses = Vec::new();
    for (sequence, ids) in sequences.iter().enumerate() {
        let at: Vec<i64> = (0..ids.len()).map(|token| batch.row(sequence, token)).collect();
        let hidden = model.forward(&batch, &Tensor::from_slice(&at), Precision::Fp32).unwrap();
        let all = model.logits(&hidden);
        let next: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
        let log_probs = all.narrow(0, 0, next.len() as i64).log_softmax(-1, Kind::Float);
        losses.push(-log_probs.gather(1, &Tensor::from_slice(&next).unsqueeze(1), false).view(-1));
        logits.push(all);
    }
    (Tensor::cat(&losses, 0).mean(Kind::Float), logits)
}

#[test]
fn language_models_have_pefts_logits_and_gradients() {
    for name in ["llama-tied", "llama-untied-bias"] {
        let case = Case::open(name);
        for checkpointing in [false, true] {
            let model = LanguageModel::load(&case.base, Device::Cpu).unwrap();
            let mut model = model.with_checkpointing(checkpointing);
            model.set_adapter(case.load(HeadKind::LanguageModel));
            model.trainable().set_requires_grad(true);
            let sequences = case.sequences();
            let (loss, logits) = language_model_loss(&model, &sequences);
            for (row, (logits, ids)) in logits.iter().zip(&sequences).enumerate() {
                let expected = case.get("logits").get(row as i64).narrow(0, 0, ids.len() as i64);
                assert!(distance(logits, &expected) < 1e-5);
            }
            case.assert_gradients(&loss, model.trainable());
            assert!(model.parameters().tensors().iter().all(|tensor| !tensor.requires_grad()));

            model.merge().unwrap().unwrap();
            let merged = language_model_loss(&model, &sequences).1;
            assert!(merged.iter().zip(&logits).all(|(merged, unmerged)| distance(merged, unmerged) < 1e-5));
        }
    }
}

#[test]
fn reward_models_have_pefts_scores_and_gradients() {
    let case = Case::open("llama-reward");
    let mut model = RewardModel::load(&case.base, Device::Cpu).unwrap();
    model.set_adapter(case.load(HeadKind::Reward));
    model.trainable().set_requires_grad(true);
    let batch = PackedBatch::from_sequences(&case.sequences(), Device::Cpu).unwrap();
    let scores = model.scores(&batch, Precision::Fp32).unwrap();
    assert!(distance(&scores, case.get("scores")) < 1e-5);
    let weights: Vec<f32> =
        (0..scores.size()[0]).map(|row| (row + 1) as f32 * (-1_f32).powi(row as i32)).collect();
    case.assert_gradients(&(&scores * Tensor::from_slice(&weights)).sum(Kind::Float), model.trainable());
}

#[test]
fn a_saved_adapter_equals_pefts() {
    for (name, head) in [("llama-untied-bias", HeadKind::LanguageModel), ("llama-reward", HeadKind::Reward)] {
        let case = Case::open(name);
        let written = tempfile::tempdir().unwrap();
        case.load(head).save(written.path()).unwrap();
        let read = |dir: &Path| {
            let mut tensors = Tensor::read_safetensors(dir.join("adapter_model.safetensors")).unwrap();
            tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
            let config = std::fs::read(dir.join("adapter_config.json")).unwrap();
            (tensors, serde_json::from_slice::<serde_json::Value>(&config).unwrap())
        };
        let ((found, ours), (expected, pefts)) = (read(written.path()), read(&case.adapter));
        assert_eq!(found.len(), expected.len());
        for ((name, tensor), (known, peft)) in found.iter().zip(&expected) {
            assert_eq!(name, known);
            assert!(tensor.equal(peft), "{name}");
        }
        for (key, value) in ours.as_object().unwrap() {
            match key.as_str() {
                "target_modules" => {
                    let set = |names: &serde_json::Value| {
                        let names =
                            names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
                        names.collect::<std::collections::BTreeSet<_>>()
                    };
                    assert_eq!(set(value), set(&pefts[key]));
                }
                // PEFT also lists the names of the head in other model families.
                "modules_to_save" if !value.is_null() => assert_eq!(value[0], "score"),
                _ => assert_eq!(value, &pefts[key], "{key}"),
            }
        }
    }
}

fn lora() -> Lora {
    Lora { rank: 3, alpha: 5.0, target_modules: vec![LoraTarget::QProj, LoraTarget::DownProj] }
}

/// Fills every B with random numbers, as training would.
fn train(model: &LanguageModel) {
    tch::no_grad(|| {
        for (_, tensor) in model.trainable().iter().filter(|(name, _)| name.contains("lora_B")) {
            let _ = tensor.shallow_clone().normal_(0.0, 0.3);
        }
    });
}

#[test]
fn a_fresh_adapter_changes_nothing_and_depends_on_seed_and_round() {
    let mut adapted = model(&llama());
    let before = language_model_loss(&adapted, &rows()).1;
    let digests = [(7, 1), (7, 1), (7, 2), (8, 1)].map(|seed_and_round| {
        adapted.add_lora(&lora(), seed_and_round).unwrap();
        let after = language_model_loss(&adapted, &rows()).1;
        assert!(before.iter().zip(&after).all(|(before, after)| after.equal(before)));
        adapted.trainable().blake3().unwrap()
    });
    assert_eq!(digests[0], digests[1]);
    assert!(digests[0] != digests[2] && digests[0] != digests[3]);
}

#[test]
fn consecutive_adapters_concatenate_into_one_for_the_first_model() {
    let start = model(&llama());
    let mut trained = start.copy();
    let mut chain: Option<Adapter> = None;
    for round in 1..=3 {
        trained.add_lora(&lora(), (1, round)).unwrap();
        train(&trained);
        let adapter = trained.merge().unwrap().unwrap();
        chain = Some(match chain {
            None => adapter,
            Some(earlier) => adapter.concat_after(&earlier).unwrap(),
        });
    }
    let mut whole = start;
    whole.set_adapter(chain.unwrap());
    let (found, expected) =
        (language_model_loss(&whole, &rows()).1, language_model_loss(&trained, &rows()).1);
    assert!(found.iter().zip(&expected).all(|(found, expected)| distance(found, expected) < 1e-5));
    let other = Lora { alpha: 6.0, ..lora() };
    trained.add_lora(&other, (1, 4)).unwrap();
    let other = trained.merge().unwrap().unwrap();
    assert!(other.concat_after(&whole.merge().unwrap().unwrap()).is_none());
}

#[test]
fn an_adapter_of_another_model_is_an_error_that_names_the_tensor() {
    let case = Case::open("llama-tied");
    let other = DecoderConfig::load(&fixtures().join("model/llama-rope-llama3")).unwrap();
    let error = Adapter::load(&case.adapter, &other, HeadKind::LanguageModel, Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("lora_"), "{error}");
}
