use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::peer::{Continuation, PeerResult, SpecialIds};
use super::*;

/// The letters model, as a policy whose files `edit` changed: name → JSON.
fn directory(edit: impl FnOnce(&mut dyn FnMut(&str, &dyn Fn(&mut Value)))) -> tempfile::TempDir {
    let start = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs/letters");
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(start.join(name), dir.path().join(name)).unwrap();
    }
    fs::write(
        dir.path().join("generation_config.json"),
        r#"{"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}"#,
    )
    .unwrap();
    edit(&mut |name, change| {
        let path = dir.path().join(name);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
    });
    dir
}

fn outcomes(dir: &tempfile::TempDir) -> Vec<(String, Outcome, String)> {
    let inspected = files::inspect(dir.path());
    inspected.findings.into_iter().map(|found| (found.check, found.outcome, found.detail)).collect()
}

fn fault(dir: &tempfile::TempDir, check: &str) -> String {
    let found = outcomes(dir);
    let (_, outcome, detail) = found.iter().find(|(name, ..)| name == check).expect(check);
    assert_eq!(*outcome, Outcome::Failed, "{found:?}");
    detail.clone()
}

#[test]
fn files_that_agree_pass_and_those_that_do_not_are_named() {
    for (check, outcome, detail) in outcomes(&directory(|_| {})) {
        // There are no weights here.
        let expected = match check.as_str() {
            check::FILES | check::WEIGHTS => Outcome::Failed,
            check::DTYPE => Outcome::Unchecked,
            _ => Outcome::Passed,
        };
        assert_eq!(outcome, expected, "{check}: {detail}");
    }
    let generation = directory(|edit| edit("generation_config.json", &|v| v["eos_token_id"] = json!(2)));
    assert!(fault(&generation, check::EOS).contains("generation_config.json [2]"));
    let tokenizer = directory(|edit| edit("tokenizer_config.json", &|v| v["eos_token"] = json!(">")));
    assert!(fault(&tokenizer, check::EOS).contains("\">\""));
    let bos = directory(|edit| edit("config.json", &|v| v["bos_token_id"] = json!(4)));
    assert!(fault(&bos, check::BOS).contains("tokenizer_config.json"));
    let beyond = directory(|edit| edit("config.json", &|v| v["pad_token_id"] = json!(17)));
    assert!(fault(&beyond, check::PAD).contains("17"));
    let bare = directory(|edit| {
        edit("tokenizer_config.json", &|v| drop(v.as_object_mut().unwrap().remove("chat_template")));
    });
    assert!(fault(&bare, check::TEMPLATE).contains("there is none"));
    let two = directory(|_| {});
    fs::write(two.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    assert!(!fault(&two, check::TEMPLATE).is_empty());
}

#[test]
fn a_reward_model_must_not_be_padded_with_its_eos_token() {
    let reward = |pad: u32| {
        directory(|edit| {
            edit("config.json", &|v| {
                v["architectures"] = json!(["LlamaForSequenceClassification"]);
                v["pad_token_id"] = json!(pad);
            });
            edit("generation_config.json", &|v| v["pad_token_id"] = json!(pad));
            edit("tokenizer_config.json", &|v| {
                v["pad_token"] = json!(["<pad>", "<s>", "?", "</s>"][pad as usize]);
            });
        })
    };
    assert!(fault(&reward(3), check::PAD).contains("also ends answers"));
    assert!(fault(&reward(1), check::PAD).contains("also begins sequences"));
    let inspected = files::inspect(reward(0).path());
    assert_eq!(inspected.kind, Kind::Reward);
    let rows = inspected.probe.unwrap().rows;
    assert!(rows.len() > 32 && rows.iter().all(|row| !row.contains(&0)), "{rows:?}");
    let lengths: std::collections::BTreeSet<usize> = rows.iter().map(Vec::len).collect();
    assert!(lengths.len() > 8, "batches need padding: {lengths:?}");
}

fn probe(kind: Kind) -> Probe {
    Probe { kind, ..files::inspect(directory(|_| {}).path()).probe.unwrap() }
}

fn outcome(findings: &[Finding], check: &str) -> (Outcome, String) {
    let found = findings.iter().find(|finding| finding.check == check).expect(check);
    (found.outcome, found.detail.clone())
}

#[test]
fn scores_are_compared_with_foils_and_with_each_other() {
    let probe = probe(Kind::Reward);
    let own = Measured { scores: vec![0.1, -0.2, 0.4], ..Measured::default() };
    let answer = |batched: Value| PeerResult {
        has_template: true,
        prompts: probe.prompts.clone(),
        tokenizer: SpecialIds { eos: vec![3], pad: vec![0], ..SpecialIds::default() },
        scores: json!({ "one by one": [0.1, -0.2, 0.400_01], "batched": batched })
            .as_object()
            .unwrap()
            .clone(),
        ..PeerResult::default()
    };
    let same = compare::findings(&probe, &own, &answer(json!([0.1, -0.2, 0.400_02])));
    assert!(same.iter().all(|finding| finding.outcome == Outcome::Passed), "{same:?}");
    let padded = compare::findings(&probe, &own, &answer(json!([0.1, -0.21, 0.4])));
    assert_eq!(outcome(&padded, check::SCORES).0, Outcome::Passed);
    let (found, detail) = outcome(&padded, check::BATCHES);
    assert!(found == Outcome::Failed && detail.contains("batched: row 1"), "{detail}");
    let few = compare::findings(&probe, &own, &answer(json!([0.1])));
    assert_eq!(outcome(&few, check::BATCHES).0, Outcome::Failed);
}

#[test]
fn a_policy_is_compared_with_the_peer_and_ties_are_no_faults() {
    let probe = probe(Kind::Policy);
    let own = Measured { logits: vec![vec![1.0, 2.0]], greedy: vec![vec![5, 6, 3]], ..Measured::default() };
    let answer = |logit: f64, ids: Vec<u32>, lead: f64| PeerResult {
        has_template: true,
        prompts: probe.prompts.clone(),
        generation_eos: vec![3],
        tokenizer: SpecialIds { eos: vec![3], ..SpecialIds::default() },
        logits: vec![vec![1.0, logit]],
        greedy: vec![Continuation { leads: vec![lead; ids.len()], ids }],
        ..PeerResult::default()
    };
    let check = |answer: PeerResult| compare::findings(&probe, &own, &answer);
    assert!(check(answer(2.000_01, vec![5, 6, 3], 0.0)).iter().all(|found| found.outcome == Outcome::Passed));
    assert_eq!(outcome(&check(answer(2.1, vec![5, 6, 3], 0.0)), check::LOGITS).0, Outcome::Failed);
    for (ids, lead, expected) in [
        (vec![5, 7, 3], 0.5, Outcome::Failed),
        (vec![5, 7, 3], 1e-6, Outcome::Passed),
        (vec![5, 6, 3, 8], 0.0, Outcome::Failed),
    ] {
        assert_eq!(outcome(&check(answer(2.0, ids, lead)), check::GREEDY).0, expected);
    }
    let other_end = PeerResult { generation_eos: vec![2], ..answer(2.0, vec![5, 6, 3], 0.0) };
    assert_eq!(outcome(&check(other_end), check::PEER_TOKENS).0, Outcome::Failed);
    let other_text = PeerResult { prompts: vec![vec![9]; 3], ..answer(2.0, vec![5, 6, 3], 0.0) };
    assert_eq!(outcome(&check(other_text), check::PEER_TEMPLATE).0, Outcome::Failed);
}

#[test]
fn a_check_that_was_not_made_never_passes() {
    let probe = probe(Kind::Policy);
    let broken = PeerResult { error: Some("no such file".to_owned()), ..PeerResult::default() };
    for findings in [
        compare::unchecked(Kind::Policy, "no Python"),
        compare::findings(&probe, &Measured::default(), &broken),
        compare::findings(&probe, &Measured::default(), &PeerResult::default()).split_off(3),
    ] {
        assert!(!findings.is_empty());
        assert!(findings.iter().all(|finding| finding.outcome != Outcome::Passed), "{findings:?}");
    }
    assert!(matches!(peer::ask(Path::new("/no/python"), &[]), Err(peer::PeerError::Start { .. })));
}
