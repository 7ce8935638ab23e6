mod methods;

use std::fs;

use foil_proto::v1;

use super::*;

const LEAST: &str = "
name: least
policy: { model: model }
data: { preferences: pairs.jsonl, golden: golden.jsonl, prompts: prompts.jsonl }
";

fn load(text: &str, settings: &[&str]) -> Result<v1::JobSpec, SpecError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.yaml");
    fs::write(&path, text).unwrap();
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    file::load(&path, &settings)
}

fn job(text: &str, settings: &[&str]) -> Job {
    Job::try_from(load(text, settings).unwrap()).unwrap()
}

fn message(text: &str, settings: &[&str]) -> String {
    load(text, settings).unwrap_err().to_string()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let job = job(LEAST, &[]);
    assert_eq!((job.seed, job.rounds, job.text.max_length), (0, 3, 512));
    assert_eq!(job.policy_step.learning_rate, [5e-6, 2e-6, 9e-7]);
    assert_eq!(
        (job.reward_step.apo_weight, job.reward_step.samples, job.reward_step.batch_pairs),
        (1.0, 4, 64)
    );
    assert_eq!((job.reward_step.optimizer.beta1, job.reward_step.optimizer.max_grad_norm), (0.9, Some(1.0)));
    assert_eq!((job.generation.chunk_prompts, job.generation.max_num_seqs), (32, 32));
    assert_eq!(job.evaluation.sampling.max_new_tokens, job.sampling.max_new_tokens);
    assert_eq!(
        (job.evaluation.metric_for_best_model, job.evaluation.kl_prompts),
        (BestMetric::RewardGain, 64)
    );
    assert_eq!((job.resources.ranks, job.resources.device), (1, DeviceKind::Cpu));
    assert!(!job.has_sft() && job.reward.model.is_none());
}

#[test]
fn the_resolved_form_reads_back_as_the_same_job() {
    for preset in std::iter::once(&"null").chain(Preset::NAMES) {
        let setting = format!("preset={preset}");
        let job = job(LEAST, &[&setting, "text.template='{{ bos_token }}x'", "sampling.stop=[\"\\n\", b]"]);
        assert_eq!(Job::try_from(v1::JobSpec::from(&job)).unwrap(), job, "{preset}");
    }
}

#[test]
fn presets_give_way_to_fields() {
    let with = job(LEAST, &["preset=paper-rjs", "reward_step.samples=8"]);
    assert_eq!((with.sampling.temperature, with.reward_step.samples), (1.2, 8));
    assert_eq!(with.evaluation.sampling.top_k, 5);
    let frozen = job(LEAST, &["preset=static-rm"]);
    assert_eq!((frozen.reward_step.apo_weight, frozen.reward_step.refresh), (0.0, Refresh::FirstRound));
    assert!(frozen.trains_reward(1) && !frozen.trains_reward(2));
    assert!(message(LEAST, &["preset=paper-rj"]).contains("did you mean paper-rjs?"));
    assert!(message(LEAST, &["resources.device=gpu"]).contains("did you mean cuda?"));
}

/// Every job file in the repository, by its name.
fn shipped() -> Vec<(String, std::path::PathBuf)> {
    let jobs = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs"));
    let files = fs::read_dir(jobs).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path)).collect()
}

#[test]
fn a_preset_named_on_the_command_line_holds_on_every_job_file() {
    assert!(shipped().len() >= 4);
    for (name, path) in shipped() {
        for preset in Preset::NAMES.iter().filter_map(|name| Preset::parse_optional(name).unwrap()) {
            let spec = file::load(&path, &[format!("preset={preset}")]);
            let Ok(spec) = spec else {
                let said = spec.unwrap_err().to_string();
                assert!(!preset.is_control(), "{name} refuses {preset}: {said}");
                assert!(said.contains(&format!("as preset {preset} sets it")), "{name}: {said}");
                continue;
            };
            let job = Job::try_from(spec).unwrap();
            let resolved = serde_json::to_value(v1::JobSpec::from(&job)).unwrap();
            assert_eq!(preset::contradictions(preset, &resolved), [], "{name} under {preset}");
            assert_eq!(job.preset, Some(preset), "{name}");
            if preset.is_control() {
                assert_eq!(job.warnings(), [] as [String; 0], "{name} under {preset}");
                let own = Job::try_from(file::load(&path, &[]).unwrap()).unwrap();
                assert_ne!(job.reward_step, own.reward_step, "{name}: {preset} changes nothing");
                let alike = Job { preset: own.preset, reward_step: own.reward_step.clone(), ..job };
                assert_eq!(alike, own, "{name}: {preset} changes more than the reward step");
            }
        }
    }
}

#[test]
fn a_file_must_not_contradict_its_control() {
    let restated = format!("{LEAST}reward_step: {{ apo_weight: 1, refresh: every_round, samples: 8 }}\n");
    let found = message(&restated, &["preset=static-rm"]);
    for expected in [
        "job.yaml: reward_step.apo_weight: found 1, expected 0, as preset static-rm sets it; take it out of the file",
        "--set reward_step.apo_weight=VALUE",
        "in reward_step.refresh (every_round, not first_round) too",
    ] {
        assert!(found.contains(expected), "{found}");
    }
    assert!(message(&format!("{restated}preset: static-rm\n"), &[]).contains("as preset static-rm sets it"));
    // A statement that agrees with the control's is no contradiction, and a setting of the field settles it
    // either way.
    assert_eq!(
        job(&restated, &["preset=human-only-refresh", "reward_step.apo_weight=null"]).reward_step.samples,
        8
    );
    let kept = job(&restated, &["preset=human-only-refresh", "reward_step.apo_weight=0.5"]);
    assert_eq!(kept.reward_step.apo_weight, 0.5);
    assert!(
        job(LEAST, &["policy_step.learning_rate=[1e-4, 0.5]"]).warnings()[0]
            .starts_with("policy_step.learning_rate: 0.5")
    );
    let warned = kept.warnings();
    assert!(
        warned.len() == 1 && warned[0].contains("0.5, where the control human-only-refresh has 0"),
        "{warned:?}"
    );
    assert_eq!(job(LEAST, &["reward_step.apo_weight=0.5", "preset=human-only-refresh"]).warnings().len(), 1);
    assert_eq!(
        job(&restated, &["preset=human-only-refresh", "reward_step=null"]).warnings(),
        [] as [String; 0]
    );
}

#[test]
fn a_file_changes_its_base_freely_and_a_control_keeps_that_base() {
    let based = format!("{LEAST}preset: paper-rjs\nrounds: 5\nreward_step: {{ samples: 8 }}\n");
    let own = job(&based, &[]);
    assert_eq!((own.rounds, own.reward_step.samples, own.sampling.temperature), (5, 8, 1.2));
    let control = job(&based, &["preset=static-rm"]);
    assert_eq!((control.rounds, control.reward_step.samples, control.sampling.temperature), (5, 8, 1.2));
    assert_eq!((control.reward_step.apo_weight, control.reward_step.refresh), (0.0, Refresh::FirstRound));
    let found = message(&based, &["preset=paper-dpo"]);
    assert!(found.contains("found 5, expected 3, as preset paper-dpo sets it"), "{found}");
    assert_eq!(job(&based, &["preset=null"]).sampling.temperature, 1.0);
}

#[test]
fn floats_and_single_values_read_as_meant() {
    let text =
        format!("{LEAST}policy_step: {{ learning_rate: 5e-6 }}\nreward_step: {{ learning_rate: 1e-3 }}\n");
    let job = job(&text, &["sft_step.learning_rate=2E-5", "rounds=1e1"]);
    assert_eq!(job.policy_step.learning_rate, [5e-6]);
    assert_eq!((job.reward_step.learning_rate, job.sft_step.learning_rate, job.rounds), (1e-3, 2e-5, 10));
    assert_eq!(job.policy_step.learning_rate_of(3), 5e-6);
}

#[test]
fn paths_are_relative_to_where_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.yaml");
    fs::write(&path, LEAST).unwrap();
    let spec = file::load(&path, &["data.golden=[a.jsonl, /b.jsonl]".to_owned()]).unwrap();
    let here = std::env::current_dir().unwrap();
    let data = spec.data.unwrap();
    assert_eq!(data.preferences, [dir.path().join("pairs.jsonl").to_string_lossy()]);
    assert_eq!(data.golden, [here.join("a.jsonl").to_string_lossy(), "/b.jsonl".into()]);
    assert_eq!(spec.policy.unwrap().model, dir.path().join("model").to_string_lossy());
}

#[test]
fn settings_take_texts_lists_and_null() {
    let job = job(LEAST, &["name=17", "policy_step.learning_rate=[1e-3, 2e-3]", "rounds=4", "rounds=null"]);
    assert_eq!((job.name.as_str(), job.rounds), ("17", 3));
    assert_eq!(job.policy_step.learning_rate, [1e-3, 2e-3]);
    assert!(message(LEAST, &["rounds"]).contains("expected field=value"));
    assert_eq!(
        message(LEAST, &["reward_step.sample=2"]),
        "--set reward_step.sample=2: reward_step.sample: there is no such field; did you mean samples?"
    );
}

#[test]
fn errors_name_file_field_and_choices() {
    let unknown = message(&format!("{LEAST}roundes: 2\n"), &[]);
    assert!(
        unknown.ends_with("job.yaml: roundes: there is no such field; did you mean rounds?"),
        "{unknown}"
    );
    let cases: &[(&str, &str)] = &[
        ("resources.device=gpu", "resources.device: found gpu, expected cpu or cuda"),
        ("rounds=0", "rounds: found 0, expected at least 1"),
        ("rounds=-1", "rounds: found -1, expected a whole number of at least 0"),
        ("sampling.top_p=1.5", "sampling.top_p: found 1.5, expected a number above 0 and at most 1"),
        (
            "sampling.max_new_tokens=512",
            "sampling.max_new_tokens: found 512, expected less than text.max_length (512)",
        ),
        ("policy.init=random", "data.sft is missing; policy.init: random starts from noise"),
        ("evaluation.metric_for_best_model=gold_mean", "gold_mean needs a gold reward"),
        ("data.golden=null", "data.golden is missing; give golden answers"),
        ("policy.model=s3://a/b", "policy.model: found s3://a/b, expected a local path"),
        (
            "data.golden=ftp://a/b",
            "data.golden[0]: found ftp://a/b, expected a local path, or a URL; URLs of inputs begin with",
        ),
        (
            "data.golden={path: http://a/b}",
            "data.golden[0].path[0]: found http://a/b, expected a local path, or a URL",
        ),
        (
            "data.preferences=[b, {path: a, weight: -1}]",
            "data.preferences[1].weight: found -1, expected a number above 0",
        ),
        (
            "data.evaluation.prompts={path: a, columns: {promt: q}}",
            "data.evaluation.prompts[0].columns: found promt, expected a column",
        ),
        (
            "data.golden={path: a, filter: {min_answer_tokens: 3, max_answer_tokens: 2}}",
            "data.golden[0].filter.min_answer_tokens: found 3, expected at most",
        ),
        (
            "data.golden={path: a, wieght: 2}",
            "data.golden.wieght: there is no such field; did you mean weight?",
        ),
        ("data.golden=[a, {path: a, set: sft}]", "data.golden[1].set: found \"sft\", expected nothing"),
        ("sft_step.optimizer.betas=[0.9]", "sft_step.optimizer.betas: found 1 numbers, expected two numbers"),
        ("name=Big", "name: found \"Big\", expected at most 63 lower-case letters"),
        ("text.template=chatml", "expected hh, plain, chat, auto or a Jinja template"),
        ("sampling=3", "sampling: found 3, expected a block of fields"),
    ];
    for (setting, expected) in cases {
        let found = message(LEAST, &[setting]);
        assert!(found.contains(expected), "{setting}: {found}");
    }
}

#[test]
fn what_is_not_a_job_file_says_so() {
    assert!(message("name: [", &[]).contains("not YAML"));
    let twice = "name: j\ndata:\n  golden:\n  - a\n  # more\n\n  prompts: a\n  golden: b\nseed: 1\n";
    let told = message(twice, &[]);
    assert!(told.contains("line 8: golden is given twice, first in line 3"), "{told}");
    let told = message("name: j\nseed : 1\nrounds: 2\nseed: 1\n", &[]);
    assert!(told.contains("line 4: seed is given twice, first in line 2"), "{told}");
    assert!(message("data: {golden: a, golden: b}\n", &[]).contains("duplicate entry"));
    assert!(message("- a\n", &[]).contains("the job file: found a list of 1"));
    assert!(message("", &[]).contains("policy.model is missing"));
    assert!(message("sampling: { top_p: .nan }", &[]).contains("no place in a job file"));
    let absent = file::load(std::path::Path::new("absent.yaml"), &[]).unwrap_err().to_string();
    assert_eq!(absent, "absent.yaml: cannot be read: there is no such file");
}

#[test]
fn local_paths_are_refused_after_upload() {
    let mut wire = load(LEAST, &[]).unwrap();
    let hash = "0".repeat(64);
    wire.policy = Some(v1::PolicySpec { model: format!("model:{hash}:m"), init: String::new() });
    let error = Job::try_from(wire.clone()).unwrap().require_uploaded().unwrap_err();
    assert_eq!(error.field_path(), Some("data.preferences"));
    let data = wire.data.as_mut().unwrap();
    for list in [&mut data.preferences, &mut data.golden, &mut data.prompts] {
        *list = vec![format!("input:{hash}:rows.jsonl")];
    }
    let job = Job::try_from(wire).unwrap();
    job.require_uploaded().unwrap();
    let uploaded = InputRef::Input { blake3: hash, name: "rows.jsonl".into() };
    assert_eq!(job.data.golden, [DataSource::plain(uploaded)]);
}

#[test]
fn schedules_rise_peak_and_decay_to_their_ratio() {
    let linear = Schedule { kind: ScheduleKind::Linear, warmup_steps: 4, min_lr_ratio: 0.1 };
    let factors: Vec<f64> = (1..=14).map(|step| linear.factor(step, 14)).collect();
    assert_eq!(factors[..4], [0.25, 0.5, 0.75, 1.0]);
    assert!((factors[13] - 0.1).abs() < 1e-12 && (factors[8] - 0.55).abs() < 1e-12);
    let cosine = Schedule { kind: ScheduleKind::Cosine, ..linear };
    assert!((cosine.factor(9, 14) - 0.55).abs() < 1e-12 && (cosine.factor(14, 14) - 0.1).abs() < 1e-12);
    let constant = Schedule { kind: ScheduleKind::Constant, warmup_steps: 0, min_lr_ratio: 0.1 };
    assert_eq!((constant.factor(1, 10), constant.factor(10, 10)), (1.0, 1.0));
    let plain = Schedule { kind: ScheduleKind::Linear, warmup_steps: 0, min_lr_ratio: 0.0 };
    assert_eq!((plain.factor(1, 1), plain.factor(1, 3), plain.factor(3, 3)), (1.0, 1.0, 0.0));
}

#[test]
fn the_job_files_that_come_along_are_valid() {
    let jobs = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs"));
    let load = |name: &str| Job::try_from(file::load(&jobs.join(name), &[]).unwrap()).unwrap();
    let letters = load("letters.yaml");
    assert_eq!((letters.rounds, letters.resources.ranks, letters.text.max_length), (6, 2, 32));
    assert_eq!(
        (letters.policy.init, letters.evaluation.metric_for_best_model),
        (Init::Random, BestMetric::GoldMean)
    );
    assert_eq!((letters.sft_step.optimizer.beta2, letters.sft_step.learning_rate), (0.99, 2e-3));
    let hh = load("hh.yaml");
    assert_eq!((hh.rounds, hh.data.limits.preferences, hh.text.template), (2, Some(300), Template::Hh));
}

#[test]
fn a_job_file_is_a_regular_file_of_bounded_size() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |path: &std::path::Path| file::load(path, &[]).unwrap_err().to_string();
    assert!(refusal(dir.path()).contains("directory"));
    assert!(!refusal(std::path::Path::new("/dev/zero")).is_empty());
    let large = dir.path().join("large.yaml");
    fs::write(&large, " ".repeat(5 << 20)).unwrap();
    assert!(refusal(&large).contains("4194304") || refusal(&large).contains("4 MiB"));
}

#[test]
fn a_job_file_of_brackets_is_refused_at_once() {
    for bracket in ["[", "{"] {
        let error = message(&format!("{LEAST}sampling: {}", bracket.repeat(100_000)), &[]);
        assert!(error.contains("1000 brackets are open"), "{error}");
    }
    job(
        &format!("{LEAST}text: {{ template: \"{}\" }}", "{{ bos_token }}{% if [] %}{% endif %}".repeat(500)),
        &[],
    );
}

#[test]
fn sources_stand_in_the_lists_of_their_sets() {
    let text = "
name: mixed
policy: { model: model }
data:
  preferences: [a.jsonl, { path: [b/*.csv, \"s3://bucket/c.parquet\"], weight: 2, columns: { prompt: question } }]
  golden: { path: golden.jsonl, limit: 5 }
  prompts: prompts.jsonl
  evaluation: { prompts: { path: e.jsonl, filter: { max_prompt_tokens: 9 } } }
";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.yaml");
    fs::write(&path, text).unwrap();
    let wire = file::load(&path, &[]).unwrap();
    let job = Job::try_from(wire.clone()).unwrap();
    let here = |name: &str| InputRef::Path(dir.path().join(name).to_string_lossy().into_owned());
    assert_eq!(job.data.preferences[0], DataSource::plain(here("a.jsonl")));
    let second = &job.data.preferences[1];
    assert_eq!(second.inputs, [here("b/*.csv"), InputRef::Url("s3://bucket/c.parquet".into())]);
    assert_eq!((second.weight, second.columns["prompt"].as_str()), (Some(2.0), "question"));
    assert_eq!((job.data.golden[0].limit, job.data.prompts.len()), (Some(5), 1));
    assert_eq!(job.data.evaluation.prompts[0].filter.prompt_tokens, Bounds { min: None, max: Some(9) });
    // A setting replaces the list as a whole.
    let replaced = file::load(&path, &["data.preferences=/x.jsonl".to_owned()]).unwrap();
    let replaced = Job::try_from(replaced).unwrap();
    assert_eq!(replaced.data.preferences, [DataSource::plain(InputRef::Path("/x.jsonl".into()))]);
    // A resolved specification reads back, in its wire form and in its printed form.
    let resolved = serde_json::to_value(v1::JobSpec::from(&job)).unwrap();
    for printed in [resolved.clone(), in_lists(resolved)] {
        let again = file::from_text(&printed.to_string(), std::path::Path::new("/other")).unwrap();
        assert_eq!(Job::try_from(again).unwrap(), job, "{printed}");
    }
    // Only a client reads local paths and URLs.
    let by_url = file::load(
        &path,
        &["data={preferences: [\"gs://b/c\"], golden: \"az://b/c\", prompts: \"https://h/c\"}".to_owned()],
    );
    let by_url = Job::try_from(v1::JobSpec {
        policy: Some(v1::PolicySpec { model: format!("model:{}:m", "ab".repeat(32)), ..Default::default() }),
        ..by_url.unwrap()
    })
    .unwrap();
    let refused = by_url.require_uploaded().unwrap_err().to_string();
    assert!(refused.contains("gs://b/c, expected an uploaded input"), "{refused}");
}
