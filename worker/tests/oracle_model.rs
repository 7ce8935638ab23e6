//! Compares the models with transformers, using tests/fixtures/model, which scripts/fixtures/model.py
//! creates.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests to a reader, not to clippy

mod model_support;

use foil_torch::runtime::use_cpu_kernels;
use foil_worker::model::{
    DecoderConfig, Inference, LanguageModel, PackedBatch, Parameters, Precision, RewardModel,
};
use model_support::{Fixture, distance};
use tch::{Device, Kind, Tensor};

const BOUND: f64 = 1e-5;

/// Runs `test` with this project's own loops, and with the ATen operations that a GPU uses.
fn on_both_paths(test: impl Fn(&str)) {
    for (own, path) in [(true, "own loops"), (false, "ATen")] {
        use_cpu_kernels(own);
        test(path);
    }
    use_cpu_kernels(true);
}

/// Rows of the real tokens in transformers' `[batch, seq, width]`, which is padded on the right.
fn real(tensor: &Tensor, batch: &PackedBatch) -> Tensor {
    let seq = tensor.size()[1];
    let rows = (0..batch.sequences()).flat_map(|sequence| {
        (0..batch.length(sequence)).map(move |token| sequence as i64 * seq + token as i64)
    });
    tensor.flatten(0, 1).index_select(0, &Tensor::from_slice(&rows.collect::<Vec<i64>>()))
}

/// All rows of a batch.
fn every_row(batch: &PackedBatch) -> Tensor {
    Tensor::arange(batch.rows() as i64, (Kind::Int64, Device::Cpu))
}

fn assert_close(what: &str, fixture: &Fixture, ours: &Tensor, theirs: &Tensor) {
    let distance = distance(ours, theirs);
    println!("{:20} {what:40} {distance:.1e}", fixture.name);
    assert!(distance <= BOUND, "{}: {what}: relative distance {distance:e}", fixture.name);
}

fn assert_gradients(fixture: &Fixture, parameters: &Parameters) {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for (name, tensor) in parameters.iter() {
        let expected = fixture.get(&format!("grad.{name}"));
        assert_close(&format!("grad {name}"), fixture, &tensor.grad(), expected);
        ours.push(tensor.grad().flatten(0, -1));
        theirs.push(expected.flatten(0, -1));
    }
    assert_close("grad of all", fixture, &Tensor::cat(&ours, 0), &Tensor::cat(&theirs, 0));
}

#[test]
fn hidden_states_logits_and_gradients_are_those_of_transformers() {
    on_both_paths(|_| compare_language_models());
}

fn compare_language_models() {
    for fixture in Fixture::language_models() {
        let model = LanguageModel::load(&fixture.dir, Device::Cpu).unwrap();
        model.parameters().set_requires_grad(true);
        let rows = fixture.rows("lengths");
        let batch = PackedBatch::from_sequences(&rows, Device::Cpu).unwrap();
        let hidden = model.forward(&batch, &every_row(&batch), Precision::Fp32).unwrap();
        let logits = model.logits(&hidden);
        assert_close("hidden", &fixture, &hidden, &real(fixture.get("hidden"), &batch));
        assert_close("logits", &fixture, &logits, &real(fixture.get("logits"), &batch));

        let loss = next_token_loss(&logits, &rows);
        assert_close("loss", &fixture, &loss, fixture.get("loss"));
        loss.backward();
        assert_gradients(&fixture, model.parameters());
    }
}

#[test]
fn scores_and_gradients_are_those_of_sequence_classification() {
    on_both_paths(|_| compare_reward_models());
}

fn compare_reward_models() {
    for fixture in Fixture::rewards() {
        let model = RewardModel::load(&fixture.dir, Device::Cpu).unwrap();
        model.parameters().set_requires_grad(true);
        let batch = PackedBatch::from_sequences(&fixture.rows("lengths"), Device::Cpu).unwrap();
        let scores = model.scores(&batch, Precision::Fp32).unwrap();
        assert_close("scores", &fixture, &scores, fixture.get("scores"));
        let loss = weighed_scores(&scores);
        assert_close("loss", &fixture, &loss, fixture.get("loss"));
        loss.backward();
        assert_gradients(&fixture, model.parameters());
    }
}

/// The loss of the language-model gradients in the fixtures.
fn next_token_loss(logits: &Tensor, rows: &[Vec<u32>]) -> Tensor {
    let mut first = 0;
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for row in rows {
        positions.extend((first..).take(row.len() - 1));
        targets.extend(row[1..].iter().map(|&id| i64::from(id)));
        first += row.len() as i64;
    }
    let log_probs = logits.index_select(0, &Tensor::from_slice(&positions)).log_softmax(-1, Kind::Float);
    -log_probs.gather(-1, &Tensor::from_slice(&targets).unsqueeze(-1), false).mean(Kind::Float)
}

/// The loss of the reward-model gradients in the fixtures.
fn weighed_scores(scores: &Tensor) -> Tensor {
    (scores * Tensor::from_slice(&[1.0_f32, -2.0, 3.0, -4.0])).sum(Kind::Float)
}

fn gradients(parameters: &Parameters) -> Vec<(String, Tensor)> {
    parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.grad())).collect()
}

/// Distances of a bf16 run from fp32, for outputs and for all gradients.
fn bf16_distances(fixture: &Fixture) -> (f64, f64) {
    let rows = fixture.rows("lengths");
    let batch = &PackedBatch::from_sequences(&rows, Device::Cpu).unwrap();
    let (outputs, parameters, exact) = if fixture.is_reward() {
        let model = RewardModel::load(&fixture.dir, Device::Cpu).unwrap();
        model.parameters().set_requires_grad(true);
        let scores = model.scores(batch, Precision::Bf16).unwrap();
        weighed_scores(&scores).backward();
        (scores, gradients(model.parameters()), fixture.get("scores").shallow_clone())
    } else {
        let model = LanguageModel::load(&fixture.dir, Device::Cpu).unwrap();
        model.parameters().set_requires_grad(true);
        let logits = model.logits(&model.forward(batch, &every_row(batch), Precision::Bf16).unwrap());
        next_token_loss(&logits, &rows).backward();
        (logits, gradients(model.parameters()), real(fixture.get("logits"), batch))
    };
    let flat = |(name, gradient): &(String, Tensor)| {
        assert_eq!(gradient.kind(), Kind::Float, "{name}");
        (gradient.flatten(0, -1), fixture.get(&format!("grad.{name}")).flatten(0, -1))
    };
    let (ours, theirs): (Vec<_>, Vec<_>) = parameters.iter().map(flat).unzip();
    (distance(&outputs, &exact), distance(&Tensor::cat(&ours, 0), &Tensor::cat(&theirs, 0)))
}

#[test]
fn bf16_is_not_much_farther_from_fp32_than_autocast_is() {
    on_both_paths(compare_bf16);
}

fn compare_bf16(path: &str) {
    for fixture in Fixture::all() {
        let (outputs, gradients) = bf16_distances(&fixture);
        let about: serde_json::Value =
            serde_json::from_slice(&std::fs::read(fixture.dir.join("expected.json")).unwrap()).unwrap();
        for (what, ours) in [("outputs", outputs), ("gradients", gradients)] {
            let theirs = about["bf16"][what].as_f64().unwrap();
            println!("{:20} bf16 {what:10} {ours:.1e}, autocast {theirs:.1e}, {path}", fixture.name);
            assert!(ours <= 1.5 * theirs, "{} by {path}: {what}: {ours:e} against {theirs:e}", fixture.name);
        }
    }
}

/// Continues all prompts together, `count` tokens each.
fn greedy(inference: &Inference<'_>, prompts: &[Vec<u32>], count: usize) -> Vec<Vec<u32>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    let slots: Vec<usize> = (0..prompts.len()).collect();
    let mut cache = inference.new_cache(slots.len(), longest + count);
    let batch = PackedBatch::from_sequences(prompts, Device::Cpu).unwrap();
    let mut hidden = inference.prefill(&batch, &mut cache, &slots).unwrap();
    let mut answers = vec![Vec::new(); prompts.len()];
    loop {
        let best: Vec<i64> = Vec::try_from(inference.logits(&hidden).argmax(-1, false)).unwrap();
        let next: Vec<u32> = best.into_iter().map(|id| id as u32).collect();
        for (answer, id) in answers.iter_mut().zip(&next) {
            answer.push(*id);
        }
        if answers[0].len() == count {
            return answers;
        }
        hidden = inference.decode(&next, &mut cache).unwrap();
    }
}

#[test]
fn greedy_continuations_are_those_of_generate() {
    on_both_paths(compare_continuations);
}

fn compare_continuations(path: &str) {
    for fixture in Fixture::language_models() {
        let model = LanguageModel::load(&fixture.dir, Device::Cpu).unwrap();
        let expected = fixture.ids("greedy");
        let answers = greedy(
            &model.inference(Precision::Fp32, 4).unwrap(),
            &fixture.rows("prompts"),
            expected[0].len(),
        );
        assert_eq!(answers, expected, "{} by {path}", fixture.name);
    }
}

#[test]
fn stories260k_tells_the_expected_story() {
    let Some(dir) = foil_common::test_models::path("models/stories260K") else { return };
    let model = LanguageModel::load(&dir, Device::Cpu).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let expected = std::fs::read_to_string(dir.join("expected_greedy_200.txt")).unwrap();

    let start = vec![model.config().bos_token_id.unwrap()];
    let told = greedy(&model.inference(Precision::Fp32, 4).unwrap(), &[start], 200).remove(0);
    let text = tokenizer.decode(&told, true).unwrap();
    assert_eq!(text.trim(), expected.trim());
    let listed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("greedy_ids.json")).unwrap()).unwrap();
    let listed: Vec<u32> = serde_json::from_value(listed["greedy_ids_first60_f32_numpy"].clone()).unwrap();
    assert_eq!(told[..listed.len()], listed);
}

#[test]
fn the_fixtures_cover_every_family() {
    let mut families: Vec<_> = Fixture::all()
        .iter()
        .map(|fixture| DecoderConfig::load(&fixture.dir).unwrap().family.model_type())
        .collect();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families, ["llama", "mistral", "qwen2", "qwen3"]);
}
