use serde_json::{Value, json};

use super::*;
use crate::spec::{DeviceKind, LoraTarget, Precision, Sharding};

const BF16: Compute =
    Compute { device: DeviceKind::Cuda, precision: Precision::Bf16, threads: 1, masters: true };
const FP32: Compute =
    Compute { device: DeviceKind::Cpu, precision: Precision::Fp32, threads: 1, masters: true };

/// A config.json with the fields that matter: family, [hidden, intermediate, layers, heads, key heads,
/// vocabulary], tied.
fn config(family: &str, counts: [u64; 6], tied: bool) -> Value {
    let [hidden, intermediate, layers, heads, kv_heads, vocabulary] = counts;
    json!({
        "model_type": family, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "tie_word_embeddings": tied, "sliding_window": null,
    })
}

fn llama_7b() -> ModelShape {
    ModelShape::from_config(&config("llama", [4096, 11008, 32, 32, 32, 32000], false)).unwrap()
}

/// A model small enough to compute by hand: one layer, hidden 4, intermediate 8, vocabulary 10, and two
/// heads.
fn tiny() -> ModelShape {
    ModelShape::from_config(&config("llama", [4, 8, 1, 2, 2, 10], false)).unwrap()
}

#[test]
fn parameters_are_counted_as_published() {
    let mut qwen3 = config("qwen3", [1024, 3072, 28, 16, 8, 151_936], true);
    qwen3["head_dim"] = json!(128);
    let known = [
        (config("llama", [576, 1536, 30, 9, 3, 49152], true), 134_515_008), // SmolLM2-135M
        (config("llama", [4096, 11008, 32, 32, 32, 32000], false), 6_738_415_616), // Llama-2-7B
        (config("llama", [4096, 14336, 32, 32, 8, 128_256], false), 8_030_261_248), // Llama-3-8B
        (config("mistral", [4096, 14336, 32, 32, 8, 32000], false), 7_241_732_096), // Mistral-7B-v0.1
        (config("qwen2", [896, 4864, 24, 14, 2, 151_936], true), 494_032_768), // Qwen2.5-0.5B
        (config("qwen2", [3584, 18944, 28, 28, 4, 152_064], false), 7_615_616_512), // Qwen2.5-7B
        (qwen3, 596_049_920),                                               // Qwen3-0.6B
    ];
    for (config, parameters) in known {
        assert_eq!(
            ModelShape::from_config(&config).unwrap().parameters(Head::Language),
            parameters,
            "{config}"
        );
    }
    // stories15M's file: a header of 28 bytes, the weights, and two tables of angles, [256, 24] each.
    let stories = ModelShape::from_config(&config("llama", [288, 768, 6, 6, 6, 32000], true)).unwrap();
    assert_eq!(28 + 4 * (stories.parameters(Head::Language) + 2 * 256 * 24), 60_816_028);
    // A reward head is one row instead of 32,000.
    assert_eq!(llama_7b().parameters(Head::Reward), 6_738_415_616 - 31_999 * 4096);
}

#[test]
fn adapters_are_counted_as_by_peft() {
    let all = [
        LoraTarget::QProj,
        LoraTarget::KProj,
        LoraTarget::VProj,
        LoraTarget::OProj,
        LoraTarget::GateProj,
        LoraTarget::UpProj,
        LoraTarget::DownProj,
    ];
    assert_eq!(llama_7b().adapters(8, &[LoraTarget::QProj, LoraTarget::VProj]), 4_194_304);
    assert_eq!(llama_7b().adapters(16, &all), 39_976_960);
}

#[test]
fn an_invalid_config_is_named_by_its_field() {
    let message = |field: &str, value: Value| {
        let mut config = config("llama", [4, 8, 1, 2, 2, 10], false);
        config[field] = value;
        ModelShape::from_config(&config).unwrap_err().to_string()
    };
    assert_eq!(
        message("hidden_size", json!(0)),
        "config.json: hidden_size: found 0, expected an integer from 1 to 262144"
    );
    assert!(
        message("model_type", json!("gpt2"))
            .starts_with("config.json: model_type \"gpt2\" is not implemented: use a model of one of these")
    );
    assert!(message("vocab_size", Value::Null).contains("vocab_size: found null"));
    assert!(message("num_key_value_heads", json!(3)).ends_with("expected an integer from 1 to 2"));
    assert!(message("tie_word_embeddings", json!("yes")).ends_with("expected true or false"));
    assert!(message("head_dim", json!(200_000)).contains("head_dim"));
    assert!(ModelShape::from_config(&json!([])).unwrap_err().to_string().contains("a JSON object"));
}

#[test]
fn activations_on_a_cpu_equal_a_count_by_hand() {
    let batch = Batch { tokens: 3, outputs: 2, keys: 3, longest: 3 };
    let pass = Pass { shape: &tiny(), compute: FP32, batch };
    // Per token: the stream, its norm's number and result, q, k and v in fp32.
    let entry = 3 * (16 + 4 + 16 + 3 * 16);
    // Per token read: the context, the second norm's three, gate, up and their product.
    let exit = 2 * (16 + 16 + 4 + 16 + 3 * 32);
    let angles_and_ids = 3 * (8 + 16);
    let end = 2 * (16 + 4);
    assert_eq!(pass.kept(), entry + exit + angles_and_ids + end);
    // A recomputed layer is recomputed for all its tokens.
    let again = 3 * (16 + 16) + entry + exit / 2 * 3 + angles_and_ids + end;
    assert_eq!(pass.kept_by_checkpoints(), again);
    assert_eq!(pass.loss(true).gradients, 4 * 40 + 2 * 16);
    assert_eq!(pass.loss(true).scratch, 2 * 16 + 4 * 2 * 10);
    assert_eq!(pass.loss(false).gradients, 2 * 16);
    // Between an adapter's halves, of rank 2 at three of the layer's matrices.
    assert_eq!(pass.kept_by_adapters(2, 3), 3 * 2 * 3 * 4);
}

/// The classic arithmetic of mixed precision: 4 + 4 + 8 bytes per parameter, and 2 for bf16 copies of the
/// matrices.
#[test]
fn static_bytes_follow_parameters_ranks_and_sharding() {
    let shape = llama_7b();
    let model = Model { shape: &shape, head: Head::Language };
    let batch = Batch { tokens: 4096, outputs: 4096, keys: 4096, longest: 512 };
    let with = |sharding, adapters| {
        let how = Training { ranks: 8, sharding, checkpointing: true, adapters, snapshots: true };
        training(model, how, batch, BF16)
    };
    let parameters = 6_738_415_616;
    let whole = with(Sharding::Ddp, None);
    assert_eq!(
        (whole.weights, whole.gradients, whole.optimizer),
        (4 * parameters, 4 * parameters, 8 * parameters)
    );
    // An eighth of the state for a checkpoint, in the host's memory.
    assert_eq!((whole.snapshot, whole.pinned), (0, 12 * parameters / 8));
    assert!(whole.parts().iter().all(|(_, bytes)| *bytes != whole.pinned));
    // All but embeddings, head and norms; of one layer at a time if backward casts again.
    let copies = 2 * (parameters - 2 * 32000 * 4096 - 65 * 4096);
    assert_eq!(whole.copies, copies / 32);
    let how = Training {
        ranks: 8,
        sharding: Sharding::Ddp,
        checkpointing: false,
        adapters: None,
        snapshots: false,
    };
    assert_eq!(training(model, how, batch, BF16).copies, copies);
    assert_eq!(inference(model, 1, batch, BF16).copies, copies / 32);
    let shared = with(Sharding::Zero1, None);
    // An eighth of the two moments.
    assert_eq!(shared, Estimate { optimizer: parameters / 8 * 8, ..whole });
    // An eighth of everything, and of copies a layer and the embeddings.
    let sharded = with(Sharding::Fsdp, None);
    let eighth = parameters / 8;
    assert_eq!((sharded.weights, sharded.gradients, sharded.optimizer), (4 * eighth, 4 * eighth, 8 * eighth));
    assert_eq!(sharded.pinned, 12 * eighth);
    assert!(sharded.copies < copies / 10 && sharded.total() < shared.total() / 2, "{sharded:?}");
    assert_eq!(sharded.activations, whole.activations);
    let adapters = Adapters { parameters: 39_976_960, rank: 16, targets: 7 };
    let lora = with(Sharding::Ddp, Some(adapters));
    assert_eq!((lora.gradients, lora.optimizer), (4 * 39_976_960, 8 * 39_976_960));
    assert_eq!((lora.weights, lora.pinned), (4 * (parameters + 39_976_960), 12 * 39_976_960 / 8));
}

#[test]
fn checkpointing_keeps_less_and_a_reward_model_has_no_logits() {
    let shape = llama_7b();
    let batch = Batch { tokens: 4096, outputs: 4096, keys: 4096, longest: 512 };
    let of = |head, checkpointing| {
        let how =
            Training { ranks: 1, sharding: Sharding::Ddp, checkpointing, adapters: None, snapshots: false };
        training(Model { shape: &shape, head }, how, batch, BF16)
    };
    let (kept, again) = (of(Head::Language, false), of(Head::Language, true));
    assert!(again.activations * 5 < kept.activations, "{again:?} {kept:?}");
    assert_eq!(of(Head::Reward, true).logits, 0);
    assert_eq!(of(Head::Reward, true).activations, again.activations);
    // The second half of the last layer runs only at output tokens.
    let few = Batch { outputs: 16, ..batch };
    let pass = |batch| Pass { shape: &shape, compute: BF16, batch }.kept();
    assert!(pass(few) < pass(batch) && pass(few) > pass(batch) / 32 * 31);
}

#[test]
fn a_cache_holds_every_slot_and_the_staging_slot() {
    let shape = llama_7b();
    let decoding = Decoding { max_num_seqs: 63, prompt: 256, completion: 256 };
    let estimate = generation(&shape, decoding, BF16);
    // 32 layers of keys and values, 4096 wide, in bf16: half a MiB per token.
    assert_eq!(estimate.kv_cache, 64 * 512 * (512 << 10));
    assert_eq!(estimate.copies, 2 * (shape.matrices() + shape.vocabulary_matrix()));
    assert_eq!((estimate.gradients, estimate.optimizer, estimate.activations), (0, 0, 0));
}

/// Without masters, weights take two bytes except for norms and a reward model's head, and nothing is cast on
/// GPUs.
#[test]
fn phases_that_do_not_train_hold_the_compute_precision_with_fsdp() {
    let shape = llama_7b();
    let decoding = Decoding { max_num_seqs: 8, prompt: 256, completion: 256 };
    let batch = Batch { tokens: 4096, outputs: 4096, keys: 4096, longest: 512 };
    let compute = Compute { masters: false, ..BF16 };
    let norms = 65 * 4096;
    let language = 2 * (6_738_415_616 - norms) + 4 * norms;
    let generated = generation(&shape, decoding, compute);
    assert_eq!((generated.weights, generated.copies), (language, 0));
    let scored = inference(Model { shape: &shape, head: Head::Reward }, 1, batch, compute);
    let head = 4096;
    assert_eq!((scored.weights, scored.copies), (language - 2 * 32000 * 4096 + 4 * head, 0));
    // The policy and its reference, and later the reward model alone.
    let of = |with_reference, together| {
        let models = Evaluated { policy: &shape, reward: &shape, with_reference, together };
        evaluation(models, decoding, batch, compute)
    };
    assert_eq!((of(false, false).weights, of(true, false).weights), (language, 2 * language));
    assert_eq!(of(true, true), Estimate { weights: 2 * language + scored.weights, ..of(true, false) });
}

#[test]
fn evaluation_holds_up_to_three_models_at_once() {
    let shape = llama_7b();
    let decoding = Decoding { max_num_seqs: 8, prompt: 256, completion: 256 };
    let batch = Batch { tokens: 4096, outputs: 4096, keys: 4096, longest: 512 };
    let of = |with_reference| {
        let models = Evaluated { policy: &shape, reward: &shape, with_reference, together: true };
        evaluation(models, decoding, batch, BF16)
    };
    let (language, reward) = (4 * shape.parameters(Head::Language), 4 * shape.parameters(Head::Reward));
    assert_eq!(of(false).weights, language + reward);
    assert_eq!(of(true).weights, 2 * language + reward);
    assert!(of(true).total() > generation(&shape, decoding, BF16).total());
    let read = inference(Model { shape: &shape, head: Head::Language }, 2, batch, BF16);
    assert_eq!(read.weights, 2 * language);
    assert!(read.logits > 0 && read.kv_cache == 0);
}

#[test]
fn parts_add_up_to_the_total() {
    let shape = tiny();
    let how = Training {
        ranks: 2,
        sharding: Sharding::Zero1,
        checkpointing: false,
        adapters: None,
        snapshots: true,
    };
    let batch = Batch { tokens: 3, outputs: 2, keys: 3, longest: 3 };
    let estimate = training(Model { shape: &shape, head: Head::Language }, how, batch, FP32);
    let Estimate { weights, copies, gradients, optimizer, activations, .. } = estimate;
    let Estimate { logits, kv_cache, working, snapshot, reserve, pinned, .. } = estimate;
    let trained = weights + copies + gradients + optimizer + activations;
    assert_eq!(estimate.total(), trained + logits + kv_cache + working + snapshot + reserve);
    // On a CPU the device's memory is the host's.
    assert_eq!((snapshot, pinned), (12 * shape.parameters(Head::Language) / 2, 0));
    assert_eq!((copies, reserve, kv_cache), (0, 0, 0));
}
