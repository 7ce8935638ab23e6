use foil_common::spec::Sampling;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{Answering, GenerateRequest, Generated, Generation, NoiseKey, generate};
use crate::model::{DecoderConfig, LanguageModel, PackedBatch, Precision};

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

fn run(model: &LanguageModel, requests: &[GenerateRequest], sampling: &Sampling, slots: usize) -> Generation {
    let noise = NoiseKey { seed: 5, round: 1, purpose: "test".into() };
    let how =
        Answering { sampling, eos: &[EOS], vocabulary: usize::MAX, noise: &noise, slots, text: &letters };
    generate(&model.inference(Precision::Fp32, 4).unwrap(), requests, &how, &mut |_, _| {}).unwrap()
}

/// All but the last bits of the log-probabilities, which change with the batch's shape.
fn same(a: &Generated, b: &Generated) -> bool {
    let near = a.log_probs.iter().zip(&b.log_probs).all(|(a, b)| (a - b).abs() < 1e-5);
    near && (a.prompt_id, a.index, &a.tokens, a.finished) == (b.prompt_id, b.index, &b.tokens, b.finished)
}

/// Greedy decoding by whole forward passes, one prompt at a time.
fn greedy_by_forward(model: &LanguageModel, prompt: &[u32], most: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + most {
        let batch = PackedBatch::of_sequences(&[&tokens], Device::Cpu).unwrap();
        let hidden = tch::no_grad(|| model.forward(&batch, &batch.last_rows(), Precision::Fp32)).unwrap();
        let next = model.logits(&hidden).argmax(-1, false).int64_value(&[0]) as u32;
        tokens.push(next);
        if next == EOS {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

#[test]
fn greedy_answers_are_those_of_whole_forward_passes() {
    let model = model(3);
    let requests = requests(11, 1);
    let greedy = Sampling { temperature: 0.0, ..sampling() };
    for slots in [1, 3, 16] {
        let generation = run(&model, &requests, &greedy, slots);
        for (answer, request) in generation.answers.iter().zip(&requests) {
            assert_eq!(answer.tokens, greedy_by_forward(&model, &request.prompt, 12), "{slots} slots");
            assert_eq!(answer.finished, answer.tokens.last() == Some(&EOS));
        }
    }
}

/// log p of each token of `answer`, in a whole forward pass of its own.
fn log_probs_by_forward(model: &LanguageModel, prompt: &[u32], answer: &[u32]) -> Vec<f64> {
    let ids = [prompt, answer].concat();
    let batch = PackedBatch::of_sequences(&[&ids], Device::Cpu).unwrap();
    let all = Tensor::arange(ids.len() as i64, (Kind::Int64, Device::Cpu));
    let hidden = tch::no_grad(|| model.forward(&batch, &all, Precision::Fp32)).unwrap();
    let log_p = tch::no_grad(|| model.logits(&hidden)).log_softmax(-1, Kind::Double);
    let at =
        |(place, id): (usize, &u32)| log_p.double_value(&[(prompt.len() + place) as i64 - 1, i64::from(*id)]);
    answer.iter().enumerate().map(at).collect()
}

/// Greedy, sampled at a temperature, filtered and penalised; EOS among the tokens.
#[test]
fn recorded_log_probabilities_are_those_of_whole_forward_passes() {
    let plain = sampling();
    let hot = Sampling { temperature: 1.4, min_new_tokens: 2, ..sampling() };
    let filtered = Sampling { temperature: 0.8, top_p: 0.9, repetition_penalty: 1.2, ..sampling() };
    let greedy = Sampling { temperature: 0.0, ..sampling() };
    let shortest = Sampling { min_new_tokens: 3, top_k: 5, ..sampling() };
    for (seed, sampling) in [plain, hot, filtered, greedy, shortest].iter().enumerate() {
        let model = model(seed as u64);
        let requests = requests(7, 2);
        let (mut ends, mut lengths) = (0, std::collections::BTreeSet::new());
        for slots in [3, 32] {
            for answer in run(&model, &requests, sampling, slots).answers {
                let request = requests.iter().find(|r| r.prompt_id == answer.prompt_id).unwrap();
                let expected = log_probs_by_forward(&model, &request.prompt, &answer.tokens);
                assert_eq!(answer.log_probs.len(), expected.len());
                let near = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() < 1e-4;
                let found = &answer.log_probs;
                assert!(found.iter().zip(&expected).all(near), "{found:?} not {expected:?} by {sampling:?}");
                ends += usize::from(answer.tokens.last() == Some(&EOS));
                lengths.insert(answer.tokens.len());
            }
        }
        assert!(lengths.len() > 1 && ends > 0, "no EOS or no mixed lengths by {sampling:?}");
    }
}

#[test]
fn every_sample_comes_once_in_order_whatever_the_slots() {
    let requests = requests(7, 3);
    let expected: Vec<(u64, u32)> = (0..7).flat_map(|p| (0..3).map(move |i| (100 + p, i))).collect();
    for slots in [1, 2, 5, 8, 64] {
        let answers = run(&model(1), &requests, &sampling(), slots).answers;
        assert_eq!(answers.iter().map(|a| (a.prompt_id, a.index)).collect::<Vec<_>>(), expected);
        assert!(answers.iter().all(|a| (1..=12).contains(&a.tokens.len())));
    }
}

/// A sample is a function of its address: neighbours, slots and order of the prompts do not matter. (On models whose
/// logits change in the last bit with the batch's shape a draw could differ; this one's draws are not that close.)
#[test]
fn a_sample_depends_on_its_address_alone() {
    let model = model(8);
    let all = run(&model, &requests(9, 4), &sampling(), 6).answers;
    let alone: Vec<Generated> = requests(9, 4)
        .iter()
        .rev()
        .flat_map(|r| run(&model, std::slice::from_ref(r), &sampling(), 2).answers)
        .collect();
    for answer in &all {
        assert!(alone.iter().any(|other| same(other, answer)), "{answer:?}");
    }
}

#[test]
fn the_same_chunk_gives_the_same_answers() {
    let run = || run(&model(4), &requests(9, 4), &sampling(), 5).answers;
    assert_eq!(run(), run());
}

/// No row is decoded for an answer that has ended: the steps process one row for each token after an answer's first,
/// and a prompt is read once for all its samples.
#[test]
fn no_work_is_done_for_finished_rows() {
    let requests = requests(20, 4);
    let slots = 6;
    let Generation { answers, work } = run(&model(2), &requests, &sampling(), slots);
    let lengths: usize = answers.iter().map(|a| a.tokens.len()).sum();
    let longest = answers.iter().map(|a| a.tokens.len()).max().unwrap();
    let shortest = answers.iter().map(|a| a.tokens.len()).min().unwrap();
    assert!(shortest < longest, "the lengths are not mixed");
    assert_eq!(work.decoded_rows, lengths - answers.len());
    assert!(work.steps * slots <= lengths + slots * longest, "slots stood empty while samples waited");
    assert_eq!(work.prompt_tokens, requests.iter().map(|r| r.prompt.len()).sum::<usize>());
}

#[test]
fn a_stop_text_is_cut_off_and_ends_the_answer() {
    let plain = Sampling { temperature: 0.0, ..sampling() };
    let requests = requests(5, 1);
    let whole = run(&model(3), &requests, &plain, 4).answers;
    let longest = whole.iter().max_by_key(|a| a.tokens.len()).unwrap();
    assert!(longest.tokens.len() > 4);
    let stop = letters(&longest.tokens[2..4]);
    let stopped = run(&model(3), &requests, &Sampling { stop: vec![stop.clone()], ..plain }, 4).answers;
    for (answer, whole) in stopped.iter().zip(&whole) {
        let text = letters(&whole.tokens);
        match text.find(&stop) {
            Some(at) => {
                assert_eq!(letters(&answer.tokens), text[..at]);
                assert_eq!(answer.log_probs.len(), answer.tokens.len());
                assert!(answer.finished);
            }
            None => assert!(same(answer, whole), "{answer:?} not {whole:?}"),
        }
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_by_name() {
    let how = |requests: &[GenerateRequest], slots| {
        let noise = NoiseKey { seed: 5, round: 1, purpose: "test".into() };
        let sampling = sampling();
        let how = Answering {
            sampling: &sampling,
            eos: &[EOS],
            vocabulary: usize::MAX,
            noise: &noise,
            slots,
            text: &letters,
        };
        generate(&model(1).inference(Precision::Fp32, 4).unwrap(), requests, &how, &mut |_, _| {})
            .unwrap_err()
            .to_string()
    };
    let request = |length| vec![GenerateRequest { prompt_id: 77, prompt: vec![1; length], samples: 1 }];
    assert!(
        how(&request(53), 2)
            .contains("prompt 77 of 53 tokens and 12 new ones exceed the model's 64 positions")
    );
    assert!(how(&request(0), 2).contains("prompt 77 has no tokens"));
    assert!(how(&request(1), 0).contains("generation.max_num_seqs"));
}
