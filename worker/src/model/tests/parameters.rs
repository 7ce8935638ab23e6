//! Fresh weights, digests and copies.

use tch::{Device, Kind, Tensor};

use super::super::{LanguageModel, PackedBatch, Precision};
use super::{distance, llama, model, qwen3};

#[test]
fn fresh_weights_depend_only_on_seed_and_name() {
    let config = llama();
    let deeper = super::super::DecoderConfig { layers: config.layers + 1, ..config.clone() };
    let (small, large) = (model(&config), model(&deeper));
    for (name, tensor) in small.parameters().iter() {
        assert!(tensor.equal(large.parameters().get(name).unwrap()), "{name}");
    }
    let other = LanguageModel::from_config(&config, 6, Device::Cpu);
    let name = "model.layers.0.mlp.up_proj.weight";
    assert!(!other.parameters().get(name).unwrap().equal(small.parameters().get(name).unwrap()));
    assert_ne!(other.parameters().blake3().unwrap(), small.parameters().blake3().unwrap());
    assert_eq!(small.parameters().blake3().unwrap(), model(&config).parameters().blake3().unwrap());
}

#[test]
fn fresh_weights_have_the_configured_deviation() {
    for (range, expected) in [(None, 0.7 / 24f64.sqrt()), (Some(0.02), 0.02)] {
        let config = super::super::DecoderConfig { initializer_range: range, ..qwen3() };
        let model = model(&config);
        for (name, tensor) in model.parameters().iter() {
            if name.ends_with("norm.weight") {
                assert!(tensor.equal(&tensor.ones_like()), "{name}");
                continue;
            }
            let (mean, deviation) = (tensor.mean(Kind::Double), tensor.std(false));
            // Five standard errors of a mean and of a standard deviation over `numel` numbers.
            let slack = 5.0 / (tensor.numel() as f64).sqrt();
            assert!(mean.double_value(&[]).abs() < slack * expected, "{name}: mean {mean:?}");
            assert!((deviation.double_value(&[]) / expected - 1.0).abs() < slack, "{name}: {deviation:?}");
        }
    }
}

#[test]
fn names_are_sorted_and_found() {
    let model = model(&qwen3());
    let parameters = model.parameters();
    assert!(parameters.names().is_sorted());
    assert_eq!(parameters.names().len(), parameters.tensors().len());
    assert_eq!(parameters.get("model.layers.1.self_attn.q_norm.weight").unwrap().size(), [16]);
    assert!(parameters.get("model.layers.2.self_attn.q_norm.weight").is_none());
    assert_eq!(parameters.count(), parameters.tensors().iter().map(Tensor::numel).sum::<usize>());
}

#[test]
fn a_copy_is_independent() {
    let mut original = model(&llama());
    original.parameters().set_requires_grad(true);
    let copy = original.copy();
    let before = copy.parameters().blake3().unwrap();
    tch::no_grad(|| {
        let _ = original.parameters().tensors()[0].shallow_clone().g_add_scalar_(1.0);
    });
    assert_eq!(copy.parameters().blake3().unwrap(), before);
    assert_ne!(original.parameters().blake3().unwrap(), before);
    assert!(!copy.parameters().tensors()[0].requires_grad());

    original.parameters_mut().copy_from(copy.parameters()).unwrap();
    assert_eq!(original.parameters().blake3().unwrap(), before);
    assert!(original.parameters().tensors()[0].requires_grad());
    assert!(original.parameters_mut().copy_from(model(&qwen3()).parameters()).is_err());
}

#[test]
fn positions_beyond_the_trained_context_work() {
    let config = llama();
    let model = model(&config);
    let long: Vec<u32> = (0..150).map(|step| step % 41).collect();
    let last = Tensor::from_slice(&[99_i64]);
    let forward = |tokens: &[u32]| {
        let batch = PackedBatch::from_sequences(&[tokens], Device::Cpu).unwrap();
        model.forward(&batch, &last, Precision::Fp32).unwrap()
    };
    assert!(distance(&forward(&long[..100]), &forward(&long)) < 1e-6);
}
