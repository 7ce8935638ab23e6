//! Benchmarks of a rank's host-side work around the model: `cargo bench -p foil-worker`.

// A failed setup fails the benchmark.
#![allow(clippy::unwrap_used)]

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use foil_common::spec::Sampling;
use foil_proto::v1;
use foil_worker::generate::NoiseKey;
use foil_worker::generate::sampler::{Context, Sampler};
use foil_worker::model::{PackedBatch, packed_rows};
use foil_worker::train::{RankInfo, RowShape, StepPlan};
use prost::Message;
use tch::Device;

const VOCAB_SIZE: usize = 32_000;
const GROUPS: u32 = 64;
const COMPLETIONS: u32 = 4;

fn main() {
    divan::main();
}

/// Four completions of about 100 tokens, of different lengths, for each of 64 prompts.
fn groups() -> Vec<Vec<Vec<u32>>> {
    let token =
        |seed: u32, at: u32| seed.wrapping_mul(2_654_435_761).wrapping_add(at * 97) % VOCAB_SIZE as u32;
    let tokens = |seed: u32, length: u32| (0..length).map(move |at| token(seed, at));
    let group = |prompt: u32| {
        let completion = move |index: u32| {
            let seed = 1000 + prompt * COMPLETIONS + index;
            tokens(prompt, 80 + prompt % 40).chain(tokens(seed, 60 + seed % 80)).collect()
        };
        (0..COMPLETIONS).map(completion).collect()
    };
    (0..GROUPS).map(group).collect()
}

/// Plans a step: distributes rows over four ranks and splits them into micro-batches.
#[divan::bench]
fn plan_a_step(bencher: Bencher<'_, '_>) {
    let shape = |group: &Vec<Vec<u32>>| RowShape {
        cost: packed_rows(group),
        tokens: group.iter().map(Vec::len).sum(),
        items: group.len(),
        weight: 1.0,
    };
    let shapes: Vec<RowShape> = groups().iter().map(shape).collect();
    let rows: Vec<usize> = (0..shapes.len()).collect();
    let rank = RankInfo { rank: 1, world: 4 };
    bencher
        .counter(ItemsCount::new(rows.len()))
        .bench(|| StepPlan::new(black_box(&rows), &shapes, rank, 4096));
}

/// Packs sequences, with shared prefixes stored once.
#[divan::bench]
fn collate(bencher: Bencher<'_, '_>) {
    let groups = groups();
    let tokens = groups.iter().flatten().map(Vec::len).sum::<usize>();
    let counter = ItemsCount::new(tokens);
    bencher.counter(counter).bench(|| PackedBatch::from_groups(black_box(&groups), Device::Cpu).unwrap());
}

/// Samples one token from a row of logits with each kind of filter.
#[divan::bench(args = ["plain", "top_k", "top_p", "penalty", "greedy"])]
fn sample(bencher: Bencher<'_, '_>, filter: &str) {
    let plain = Sampling::default();
    let sampling = match filter {
        "top_k" => Sampling { top_k: 50, ..plain },
        "top_p" => Sampling { top_p: 0.9, ..plain },
        "penalty" => Sampling { repetition_penalty: 1.1, ..plain },
        "greedy" => Sampling { temperature: 0.0, ..plain },
        _ => plain,
    };
    let key = NoiseKey { seed: 1, round: 1, purpose: "bench".to_owned() };
    let noise = key.completion(1, 0);
    let logits: Vec<f32> =
        (0..VOCAB_SIZE).map(|token| 12.0 * noise.step(0).complement(token) as f32).collect();
    let prompt: Vec<u32> = (0..200).collect();
    let context = Context { prompt: &prompt, completion: &prompt[..50], eos: &[2] };
    let mut sampler = Sampler::new(&sampling);
    let mut step = 0;
    bencher.counter(ItemsCount::new(VOCAB_SIZE)).with_inputs(|| logits.clone()).bench_local_values(
        |mut logits| {
            step += 1;
            sampler.sample(&mut logits, context, noise.step(step))
        },
    );
}

/// A chunk of samples in the form that a rank reports.
fn chunk() -> v1::SampleBatch {
    let sample = |(prompt_id, index, tokens): (u32, u32, Vec<u32>)| v1::Sample {
        prompt_id: prompt_id.into(),
        index,
        text: "a word of text ".repeat(tokens.len() / 4),
        tokens,
        finished: true,
        ..Default::default()
    };
    let completions = groups().into_iter().enumerate().flat_map(|(prompt, group)| {
        group.into_iter().enumerate().map(move |(index, tokens)| (prompt as u32, index as u32, tokens))
    });
    v1::SampleBatch {
        phase: "r01.policy.generate".to_owned(),
        chunk: 3,
        samples: completions.map(sample).collect(),
        tokenizer_blake3: "0".repeat(64),
    }
}

#[divan::bench]
fn encode_a_chunk(bencher: Bencher<'_, '_>) {
    let chunk = chunk();
    bencher.counter(BytesCount::new(chunk.encoded_len())).bench(|| black_box(&chunk).encode_to_vec());
}

#[divan::bench]
fn decode_a_chunk(bencher: Bencher<'_, '_>) {
    let bytes = chunk().encode_to_vec();
    let decode = || v1::SampleBatch::decode(black_box(bytes.as_slice())).unwrap();
    bencher.counter(BytesCount::new(bytes.len())).bench(decode);
}

#[divan::bench]
fn hash_a_chunk(bencher: Bencher<'_, '_>) {
    let bytes = chunk().encode_to_vec();
    bencher.counter(BytesCount::new(bytes.len())).bench(|| blake3::hash(black_box(&bytes)));
}
