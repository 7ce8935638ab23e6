use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Map, Value, json};

use super::*;
use crate::spec::check::one_of;
use crate::spec::{Job, SpecError, schema};

struct Validator {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Validator {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("job.schema.json", json_schema()).unwrap();
        // The compiler also holds the schema to the dialect that it names.
        let index = compiler.compile("job.schema.json", &mut schemas);
        let index = index.unwrap_or_else(|error| panic!("{error}"));
        Self { schemas, index }
    }

    fn accepts(&self, file: &Value) -> bool {
        self.schemas.validate(file, self.index).is_ok()
    }
}

fn yaml(text: &str) -> Value {
    serde_norway::from_str(text).unwrap()
}

fn shipped() -> Vec<(String, Value)> {
    let jobs = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs");
    let files = std::fs::read_dir(jobs).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.map(|path| (path.display().to_string(), yaml(&std::fs::read_to_string(&path).unwrap()))).collect()
}

#[test]
fn shipped_job_files_are_valid_and_name_the_schema() {
    let validator = Validator::new();
    let files = shipped();
    assert!(files.len() >= 4, "{files:?}");
    for (path, file) in files {
        assert!(validator.accepts(&file), "{path}");
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text.lines().next();
        assert_eq!(first, Some("# yaml-language-server: $schema=../../proto/job.schema.json"), "{path}");
    }
}

#[test]
fn the_resolved_form_is_valid() {
    let validator = Validator::new();
    for method in crate::spec::Method::NAMES {
        let mut file = shipped().into_iter().find(|(path, _)| path.ends_with("letters.yaml")).unwrap().1;
        file["policy_step"]["method"] = json!(method);
        let wire = schema::normalize("", JOB_SPEC, file).unwrap();
        let job = Job::try_from(serde_json::from_value::<foil_proto::v1::JobSpec>(wire).unwrap()).unwrap();
        let resolved = serde_json::to_value(foil_proto::v1::JobSpec::from(&job)).unwrap();
        assert!(validator.accepts(&resolved), "{method}: {resolved}");
    }
}

#[test]
fn the_schema_refuses_and_accepts_what_the_reader_does() {
    let validator = Validator::new();
    let refused = [
        "rouns: 3",
        "[]",
        "rounds: three",
        "rounds: 2.5",
        "rounds: -1",
        "name: 7",
        "resources: fast",
        "policy_step: { method: ppo }",
        "policy_step: { method: [dpo] }",
        "policy_step: { dpo: {}, rrhf: {} }",
        "policy_step: { method: rrhf, dpo: { beta: 0.2 } }",
        "policy_step: { dpo: { gamma: 1 } }",
        "policy_step: { learning_rate: [1e-5, fast] }",
        "reward_step: { wgan: { weight_clip: 0.1 }, gail: {} }",
        "data: { golden: { pth: a } }",
        "data: { golden: [a, { path: b, weight: fast }] }",
        "data: { prompts: { path: b, columns: { prompt: 7 } } }",
        "data: { sources: { set: golden, path: [7] } }",
        "sampling: { stop: [a, 7] }",
        "resources: { deterministic: 1 }",
        "priority: urgent",
        "priority: 0.5",
        "labels: nlp",
        "labels: { team: 7 }",
        "timeout: 90",
    ];
    let accepted = [
        "{}",
        "name: a",
        "priority: high",
        "priority: -7",
        "priority: null",
        "labels: { team: nlp, stage: null }",
        "labels:",
        "timeout: 90m",
        "rounds: null",
        "rounds: 1e3",
        "policy_step:",
        "policy_step: { method: dpo }",
        "policy_step: { method: dpo, dpo: { beta: 0.2 } }",
        "policy_step: { method: dpo, rrhf: null }",
        "policy_step: { method: null, dpo: null, rrhf: { ranking_weight: 1 } }",
        "policy_step: { learning_rate: 1e-5, lora: { target_modules: q_proj } }",
        "policy_step: { learning_rate: '1e-5' }",
        "policy_step: { learning_rate: [1e-5, '5e-6'], lora: { target_modules: [q_proj, v_proj] } }",
        "reward_step: { loss: wgan, wgan: { human: { margin: true } } }",
        "data: { golden: a.jsonl, preferences: [a.jsonl, b.jsonl.gz] }",
        "data: { golden: { path: a }, prompts: [a, { path: [b, c], weight: 2, columns: { prompt: q } }] }",
        "data: { evaluation: { prompts: [{ path: a, filter: { max_prompt_tokens: 9 } }] } }",
        "data: { sources: { set: golden, path: a } }",
    ];
    let read = |text: &str| schema::normalize("", JOB_SPEC, yaml(text));
    for text in refused {
        assert!(read(text).is_err(), "the reader accepts {text}");
        assert!(!validator.accepts(&yaml(text)), "the schema accepts {text}");
    }
    for text in accepted {
        assert!(read(text).is_ok(), "the reader refuses {text}: {:?}", read(text));
        assert!(validator.accepts(&yaml(text)), "the schema refuses {text}");
    }
}

#[test]
fn bounds_are_those_of_the_reader() {
    let validator = Validator::new();
    for text in ["resources: { ranks: 4097 }", "sampling: { temperature: 101 }", "sampling: { top_p: 1e7 }"] {
        let wire = schema::normalize("", JOB_SPEC, yaml(text)).unwrap();
        assert!(bounds::check(&serde_json::from_value(wire).unwrap()).is_err(), "{text}");
        assert!(!validator.accepts(&yaml(text)), "{text}");
    }
    assert!(validator.accepts(&yaml("resources: { ranks: 4096 }")));
}

/// The paths of all texts of a job file, each with its message and whether it is a list.
fn texts(
    message: &'static str,
    at: &[&'static str],
    found: &mut Vec<(Vec<&'static str>, &'static str, bool)>,
) {
    for field in contract::fields(message) {
        let at = [at, &[field.name.as_str()]].concat();
        match &field.kind {
            Kind::Message(inner) if field.repeated => {
                let first: &'static str = Box::leak(format!("{}[0]", field.name).into_boxed_str());
                texts(inner, &[&at[..at.len() - 1], &[first]].concat(), found);
            }
            Kind::Message(inner) => texts(inner, &at, found),
            Kind::Text => found.push((at, short(message), field.repeated)),
            Kind::Flag | Kind::Count | Kind::Integer | Kind::Map | Kind::Real => {}
        }
    }
}

/// The refusal of a job file that has a meaningless word at `path`.
fn refusal(path: &[&str], repeated: bool) -> Option<SpecError> {
    let mut file = json!({
        "name": "a", "policy": { "model": "/m" },
        "data": { "preferences": ["/p"], "golden": ["/g"], "prompts": ["/q"] },
    });
    if path.starts_with(&["data", "generator"]) {
        file["data"] = json!({ "preferences": ["/p"] });
    }
    let mut at = &mut file;
    for name in path {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        at = match name.strip_suffix("[0]") {
            Some(list) => {
                at[list] = json!([null]);
                &mut at[list][0]
            }
            None => &mut at[*name],
        };
    }
    *at = if repeated { json!(["/zzz"]) } else { json!("/zzz") };
    let wire: foil_proto::v1::JobSpec = serde_json::from_value(file).unwrap();
    Job::try_from(wire).err()
}

#[test]
fn every_choice_of_the_reader_is_an_enum() {
    let mut found = Vec::new();
    texts(JOB_SPEC, &[], &mut found);
    let mut seen = Vec::new();
    for (path, message, repeated) in found {
        let name = path[path.len() - 1];
        let known = CHOICES.iter().find(|(of, field, _)| (*of, *field) == (message, name));
        let expected = match refusal(&path, repeated) {
            Some(SpecError::Field { field, expected, .. }) if field == path.join(".") => Some(expected),
            _ => None,
        };
        match known {
            Some((.., names)) => {
                assert_eq!(expected.as_deref(), Some(one_of(names).as_str()), "{path:?}");
                seen.push((message, name));
            }
            None => assert!(
                // These have a syntax rather than a list of values.
                expected.is_none()
                    || [
                        &["name"][..],
                        &["timeout"],
                        &["ttl_after_finished"],
                        &["text", "template"],
                        &["trackers", "experiment"],
                        &["trackers", "run_name"],
                    ]
                    .contains(&path.as_slice()),
                "the schema does not list the choices at {path:?}: {expected:?}"
            ),
        }
    }
    for (message, field, _) in &CHOICES {
        assert!(seen.contains(&(message, field)), "{message}.{field} is not a field");
    }
}
