use foil_common::spec::Sampling;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{Completion, GenerateRequest, Generation, GenerationConfig, NoiseKey, generate};
use crate::model::{DecoderConfig, LanguageModel, PackedBatch, Precision};

mod device;

const EOS: u32 = 2;

fn model(seed: u64) -> LanguageModel {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 13, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": false, "initializer_range": 0.4,
        "eos_token_id": EOS,
    });
    let config = DecoderConfig::from_hf(&config).unwrap();
    LanguageModel::from_config(&config, seed, Device::Cpu)
}

fn sampling() -> Sampling {
    Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        max_new_tokens: 12,
        min_new_tokens: 0,
        stop: Vec::new(),
    }
}

/// Prompts of mixed length.
fn requests(prompts: usize, samples: u32) -> Vec<GenerateRequest> {
    (0..prompts)
        .map(|i| GenerateRequest {
            prompt_id: 100 + i as u64,
            prompt: (0..1 + i * 5 % 9).map(|t| ((i * 7 + t * 3) % 13) as u32).collect(),
            samples,
        })
        .collect()
}

fn letters(tokens: &[u32]) -> String {
    tokens.iter().map(|token| char::from(b'a' + *token as u8)).collect()
}

fn run(
    model: &LanguageModel,
    requests: &[GenerateRequest],
    sampling: &Sampling,
    max_num_seqs: usize,
) -> Generation {
    run_until(&[EOS], model, requests, sampling, max_num_seqs)
}

fn run_until(
    eos: &[u32],
    model: &LanguageModel,
    requests: &[GenerateRequest],
    sampling: &Sampling,
    max_num_seqs: usize,
) -> Generation {
    let noise = NoiseKey { seed: 5, round: 1, purpose: "test".into() };
    let config = GenerationConfig {
        sampling,
        eos,
        vocab_size: usize::MAX,
        noise: &noise,
        max_num_seqs,
        detokenize: &letters,
    };
    generate(&model.inference(Precision::Fp32, 4).unwrap(), requests, &config, &mut |_, _| {}).unwrap()
}

/// Equality up to the last bits of the log-probabilities, which change with the batch's shape.
fn same(a: &Completion, b: &Completion) -> bool {
    let near = a.log_probs.iter().zip(&b.log_probs).all(|(a, b)| (a - b).abs() < 1e-5);
    near && (a.prompt_id, a.index, &a.tokens, a.finished) == (b.prompt_id, b.index, &b.tokens, b.finished)
}

/// Greedy decoding with full forward passes, one prompt at a time.
fn greedy_by_forward(model: &LanguageModel, prompt: &[u32], max_new_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + max_new_tokens {
        let batch = PackedBatch::from_sequences(&[&tokens], Device::Cpu).unwrap();
        let hidden = tch::no_grad(|| model.forward(&batch, batch.last_rows(), Precision::Fp32)).unwrap();
        let next = model.logits(&hidden).argmax(-1, false).int64_value(&[0]) as u32;
        tokens.push(next);
        if next == EOS {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

#[test]
fn greedy_decoding_equals_whole_forward_passes() {
    let model = model(3);
    let requests = requests(11, 1);
    let greedy = Sampling { temperature: 0.0, ..sampling() };
    for slots in [1, 3, 16] {
        let generation = run(&model, &requests, &greedy, slots);
        for (completion, request) in generation.completions.iter().zip(&requests) {
            assert_eq!(completion.tokens, greedy_by_forward(&model, &request.prompt, 12), "{slots} slots");
            assert_eq!(completion.finished, completion.tokens.last() == Some(&EOS));
        }
    }
}

/// log p of each token of `completion`, in a separate full forward pass.
fn log_probs_by_forward(model: &LanguageModel, prompt: &[u32], completion: &[u32]) -> Vec<f64> {
    let ids = [prompt, completion].concat();
    let batch = PackedBatch::from_sequences(&[&ids], Device::Cpu).unwrap();
    let all = Tensor::arange(ids.len() as i64, (Kind::Int64, Device::Cpu));
    let hidden = tch::no_grad(|| model.forward(&batch, &all, Precision::Fp32)).unwrap();
    let log_p = tch::no_grad(|| model.logits(&hidden)).log_softmax(-1, Kind::Double);
    let at =
        |(token, id): (usize, &u32)| log_p.double_value(&[(prompt.len() + token) as i64 - 1, i64::from(*id)]);
    completion.iter().enumerate().map(at).collect()
}

/// Covers greedy, temperature, filters and penalties, with EOS among the tokens.
#[test]
fn recorded_log_probabilities_are_those_of_whole_forward_passes() {
    let plain = sampling();
    let hot = Sampling { temperature: 1.4, min_new_tokens: 2, ..sampling() };
    let filtered = Sampling { temperature: 0.8, top_p: 0.9, repetition_penalty: 1.2, ..sampling() };
    let greedy = Sampling { temperature: 0.0, ..sampling() };
    let min_length = Sampling { min_new_tokens: 3, top_k: 5, ..sampling() };
    for (seed, sampling) in [plain, hot, filtered, greedy, min_length].iter().enumerate() {
        let model = model(seed as u64);
        let requests = requests(7, 2);
        let (mut ends, mut lengths) = (0, std::collections::BTreeSet::new());
        for slots in [3, 32] {
            for completion in run(&model, &requests, sampling, slots).completions {
                let request = requests.iter().find(|r| r.prompt_id == completion.prompt_id).unwrap();
                let expected = log_probs_by_forward(&model, &request.prompt, &completion.tokens);
                assert_eq!(completion.log_probs.len(), expected.len());
                let near = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() < 1e-4;
                let found = &completion.log_probs;
                assert!(found.iter().zip(&expected).all(near), "{found:?} not {expected:?} by {sampling:?}");
                ends += usize::from(completion.tokens.last() == Some(&EOS));
                lengths.insert(completion.tokens.len());
            }
        }
        assert!(lengths.len() > 1 && ends > 0, "no EOS or no mixed lengths by {sampling:?}");
    }
}

#[test]
fn every_completion_comes_once_and_in_order_with_any_number_of_slots() {
    let requests = requests(7, 3);
    let expected: Vec<(u64, u32)> = (0..7).flat_map(|p| (0..3).map(move |i| (100 + p, i))).collect();
    for slots in [1, 2, 5, 8, 64] {
        let completions = run(&model(1), &requests, &sampling(), slots).completions;
        assert_eq!(completions.iter().map(|a| (a.prompt_id, a.index)).collect::<Vec<_>>(), expected);
        assert!(completions.iter().all(|a| (1..=12).contains(&a.tokens.len())));
    }
}

/// A completion is a function of its prompt id and index: neighbors, slots and the order of prompts do not
/// matter. (On models whose logits change in the last bit with the batch's shape, a token could differ; here
/// no two candidates are that close.)
#[test]
fn a_completion_depends_only_on_its_prompt_and_index() {
    let model = model(8);
    let all = run(&model, &requests(9, 4), &sampling(), 6).completions;
    let alone: Vec<Completion> = requests(9, 4)
        .iter()
        .rev()
        .flat_map(|r| run(&model, std::slice::from_ref(r), &sampling(), 2).completions)
        .collect();
    for completion in &all {
        assert!(alone.iter().any(|other| same(other, completion)), "{completion:?}");
    }
}

#[test]
fn the_same_chunk_gives_the_same_completions() {
    let run = || run(&model(4), &requests(9, 4), &sampling(), 5).completions;
    assert_eq!(run(), run());
}

/// No row is decoded for a sequence that has ended: the steps process one row for each token after the first,
/// and a prompt is prefilled once for all its completions.
#[test]
fn no_work_is_done_for_finished_rows() {
    let requests = requests(20, 4);
    let slots = 6;
    let Generation { completions, stats } = run(&model(2), &requests, &sampling(), slots);
    let lengths: usize = completions.iter().map(|c| c.tokens.len()).sum();
    let max = completions.iter().map(|c| c.tokens.len()).max().unwrap();
    let min = completions.iter().map(|c| c.tokens.len()).min().unwrap();
    assert!(min < max, "the lengths are not mixed");
    assert_eq!(stats.decoded_rows, lengths - completions.len());
    assert!(stats.steps * slots <= lengths + slots * max, "slots were empty while sequences were queued");
    assert_eq!(stats.prompt_tokens, requests.iter().map(|r| r.prompt.len()).sum::<usize>());
}

#[test]
fn a_stop_string_is_cut_off_and_ends_the_completion() {
    let plain = Sampling { temperature: 0.0, ..sampling() };
    let requests = requests(5, 1);
    let whole = run(&model(3), &requests, &plain, 4).completions;
    let longest = whole.iter().max_by_key(|a| a.tokens.len()).unwrap();
    assert!(longest.tokens.len() > 4);
    let stop = letters(&longest.tokens[2..4]);
    let stopped = run(&model(3), &requests, &Sampling { stop: vec![stop.clone()], ..plain }, 4).completions;
    for (completion, whole) in stopped.iter().zip(&whole) {
        let text = letters(&whole.tokens);
        match text.find(&stop) {
            Some(at) => {
                assert_eq!(letters(&completion.tokens), text[..at]);
                assert_eq!(completion.log_probs.len(), completion.tokens.len());
                assert!(completion.finished);
            }
            None => assert!(same(completion, whole), "{completion:?} not {whole:?}"),
        }
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_an_error_that_names_it() {
    let error = |requests: &[GenerateRequest], max_num_seqs| {
        let noise = NoiseKey { seed: 5, round: 1, purpose: "test".into() };
        let sampling = sampling();
        let config = GenerationConfig {
            sampling: &sampling,
            eos: &[EOS],
            vocab_size: usize::MAX,
            noise: &noise,
            max_num_seqs,
            detokenize: &letters,
        };
        generate(&model(1).inference(Precision::Fp32, 4).unwrap(), requests, &config, &mut |_, _| {})
            .unwrap_err()
            .to_string()
    };
    let request = |length| vec![GenerateRequest { prompt_id: 77, prompt: vec![1; length], samples: 1 }];
    assert!(
        error(&request(53), 2)
            .contains("prompt 77 of 53 tokens and 12 new ones exceed the model's 64 positions")
    );
    assert!(error(&request(0), 2).contains("prompt 77 has no tokens"));
    assert!(error(&request(1), 0).contains("generation.max_num_seqs"));
}
