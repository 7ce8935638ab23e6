//! The files of a job, valid or mutated.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use foil_fuzz_targets::mutate;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/model/llama-tied");
const LETTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs/letters");

const JOB: &str = "\
name: fuzz
seed: 1
rounds: 2
policy: { model: model }
text: { max_length: 32 }
data:
  preferences: [pairs.jsonl]
  golden: [golden.json]
  prompts: [prompts.jsonl]
  sft: [sft.jsonl]
  max_bad_fraction: 0.9
  limits: { prompts: 100 }
sampling: { max_new_tokens: 16, temperature: 1.0 }
reward_step: { samples: 2, batch_pairs: 8, learning_rate: 1e-4 }
policy_step: { method: dpo, samples: 2, batch_sequences: 8, learning_rate: [1e-4, 1e-5] }
resources: { ranks: 1 }
";

const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message.content | trim }}\
     {% else %}{{ message.content }}{{ eos_token if message.role == 'assistant' else '>' }}{% endif %}{% endfor %}";

/// Files by path.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Case {
    /// A valid job, which is accepted.
    pub(crate) fn base() -> io::Result<Self> {
        let letters = |name: &str| fs::read(Path::new(LETTERS).join(name));
        let weights = fs::read(Path::new(FIXTURES).join("model.safetensors"))?;
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(Path::new(FIXTURES).join("config.json"))?)?;
        // Token ids of the letters, in a vocabulary that may be larger.
        for (field, id) in [("bos_token_id", 1), ("eos_token_id", 3), ("pad_token_id", 0)] {
            config[field] = id.into();
        }
        let files = BTreeMap::from([
            ("job.yaml", JOB.as_bytes().to_vec()),
            ("pairs.jsonl", pairs()),
            ("golden.json", golden()),
            ("prompts.jsonl", prompts()),
            ("sft.jsonl", demonstrations()),
            ("model/config.json", serde_json::to_vec_pretty(&config)?),
            (
                "model/generation_config.json",
                br#"{"eos_token_id": [3], "bos_token_id": 1, "do_sample": true}"#.to_vec(),
            ),
            ("model/tokenizer.json", letters("tokenizer.json")?),
            ("model/tokenizer_config.json", letters("tokenizer_config.json")?),
            ("model/chat_template.jinja", TEMPLATE.as_bytes().to_vec()),
            ("model/model.safetensors", weights),
        ]);
        Ok(Case { files })
    }

    /// Applies one to three mutations to one file, rarely to two.
    pub(crate) fn mutated(&self, random: &mut fastrand::Rng) -> Self {
        let mut case = self.clone();
        let files: Vec<&'static str> = self.files.keys().copied().collect();
        for _ in 0..1 + usize::from(random.u8(..) < 32) {
            let Some(name) = random.choice(&files) else { continue };
            if let Some(bytes) = case.files.get_mut(name) {
                for _ in 0..random.usize(1..=3) {
                    mutate::file(name, bytes, random);
                }
            }
        }
        case
    }

    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir.join("model"))?;
        self.files.iter().try_for_each(|(name, bytes)| fs::write(dir.join(name), bytes))
    }

    /// The names of the files that differ from `base`.
    pub(crate) fn changed(&self, base: &Case) -> String {
        let changed = self.files.iter().filter(|(name, bytes)| base.files.get(*name) != Some(bytes));
        changed.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

const WORDS: [&str; 12] =
    ["abcde", "bcdef", "cdefg", "defgh", "acegh", "bdfha", "aceba", "hgfed", "hgfec", "hgfeb", "abc", "def"];

fn pairs() -> Vec<u8> {
    let line = |word: &&str| {
        format!(
            "{{\"prompt\": \"{word}\", \"chosen\": \"{word}!!\", \"rejected\": \"a\", \"margin\": 1.5, \"source\": \"s\"}}\n"
        )
    };
    let messages = r#"{"system": "a", "chosen": [{"role": "user", "content": "bca"}, {"role": "assistant", "content": "abc!"}], "rejected": [{"role": "user", "content": "bca"}, {"role": "assistant", "content": "c"}]}"#;
    let dialogues =
        r#"{"chosen": "\n\nHuman: cab\n\nAssistant: abc!", "rejected": "\n\nHuman: cab\n\nAssistant: c"}"#;
    let scored = r#"{"text": ["cba<sep>abc!", "cba<sep>b"], "score": [2.0, 1.0]}"#;
    format!("{}{messages}\n{dialogues}\n{scored}\n", WORDS.iter().map(line).collect::<String>()).into_bytes()
}

fn golden() -> Vec<u8> {
    let row = |word: &&str| {
        format!(
            "{{\"instruction\": \"{word}\", \"history\": [[\"a\", \"b\"]], \"output\": \"{word}!!\", \"label\": true}}"
        )
    };
    format!("[{}]", WORDS.iter().map(row).collect::<Vec<_>>().join(",\n")).into_bytes()
}

fn prompts() -> Vec<u8> {
    let row =
        |word: &&str| format!("{{\"conversations\": [{{\"from\": \"human\", \"value\": \"{word}\"}}]}}\n");
    WORDS.iter().map(row).collect::<String>().into_bytes()
}

fn demonstrations() -> Vec<u8> {
    let row = |word: &&str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{word}\"}}, {{\"role\": \"assistant\", \"content\": \"{word}!\"}}]}}\n"
        )
    };
    WORDS.iter().map(row).collect::<String>().into_bytes()
}
