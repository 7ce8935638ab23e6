use foil_common::test_models;

use super::*;

#[tokio::test]
async fn bad_rows_are_counted_shown_and_bounded() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let mut lines = vec![r#"{"prompt":"ab"}"#.to_owned(); 1];
    lines.extend((0..30).map(|n| {
        format!(
            "{{\"prompt\":\"{}\"}}",
            "abcdefgh".chars().cycle().skip(n % 8).take(n / 8 + 2).collect::<String>()
        )
    }));
    lines[3] = r#"{"prompt":7}"#.to_owned();
    let data = wire.data.as_mut().unwrap();
    data.prompts = vec![input(&store, "prompts.jsonl", lines.join("\n")).await];
    let some = resolved(wire.clone(), &store).await.unwrap();
    let summary = some.summaries.iter().find(|summary| summary.name == "prompts").unwrap();
    assert_eq!(summary.bad_rows, 1);
    assert!(summary.first_bad[0].starts_with("prompts.jsonl:4: "), "{:?}", summary.first_bad);
    assert!(some.warnings.iter().any(|warning| warning.contains("duplicate")), "{:?}", some.warnings);

    wire.data.as_mut().unwrap().max_bad_fraction = Some(0.01);
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.prompts") && message.contains("prompts.jsonl:4"), "{message}");

    let all_bad = input(&store, "bad.jsonl", "{\"x\":1}\nnonsense\n").await;
    wire.data.as_mut().unwrap().golden = vec![all_bad];
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.golden") && message.contains("bad.jsonl:1"), "{message}");
    wire.data.as_mut().unwrap().max_bad_fraction = Some(1.0);
    let message = failure(wire, &store).await;
    assert!(message.contains("no row is left for golden"), "{message}");
}

#[tokio::test]
async fn a_table_makes_the_same_sets_as_json_lines() {
    let store = Store::in_memory();
    let lines = file_job(&store).await;
    let mut table = lines.clone();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/data/letters.parquet");
    let bytes = std::fs::read(path).unwrap();
    let reference = input(&store, "pairs.parquet", bytes.clone()).await;
    table.data.as_mut().unwrap().preferences = vec![reference];
    let from_lines = resolved(lines, &store).await.unwrap();
    let from_table = resolved(table.clone(), &store).await.unwrap();
    assert_eq!(from_table.datasets, from_lines.datasets);
    let read = |resolved: &Resolved| {
        let summary = resolved.summaries.iter().find(|summary| summary.name == "preferences").unwrap();
        let file = &summary.files[0];
        (file.name.clone(), file.format.clone(), file.rows, file.bad_rows)
    };
    assert_eq!(read(&from_lines), ("pairs.jsonl".to_owned(), "JSON lines".to_owned(), 5, 0));
    assert_eq!(read(&from_table), ("pairs.parquet".to_owned(), "Parquet".to_owned(), 5, 0));

    let cut = input(&store, "pairs.parquet", bytes[..bytes.len() / 2].to_vec()).await;
    table.data.as_mut().unwrap().preferences = vec![cut];
    let message = failure(table, &store).await;
    assert!(message.starts_with("data.preferences: pairs.parquet: broken Parquet data"), "{message}");
}

#[tokio::test]
async fn rows_that_the_model_cannot_encode_are_bad_rows() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let poisoned = input(&store, "sft.jsonl", "{\"prompt\":\"ab\",\"answer\":\"ab</s>c\"}").await;
    wire.data.as_mut().unwrap().sft = vec![poisoned];
    let message = failure(wire.clone(), &store).await;
    assert!(message.contains("data.sft: 1 of 1 row cannot") && message.contains("</s>"), "{message}");
    let long = format!("{{\"prompt\":\"ab\",\"answer\":\"{}\"}}", "ab".repeat(12));
    wire.data.as_mut().unwrap().sft = vec![input(&store, "sft.jsonl", long).await];
    let cut = resolved(wire, &store).await.unwrap();
    let told = "sft: the answer of 1 of 1 row is cut to fit, with the other part, in 24 tokens \
                (text.max_length)";
    assert!(cut.warnings.iter().any(|warning| warning == told), "{:?}", cut.warnings);
}

/// Real preferences and golden answers through a real tokenizer, if the test models are available.
#[tokio::test]
async fn real_data_resolves() {
    let Some(pairs) = test_models::read("data/hh/preferences.train.jsonl.gz") else { return };
    let golden = test_models::read("data/golden/golden.jsonl.gz").unwrap();
    let files = ["config.json", "tokenizer.json", "model.safetensors"]
        .map(|name| (name, Bytes::from(test_models::read(&format!("models/stories260K/{name}")).unwrap())));
    let store = Store::in_memory();
    let golden = input(&store, "golden.jsonl.gz", golden).await;
    let wire = v1::JobSpec {
        name: "hh".into(),
        policy: Some(v1::PolicySpec { model: model(&store, &files).await, ..Default::default() }),
        data: Some(v1::DataSpec {
            preferences: vec![input(&store, "pairs.jsonl.gz", pairs).await],
            golden: vec![golden.clone()],
            prompts: vec![golden],
            limits: Some(v1::LimitSpec { preferences: 300, golden: 64, prompts: 64, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let resolved = resolved(wire, &store).await.unwrap();
    let rows: u64 = resolved.datasets.iter().map(|set| set.rows).sum();
    assert!(rows > 400, "{:?} {:?}", resolved.summaries, resolved.warnings);
    assert_eq!(resolved.policy.name, "policy@0");
}

#[tokio::test]
async fn rows_dropped_by_encoding_are_named_by_file_and_line() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.text.as_mut().unwrap().template = "{% if messages[0].content == 'bcdef' %}{{ raise_exception('no b') }}{% endif %}\
         {% for message in messages %}{{ message.content }}{{ eos_token if message.role == 'assistant' else '>' }}{% endfor %}"
        .to_owned();
    wire.data.as_mut().unwrap().max_bad_fraction = Some(0.5);
    let named = |lines: &[String]| lines.iter().any(|line| line.contains("prompts.jsonl:2: "));
    let some = resolved(wire.clone(), &store).await.unwrap();
    assert!(named(&some.warnings), "{:?}", some.warnings);
    wire.data.as_mut().unwrap().max_bad_fraction = Some(0.0);
    let message = failure(wire, &store).await;
    assert!(message.starts_with("data.prompts: ") && named(std::slice::from_ref(&message)), "{message}");
}

#[tokio::test]
async fn pairs_that_are_equal_after_truncation_are_left_out_and_counted() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        format!(
            "{{\"prompt\":\"{prompt}\",\"chosen\":\"{chosen}\",\"rejected\":\"{rejected}\",\"source\":\"s\"}}"
        )
    };
    let long = "ab".repeat(20);
    let equal = pair("abc", &format!("{long}c"), &format!("{long}d"));
    let pairs = [pair("bcd", "b!!", "c"), equal.clone(), pair("cde", "c!!", "d")].join("\n");
    let data = wire.data.as_mut().unwrap();
    data.preferences = vec![input(&store, "pairs.jsonl", pairs).await];
    data.evaluation =
        Some(v1::EvaluationDataSpec { preferences: data.preferences.clone(), ..Default::default() });
    let some = resolved(wire.clone(), &store).await.unwrap();
    assert_eq!(rows::<PairRow>(&some, "preferences", &store).await.len(), 2);
    let message = |line: &String| {
        line.starts_with("preferences: 1 of 3 pairs is left out") && line.ends_with("pairs.jsonl:2")
    };
    assert!(some.warnings.iter().any(message), "{:?}", some.warnings);
    let summary = some.summaries.iter().find(|summary| summary.name == "preferences").unwrap();
    assert_eq!((summary.bad_rows, summary.ignored_columns.as_slice()), (0, &["source".to_owned()][..]));

    // If no row is left, the error explains why.
    wire.data.as_mut().unwrap().preferences = vec![input(&store, "equal.jsonl", equal).await];
    let message = failure(wire, &store).await;
    assert!(message.contains("no row is left") && message.contains("the same tokens"), "{message}");
}

#[tokio::test]
async fn settings_that_the_data_makes_pointless_are_warned_of() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    wire.text.as_mut().unwrap().truncation_side = "right".to_owned();
    let long = format!("{{\"prompt\":\"{}\"}}", "abcd".repeat(8));
    wire.data.as_mut().unwrap().prompts.push(input(&store, "long.jsonl", long).await);
    let schedule = v1::ScheduleSpec { warmup_steps: Some(50), ..Default::default() };
    wire.sft_step = Some(v1::SftStepSpec { schedule: Some(schedule), ..Default::default() });
    let some = resolved(wire, &store).await.unwrap();
    for text in ["loses its end, and with it", "sft_step.schedule.warmup_steps: 50 is more than the "] {
        assert!(some.warnings.iter().any(|warning| warning.contains(text)), "{text}: {:?}", some.warnings);
    }
}

#[tokio::test]
async fn a_set_of_only_bad_answers_says_why_it_is_empty() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let labeled = input(&store, "kto.jsonl", r#"{"prompt":"ab","completion":"x","label":false}"#).await;
    wire.data.as_mut().unwrap().golden = vec![labeled];
    let message = failure(wire, &store).await;
    assert!(message.contains("1 answer labeled as bad is left out"), "{message}");
}
#[tokio::test]
async fn limits_bound_each_set() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let limits = v1::LimitSpec { prompts: 4, golden: 5, ..Default::default() };
    wire.data.as_mut().unwrap().limits = Some(limits);
    let resolved = resolved(wire, &store).await.unwrap();
    let rows = |name| resolved.datasets.iter().find(|set| set.name == name).map(|set| set.rows);
    assert_eq!((rows("prompts"), rows("evaluation_prompts")), (Some(3), Some(1)));
    assert_eq!((rows("golden"), rows("golden_holdout")), (Some(4), Some(1)));
}
