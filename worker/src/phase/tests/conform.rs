//! Models of every kind as the phases produce them, checked on their own and against transformers.

use std::path::PathBuf;

use foil_common::conform::{Finding, Measured, Outcome, Probe, check, compare, files, peer};
use serde_json::{Value, json};

use super::policy::made_up_scores;
use super::*;
use crate::conform::measure;

const ROWS: u64 = 8;
/// Size of the tokenizer: the bytes and four special tokens.
const IDS: usize = 260;
const PAD: usize = 256;
const BOS: usize = 257;
const EOS: usize = 258;
const END: usize = 259;

/// A start model and its job's settings.
struct Case {
    name: &'static str,
    config: Value,
    tokenizer_config: Value,
    more: Vec<(&'static str, Value)>,
    job: fn(&mut v1::JobSpec),
}

/// GPT-2's printable stand-in for each byte.
fn stand_ins() -> Vec<char> {
    let printable = |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || byte >= 174;
    let mut spare = 256..;
    let stand_in = |byte: u32| if printable(byte) { byte } else { spare.next().unwrap() };
    (0..256).map(stand_in).map(|code| char::from_u32(code).unwrap()).collect()
}

/// One token for each byte, and `<pad>`, `<s>`, `</s>`, `<end>`.
fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<_, _> =
        stand_ins().into_iter().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let special = |(id, content): (usize, &str)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let added: Vec<Value> =
        [(PAD, "<pad>"), (BOS, "<s>"), (EOS, "</s>"), (END, "<end>")].into_iter().map(special).collect();
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "vocab": vocabulary, "merges": [] },
    })
}

fn config(family: &str, tied: bool, rows: usize) -> Value {
    json!({
        "model_type": family, "hidden_act": "silu", "vocab_size": rows, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": null,
    })
}

const TURNS: &str = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\
    {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}[assistant] {% endif %}";

fn cases() -> Vec<Case> {
    let tokens = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "add_bos_token": true, "clean_up_tokenization_spaces": false,
    });
    let with = |field: &str, value: Value| {
        let mut tokens = tokens.clone();
        tokens[field] = value;
        tokens
    };
    vec![
        Case {
            name: "model's template, full, fp32, untied",
            config: config("llama", false, IDS),
            tokenizer_config: with("chat_template", json!(format!("{{{{ bos_token }}}}{TURNS}"))),
            more: vec![("generation_config.json", json!({ "eos_token_id": [EOS, END], "temperature": 0.6 }))],
            job: |_| {},
        },
        Case {
            name: "job's template and EOS, LoRA, bf16, tied, padded rows",
            config: config("qwen3", true, IDS + 60),
            tokenizer_config: with("chat_template", json!("{{ 'another' }}")),
            more: vec![("special_tokens_map.json", json!({ "eos_token": { "content": "</s>" } }))],
            job: |job| {
                let text = job.text.get_or_insert_default();
                text.template = TURNS.to_owned();
                text.eos_token = "<end>".to_owned();
                let reward = job.reward_step.get_or_insert_default();
                reward.lora = Some(v1::LoraSpec { rank: Some(2), ..Default::default() });
                reward.save_dtype = "bf16".to_owned();
                let policy = job.policy_step.get_or_insert_default();
                policy.lora = Some(v1::LoraSpec { rank: Some(2), ..Default::default() });
                policy.save_dtype = "bf16".to_owned();
            },
        },
        Case {
            name: "hh, padded with EOS, full, bf16, biases",
            config: config("qwen2", true, IDS + 1),
            tokenizer_config: with("pad_token", json!("</s>")),
            more: vec![("generation_config.json", json!({ "eos_token_id": EOS, "pad_token_id": EOS }))],
            job: |job| {
                job.text.get_or_insert_default().template = "hh".to_owned();
                job.reward_step.get_or_insert_default().save_dtype = "bf16".to_owned();
                job.policy_step.get_or_insert_default().save_dtype = "bf16".to_owned();
            },
        },
        Case {
            name: "plain with BOS and a pad of the job's, LoRA, fp32, a bare tokenizer",
            config: config("mistral", false, IDS),
            tokenizer_config: Value::Null,
            more: Vec::new(),
            job: |job| {
                let text = job.text.get_or_insert_default();
                (text.template, text.bos) = ("plain".to_owned(), "always".to_owned());
                text.pad_token = "<end>".to_owned();
                let lora = v1::LoraSpec { rank: Some(2), ..Default::default() };
                job.reward_step.get_or_insert_default().lora = Some(lora.clone());
                job.policy_step.get_or_insert_default().lora = Some(lora);
            },
        },
    ]
}

impl Case {
    /// Runs SFT and a round of training from this start model; returns all three results.
    fn results(&self) -> (TestRank, Vec<v1::Artifact>) {
        let mut job = letters_job();
        job.text.get_or_insert_default().max_length = Some(64);
        (self.job)(&mut job);
        let mut test = TestRank::new(job);
        let start = self.start(&test);
        let sets =
            letters::generate(17, Counts { sft: 16, golden: 0, prompts: ROWS as usize, evaluation: 0 });
        let demonstrations = test.dataset("sft", &sets.sft);
        let sft = Work::Sft(v1::Sft { policy: Some(start.clone()), demonstrations });
        let (tuned, _) = test.gang("r00.sft", sft, &start);

        let prompts = test.dataset("prompts", &sets.prompts);
        let sampling = Some(v1::SamplingSpec::from(&test.context.job.sampling));
        let (samples, _) = test.map("r01.policy.generate", ROWS, |_| {
            let (policy, prompts, sampling) = (Some(tuned.clone()), prompts.clone(), sampling.clone());
            Work::Generate(v1::Generate { policy, prompts, samples: 3, sampling })
        });
        let scores = made_up_scores(&test, &samples);
        let train = Work::TrainPolicy(v1::TrainPolicy {
            policy: Some(tuned.clone()),
            prompts,
            samples: Some(samples),
            scores: Some(scores),
            ref_log_probs: None,
        });
        let (policy, _) = test.gang("r01.policy.train", train, &tuned);

        let pairs: Vec<rows::PairRow> = sets
            .sft
            .iter()
            .map(|row| rows::PairRow {
                id: row.id,
                prompt: row.prompt.clone(),
                chosen: row.answer.clone(),
                rejected: "no".to_owned(),
                margin: None,
                groups: Vec::new(),
            })
            .collect();
        let human = test.dataset("preferences", &pairs).map(Source::Pairs).and_then(source);
        let train = Work::TrainReward(v1::TrainReward { start: Some(tuned.clone()), human, golden: None });
        let (reward, _) = test.gang("r01.reward.train", train, &tuned);
        (test, vec![tuned, policy, reward])
    }

    fn start(&self, test: &TestRank) -> v1::Artifact {
        let mut files = vec![("config.json", self.config.clone()), ("tokenizer.json", tokenizer())];
        files.extend(self.more.iter().cloned());
        if !self.tokenizer_config.is_null() {
            files.push(("tokenizer_config.json", self.tokenizer_config.clone()));
        }
        let put = |(name, content): (&str, Value)| {
            test.objects.put(name, content.to_string().as_bytes(), name).into()
        };
        let objects = files.into_iter().map(put).collect();
        v1::Artifact { name: "start".into(), objects, ..Default::default() }
    }
}

/// Writes an artifact's files like `foil pull`.
fn pull(test: &TestRank, artifact: &v1::Artifact, dir: &Path) {
    for object in &artifact.objects {
        let path = dir.join(&object.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, test.objects.bytes(&object.key)).unwrap();
    }
}

fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv-peers/bin/python");
    if !python.is_file() {
        println!(
            "skipped: results against transformers (needs .venv-peers; run scripts/fixtures/setup-peers)"
        );
        return None;
    }
    Some(python)
}

fn assert_passed(directory: &str, findings: &[Finding]) {
    let fault = findings.iter().find(|finding| finding.outcome != Outcome::Passed);
    assert!(fault.is_none(), "{directory}: {fault:?}");
}

/// Covers full and LoRA training, fp32 and bf16, tied and untied heads, padded embeddings, and templates,
/// EOS, BOS and pad of the model and of the job.
#[test]
fn every_kind_of_result_conforms() {
    let root = tempfile::tempdir().unwrap();
    let mut all: Vec<(Probe, Measured)> = Vec::new();
    for case in cases() {
        let (test, results) = case.results();
        for artifact in results {
            let dir = root.path().join(case.name).join(&artifact.name);
            pull(&test, &artifact, &dir);
            let inspected = files::inspect(&dir);
            let name = format!("{}, {}", case.name, artifact.name);
            assert_passed(&name, &inspected.findings);
            let probe = inspected.probe.unwrap();
            assert_eq!(probe.prompts.len(), 3, "{name}: every prompt of the probe can be rendered");
            let own = measure(&probe);
            assert_passed(&name, &own.findings);
            all.push((probe, own));
        }
    }
    let Some(python) = python() else { return };
    let asked: Vec<(&Probe, &Measured)> = all.iter().map(|(probe, own)| (probe, own)).collect();
    let answers = peer::ask(&python, &asked).unwrap();
    assert_eq!(answers.len(), all.len());
    for ((probe, own), answer) in all.iter().zip(&answers) {
        assert_passed(&probe.directory, &compare::findings(probe, own, answer));
    }
}

/// Known faults, each applied to a valid result.
#[test]
fn a_corrupted_result_does_not_conform() {
    let Some(python) = python() else { return };
    let case = cases().swap_remove(2);
    let (test, results) = case.results();
    let root = tempfile::tempdir().unwrap();
    type Change = fn(&mut Value);
    let faults: [(usize, &str, Change, &[&str]); 4] = [
        (2, "tokenizer_config.json", |v| v["pad_token"] = json!("</s>"), &[check::PAD, check::BATCHES]),
        (1, "tokenizer_config.json", |v| v["eos_token"] = json!("<end>"), &[check::EOS]),
        (1, "generation_config.json", |v| v["eos_token_id"] = json!(END), &[check::EOS, check::PEER_TOKENS]),
        (1, "config.json", |v| v["torch_dtype"] = json!("float32"), &[check::DTYPE]),
    ];
    let mut changed = Vec::new();
    for (number, (result, file, change, expected)) in faults.into_iter().enumerate() {
        let dir = root.path().join(number.to_string());
        pull(&test, &results[result], &dir);
        let mut value: Value = serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap();
        change(&mut value);
        fs::write(dir.join(file), value.to_string()).unwrap();
        let inspected = files::inspect(&dir);
        let probe = inspected.probe.unwrap();
        let own = measure(&probe);
        changed.push((file, expected, inspected.findings, probe, own));
    }
    let asked: Vec<(&Probe, &Measured)> = changed.iter().map(|(.., probe, own)| (probe, own)).collect();
    let answers = peer::ask(&python, &asked).unwrap();
    for ((file, expected, inspected, probe, own), answer) in changed.iter().zip(&answers) {
        let findings = [inspected.clone(), compare::findings(probe, own, answer)].concat();
        for check in *expected {
            let found = findings.iter().find(|finding| finding.check == *check).unwrap();
            assert_eq!(found.outcome, Outcome::Failed, "{file}: {findings:?}");
        }
    }
}
