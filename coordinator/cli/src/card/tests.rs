use super::*;
use crate::report::tests::finished_job;
use foil_common::spec;

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A finished job whose model and data files have the given names.
fn job(model: &str, file: &str) -> v1::Job {
    let input = format!("input:{HASH}:{file}");
    let wire = v1::JobSpec {
        name: "hh".into(),
        seed: Some(7),
        rounds: Some(2),
        policy: Some(v1::PolicySpec { model: format!("model:{HASH}:{model}"), ..Default::default() }),
        data: Some(v1::DataSpec {
            preferences: vec![input.clone()],
            golden: vec![input.clone()],
            prompts: vec![input],
            ..Default::default()
        }),
        labels: [("owner".to_owned(), "alice-label".to_owned())].into(),
        ..Default::default()
    };
    let spec = v1::JobSpec::from(&spec::Job::try_from(wire).unwrap());
    let set = |name: &str, rows| v1::DatasetSummary {
        name: name.into(),
        rows,
        first_bad: vec!["secret row".into()],
        ..Default::default()
    };
    v1::Job {
        name: "hh".into(),
        owner: "alice-owner".into(),
        tenant: "alice-tenant".into(),
        spec: Some(v1::JobSpec { labels: [("k".to_owned(), "alice-label".to_owned())].into(), ..spec }),
        plan: Some(v1::Plan {
            datasets: vec![set("evaluation_prompts", 64), set("evaluation_preferences", 30)],
            ..Default::default()
        }),
        spec_blake3: HASH.into(),
        ..finished_job()
    }
}

fn artifact(kind: &str, round: u32) -> v1::Artifact {
    let object = v1::Object {
        key: "jobs/alice-key/model.safetensors".into(),
        path: "model.safetensors".into(),
        size: 12,
        blake3: HASH.into(),
    };
    v1::Artifact {
        name: format!("{kind}@{round}"),
        kind: kind.into(),
        round,
        objects: vec![object],
        ..Default::default()
    }
}

fn made(model: &str, file: &str) -> Provenance {
    Provenance::new(&job(model, file), &artifact("policy", 2), &["A processor".into()])
}

/// The metadata of a card, as a YAML reader has it.
fn metadata(card: &str) -> serde_json::Value {
    let rest = card.strip_prefix("---\n").unwrap();
    serde_norway::from_str(rest.split_once("\n---\n").unwrap().0).unwrap()
}

#[test]
fn a_card_claims_no_more_of_its_rows_than_is_known() {
    let mut made = made("stories15m", "pairs.jsonl");
    let told = |made: &Provenance| {
        let text = Card::trained(made).text();
        text.split_once("\nMeasured on ").unwrap().1.split_once("\n").unwrap().0.to_owned()
    };
    let all = told(&made);
    assert!(
        all.starts_with("`evaluation_prompts` (64 rows), whose rows were held out of training."),
        "{all}"
    );
    assert!(
        all.contains(" No prompt of `evaluation_prompts` is in `prompts`. Their prompts may be in other"),
        "{all}"
    );
    made.job.plan.as_mut().unwrap().datasets[0].rows = 200;
    assert!(
        told(&made).starts_with("`evaluation_prompts` (200 rows; KL: the first 64), whose"),
        "{}",
        told(&made)
    );
    // A set that the job names may share prompts with any other.
    let data = made.job.spec.as_mut().unwrap().data.as_mut().unwrap();
    data.evaluation.get_or_insert_default().prompts = data.prompts.clone();
    let given = told(&made);
    assert!(given.contains(", kept for evaluation. Their prompts may be in training sets too"), "{given}");
    assert!(!given.contains("No prompt of"), "{given}");
}

#[test]
fn a_card_repeats_the_warnings_of_the_submission() {
    let mut job = job("stories15m", "pairs.jsonl");
    job.warnings = [
        "evaluation_prompts: 3 of its 64 prompts (3 rows) are in preferences too, so the reward flatters",
        "evaluation_preferences: 2 of its 30 prompts (2 rows) are in golden too, so the figures flatter",
        "golden: 2 bad rows are left out; the first is pairs.jsonl:7: a secret row",
        "golden: <b>",
    ]
    .map(str::to_owned)
    .into();
    let card = |kind: &str| {
        let made = Provenance::new(&job, &artifact(kind, 2), &[]);
        assert!(!String::from_utf8(made.json().unwrap()).unwrap().contains("secret"));
        let text = Card::trained(&made).text();
        let between =
            |start: &str, end: &str| text.split_once(start).unwrap().1.split_once(end).unwrap().0.to_owned();
        let measured = between("\nMeasured on ", "\n## ");
        (measured, between("\n### Data\n", "\n## "))
    };
    let (measured, data) = card("policy");
    let found = measured.split_once("The submission of the job found about them:\n\n").unwrap().1;
    assert!(found.starts_with("- evaluation\\_prompts: 3 of its 64 prompts"), "{found}");
    assert!(!found.contains("evaluation\\_preferences") && !measured.contains("may be in"), "{measured}");
    assert!(data.contains("\n- evaluation\\_preferences: 2 of its 30 prompts"), "{data}");
    assert!(data.contains("\n- golden: 2 bad rows are left out\n- golden: &lt;b&gt;\n"), "{data}");
    let (measured, data) = card("reward");
    assert!(measured.contains("\n- evaluation\\_preferences: 2 of its 30"), "{measured}");
    assert!(data.contains("\n- evaluation\\_prompts: 3 of its 64"), "{data}");
}

#[test]
fn a_card_tells_what_the_model_is_and_how_well_it_does() {
    let made = made("acme--stories15m", "acme--pairs.train.jsonl.gz");
    let card = Card::trained(&made).text();
    let data = metadata(&card);
    assert_eq!(data["base_model"], "acme/stories15m");
    assert_eq!(data["datasets"], serde_json::json!(["acme/pairs.train"]));
    assert_eq!(
        (&data["library_name"], &data["pipeline_tag"]),
        (&"transformers".into(), &"text-generation".into())
    );
    assert!(data.get("license").is_none() && card.contains("\n# license:\n"));
    let metrics = data["model-index"][0]["results"][0]["metrics"].as_array().unwrap();
    let value =
        |name: &str| metrics.iter().find(|metric| metric["type"] == name).unwrap()["value"].as_f64().unwrap();
    assert_eq!((value("gold_mean"), value("gold_mean_stderr")), (4.25, 0.06));
    assert!((value("gold_mean_ci95_low") - (4.25 - 1.96 * 0.06)).abs() < 1e-12);
    for said in
        ["| seed | 7 |", "| rounds | 2 of 2 |", "A processor", "`rejection`", "| 1 | 0.750 ± 0.020", HASH]
    {
        assert!(card.contains(said), "{said}\n{card}");
    }
}

#[test]
fn names_of_this_machine_are_not_written_as_those_of_the_hub() {
    let card = Card::trained(&made("stories15m", "pairs.jsonl")).text();
    let data = metadata(&card);
    assert!(data.get("base_model").is_none() && data.get("datasets").is_none(), "{card}");
    assert!(card.contains("\n# base_model: OWNER/stories15m\n# base_model_relation: finetune\n"), "{card}");
}

#[test]
fn a_card_names_no_person_no_machine_and_no_row() {
    let mut job = job("stories15m", "pairs.jsonl");
    // The specification of an old job may hold a local path.
    job.spec.as_mut().unwrap().policy.as_mut().unwrap().model = "/home/alice-path/models/tiny".into();
    let made = Provenance::new(&job, &artifact("reward", 1), &[]);
    let text = Card::trained(&made).text() + &String::from_utf8(made.json().unwrap()).unwrap();
    assert!(!text.contains("alice") && !text.contains("secret") && !text.contains("/home"), "{text}");
    assert!(text.contains("tiny"));
}

#[test]
fn hostile_names_add_nothing_to_the_card() {
    let plain = metadata(&Card::trained(&made("m", "d.jsonl")).text());
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for hostile in [
        "x\n---\nlicense: mit\n",
        "a|b",
        "`code`",
        "<script>alert(1)</script>",
        "[x](javascript:y)",
        "\u{202e}abc",
        "```\n# Heading",
    ] {
        let card = Card::trained(&made(hostile, &format!("{hostile}.jsonl"))).text();
        let found = metadata(&card);
        let without = |keys: Vec<String>| {
            keys.into_iter()
                .filter(|key| !key.starts_with("base_model") && key != "datasets")
                .collect::<Vec<_>>()
        };
        assert_eq!(without(keys(&found)), without(keys(&plain)), "{card}");
        assert!(found.get("base_model").is_none(), "it is not a repository name: {hostile:?}");
        // Everything but the settings, which are in a fenced block.
        let (above, rest) = card.split_once("\n## Settings\n").unwrap();
        assert!(
            !above.contains("<script")
                && !above.replace("\\]", "").contains("](javascript")
                && !above.contains("\u{202e}"),
            "{above}"
        );
        let below = above.split_once("\n---\n").unwrap().1;
        assert_eq!(below.matches("\n# ").count(), 1, "one title: {below}");
        let table = above.split_once("### Data").unwrap().1;
        let rows = table.lines().filter(|line| line.starts_with("| `data."));
        for row in rows {
            assert_eq!(row.replace("\\|", "").matches('|').count(), 4, "{row}");
        }
        let fence = rest.lines().find(|line| line.starts_with("```")).unwrap().trim_end_matches("yaml");
        assert_eq!(rest.lines().filter(|line| *line == fence).count(), 1, "the fence ends once: {rest}");
    }
}

#[test]
fn an_edited_card_is_kept_and_another_one_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(README);
    assert!(!is_edited(&path));
    write(dir.path(), &made("m", "d.jsonl")).unwrap();
    assert!(!is_edited(&path));
    write(dir.path(), &made("other", "d.jsonl")).unwrap();
    let second = fs::read_to_string(&path).unwrap();
    assert!(second.contains("`other`"));
    fs::write(&path, second.replace("# license:", "license: mit")).unwrap();
    assert!(is_edited(&path));
    write(dir.path(), &made("m", "d.jsonl")).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("license: mit"));
    assert_eq!(Provenance::read(dir.path()).unwrap().unwrap(), made("m", "d.jsonl"));
}

#[test]
fn damaged_provenance_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Provenance::read(dir.path()).unwrap(), None);
    fs::write(dir.path().join(provenance::FILE), "{").unwrap();
    assert!(format!("{:#}", Provenance::read(dir.path()).unwrap_err()).contains("foil.json is damaged"));
    let later =
        String::from_utf8(made("m", "d").json().unwrap()).unwrap().replace("\"format\": 1", "\"format\": 9");
    fs::write(dir.path().join(provenance::FILE), later).unwrap();
    assert!(format!("{:#}", Provenance::read(dir.path()).unwrap_err()).contains("has format 9"));
}

#[test]
fn an_adapters_base_is_named_without_its_folders() {
    let dir = tempfile::tempdir().unwrap();
    let local = AdapterBase::new(dir.path().to_str().unwrap());
    assert_eq!(local.repository, None);
    assert!(!local.name.contains('/'));
    let remote = AdapterBase::new("org/base");
    assert_eq!((remote.name.as_str(), remote.repository.as_deref()), ("org/base", Some("org/base")));
}
