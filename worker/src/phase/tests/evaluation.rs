//! Evaluation metrics, checked against the same formulas over all rows at once.

use foil_common::data::rows::{PairRow, Prompt, Row, assign_ids};
use foil_common::stats::{GOLD_STEP, REPORT, REWARD_DIFFERENCE, REWARD_STEP, SELECTION, START_REWARD};

use super::*;

/// A policy trained on some demonstrations. Each phase stores its model under a different name.
fn policy(test: &mut TestRank, phase: &str, demonstrations: usize) -> v1::Artifact {
    let sets = letters::generate(17, Counts { sft: demonstrations, golden: 0, prompts: 0, evaluation: 0 });
    let start = test.start_model();
    let demonstrations = test.dataset("sft", &sets.sft);
    test.gang(phase, Work::Sft(v1::Sft { policy: Some(start.clone()), demonstrations }), &start).0
}

/// A reward model trained on these pairs.
fn reward_model(test: &mut TestRank, phase: &str, policy: &v1::Artifact, pairs: &[PairRow]) -> v1::Artifact {
    let human = source(Source::Pairs(test.dataset("preferences", pairs).unwrap()));
    let train = Work::TrainReward(v1::TrainReward { start: Some(policy.clone()), human, golden: None });
    test.gang(phase, train, policy).0
}

/// Pairs of 7 prompts, 1 to 7 for each prompt, in prompt order, so that chunks of 8 split prompts.
fn pairs() -> Vec<PairRow> {
    let prompts = ["abcde", "bcdef", "cdefg", "defgh", "acegh", "bdfha", "hgfed"];
    let mut rows: Vec<PairRow> = (1..)
        .zip(prompts)
        .flat_map(|(count, prompt)| {
            (0..count).map(move |pair| PairRow {
                id: 0,
                prompt: Prompt::user(prompt),
                chosen: format!("{prompt}{}", "!".repeat(pair % 3)),
                rejected: "wxyz"[..1 + pair % 4].repeat(1 + pair / 4),
                margin: None,
                groups: Vec::new(),
            })
        })
        .collect();
    assign_ids(&mut rows);
    rows
}

fn metric<'a>(metrics: &'a [v1::Metric], name: &str) -> &'a v1::Metric {
    metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name} among {metrics:?}"))
}

fn evaluate_reward(
    test: &mut TestRank,
    phase: &str,
    reward: &v1::Artifact,
    rows: &[PairRow],
    first: Option<&v1::Artifact>,
) -> (v1::Artifact, Vec<v1::Metric>) {
    let dataset = test.dataset("evaluation_preferences", rows).unwrap();
    test.map(phase, rows.len() as u64, |number| {
        Work::EvaluateReward(v1::EvaluateReward {
            reward: Some(reward.clone()),
            pairs: source(Source::Pairs(dataset.clone())),
            first: first.and_then(|first| chunk_of(first, number)),
        })
    })
}

fn scores(test: &TestRank, artifact: &v1::Artifact) -> Vec<v1::PairScore> {
    let batch =
        |object: &v1::Object| v1::PairScores::decode(test.objects.bytes(&object.key).as_slice()).unwrap();
    artifact.objects.iter().flat_map(|object| batch(object).pairs).collect()
}

/// √(G/(G−1) · Σ_g (Σ (x − m))²) / N by hand.
fn clustered_error(rows: &[(String, f64)]) -> f64 {
    let mean = rows.iter().map(|(_, value)| value).sum::<f64>() / rows.len() as f64;
    let mut residuals = BTreeMap::<&str, f64>::new();
    for (cluster, value) in rows {
        *residuals.entry(cluster).or_default() += value - mean;
    }
    let clusters = residuals.len() as f64;
    let scatter: f64 = residuals.values().map(|residual| residual * residual).sum();
    (clusters / (clusters - 1.0) * scatter).sqrt() / rows.len() as f64
}

#[test]
fn pairs_of_one_prompt_are_one_cluster_even_across_chunks() {
    let mut test = TestRank::new(letters_job());
    let policy = policy(&mut test, "r00.sft", 64);
    let reward = reward_model(&mut test, "r01.reward.train", &policy, &pairs()[..6]);
    // Every third pair is swapped, so that the model is right on only some.
    let rows = pairs().into_iter().enumerate();
    let rows: Vec<PairRow> =
        rows.map(|(index, row)| if index % 3 == 1 { swapped(row) } else { row }).collect();
    let (artifact, metrics) = evaluate_reward(&mut test, "r01.reward.evaluate", &reward, &rows, None);
    let scored = scores(&test, &artifact);
    assert_eq!(scored.len(), rows.len());
    let of = |figure: &dyn Fn(&v1::PairScore) -> f64| -> Vec<(String, f64)> {
        let prompts = rows.iter().map(|row| row.prompt().last_text().to_owned());
        prompts.zip(scored.iter().map(figure)).collect()
    };
    let right = of(&|pair| f64::from(u8::from(pair.chosen > pair.rejected)));
    let margin = of(&|pair| pair.chosen - pair.rejected);
    for (name, rows) in [("accuracy", &right), ("margin_mean", &margin)] {
        let (found, expected) = (metric(&metrics, name).se.unwrap(), clustered_error(rows));
        assert!((found - expected).abs() < 1e-9, "{name}: {found} not {expected}");
        let unclustered: Vec<(String, f64)> =
            rows.iter().enumerate().map(|(row, (_, value))| (row.to_string(), *value)).collect();
        assert!(
            (found - clustered_error(&unclustered)).abs() > 1e-3,
            "{name}: clusters make no difference here"
        );
    }
    assert!(metrics.iter().any(|metric| metric.name == "accuracy_low"));

    // Against itself nothing changes; against another model it is the difference, pair by pair.
    let (_, same) = evaluate_reward(&mut test, "r02.reward.evaluate", &reward, &rows, Some(&artifact));
    let change = metric(&same, "accuracy_change");
    assert_eq!((change.value, change.se), (0.0, Some(0.0)));
    let worse = reward_model(
        &mut test,
        "r02.reward.train",
        &policy,
        &pairs().into_iter().take(12).map(swapped).collect::<Vec<_>>(),
    );
    let (other, changed) = evaluate_reward(&mut test, "r03.reward.evaluate", &worse, &rows, Some(&artifact));
    let now = scores(&test, &other);
    let differences: Vec<(String, f64)> = right
        .iter()
        .zip(&now)
        .map(|((prompt, before), pair)| {
            (prompt.clone(), f64::from(u8::from(pair.chosen > pair.rejected)) - before)
        })
        .collect();
    let mean = differences.iter().map(|(_, change)| change).sum::<f64>() / differences.len() as f64;
    let found = metric(&changed, "accuracy_change");
    assert!((found.value - mean).abs() < 1e-12 && found.value != 0.0, "{found:?} not {mean}");
    assert!((found.se.unwrap() - clustered_error(&differences)).abs() < 1e-9);
}

#[test]
fn accuracy_is_also_measured_on_the_parts_of_a_benchmark() {
    let mut test = TestRank::new(letters_job());
    let policy = policy(&mut test, "r00.sft", 64);
    let reward = reward_model(&mut test, "r01.reward.train", &policy, &pairs()[..6]);
    let groups = |index: usize| match index % 3 {
        0 => vec!["chat".to_owned(), "hard".to_owned()],
        1 => vec!["code".to_owned()],
        _ => Vec::new(),
    };
    let rows = pairs().into_iter().enumerate().map(|(index, row)| PairRow { groups: groups(index), ..row });
    // One of the two chunks has no pair of a group.
    let rows: Vec<PairRow> =
        rows.enumerate().map(|(index, row)| if index % 4 < 2 { swapped(row) } else { row }).collect();
    let (artifact, metrics) = evaluate_reward(&mut test, "r01.reward.evaluate", &reward, &rows, None);
    let right: Vec<bool> = scores(&test, &artifact).iter().map(|pair| pair.chosen > pair.rejected).collect();
    for group in ["chat", "hard", "code"] {
        let of: Vec<f64> = rows
            .iter()
            .zip(&right)
            .filter(|(row, _)| row.groups.iter().any(|name| name == group))
            .map(|(_, right)| f64::from(u8::from(*right)))
            .collect();
        let mean = of.iter().sum::<f64>() / of.len() as f64;
        let found = metric(&metrics, &format!("subset_{group}_accuracy"));
        assert!(!of.is_empty() && (found.value - mean).abs() < 1e-12, "{group}: {} not {mean}", found.value);
        assert!(
            metrics.iter().any(|metric| metric.name == format!("subset_{group}_accuracy_low")),
            "{metrics:?}"
        );
    }
    assert_eq!(
        metrics.iter().filter(|metric| metric.name.ends_with("_accuracy_low")).count(),
        4,
        "{metrics:?}"
    );
}

fn swapped(row: PairRow) -> PairRow {
    PairRow { chosen: row.rejected.clone(), rejected: row.chosen.clone(), ..row }
}

/// For three policies on the same prompts, metrics equal those of the stored completions, scored by one
/// reward model.
#[test]
fn policies_are_compared_prompt_by_prompt_under_one_reward_model() {
    let mut job = letters_job();
    job.evaluation.get_or_insert_default().metric_for_best_model = "reward_gain".to_owned();
    let mut test = TestRank::new(job);
    let sets = letters::generate(17, Counts { sft: 0, golden: 0, prompts: 0, evaluation: 48 });
    let [start, previous, last] = [("r00.sft", 64), ("r01.sft", 128), ("r02.sft", 256)]
        .map(|(phase, demonstrations)| policy(&mut test, phase, demonstrations));
    let reward = reward_model(&mut test, "r01.reward.train", &start, &pairs());
    let prompts = test.dataset("evaluation_prompts", &sets.evaluation_prompts);
    let sampling = Some(v1::SamplingSpec::from(&test.context.job.evaluation.sampling));
    let mut evaluate = |phase: &str,
                        policy: &v1::Artifact,
                        reward: Option<v1::Artifact>,
                        baselines: [Option<&v1::Artifact>; 2]| {
        let [start, previous] = baselines;
        test.map(phase, 48, |number| {
            Work::EvaluatePolicy(v1::EvaluatePolicy {
                policy: Some(policy.clone()),
                reference: None,
                reward: reward.clone(),
                prompts: prompts.clone(),
                sampling: sampling.clone(),
                start: start.and_then(|artifact| chunk_of(artifact, number)),
                previous: previous.and_then(|artifact| chunk_of(artifact, number)),
            })
        })
    };
    let (of_start, _) = evaluate("r00.policy.evaluate", &start, None, [None, None]);
    let (of_previous, _) = evaluate("r01.policy.evaluate", &previous, None, [None, None]);
    let scored = Some(reward);
    let (of_last, metrics) =
        evaluate("r02.policy.evaluate", &last, scored.clone(), [Some(&of_start), Some(&of_previous)]);
    // The same completions, scored separately.
    let (start_scored, _) = evaluate("r00.policy.evaluate", &start, scored.clone(), [None, None]);
    let (previous_scored, _) = evaluate("r01.policy.evaluate", &previous, scored, [None, None]);
    let samples = |artifact: &v1::Artifact| -> Vec<v1::Sample> {
        let batch = |object: &v1::Object| v1::SampleBatch::decode(test.objects.bytes(&object.key).as_slice());
        artifact.objects.iter().flat_map(|object| batch(object).unwrap().samples).collect()
    };
    let [start, previous, last] = [&start_scored, &previous_scored, &of_last].map(samples);
    let difference = |others: &[v1::Sample], figure: fn(&v1::Sample) -> Option<f64>| -> Vec<f64> {
        last.iter().zip(others).map(|(own, other)| figure(own).unwrap() - figure(other).unwrap()).collect()
    };
    let gains = difference(&start, |sample| sample.reward);
    let start_rewards: Vec<f64> = start.iter().map(|sample| sample.reward.unwrap()).collect();
    for (name, values) in [
        (REWARD_DIFFERENCE, &gains),
        ("gold_difference_mean", &difference(&start, |sample| sample.gold)),
        (REWARD_STEP, &difference(&previous, |sample| sample.reward)),
        (GOLD_STEP, &difference(&previous, |sample| sample.gold)),
        (START_REWARD, &start_rewards),
    ] {
        let expected: foil_common::stats::Moments = values.iter().copied().collect();
        let found = metric(&metrics, name);
        assert!((found.value - expected.mean().unwrap()).abs() < 1e-5, "{name}: {found:?} not {expected:?}");
        assert!((found.se.unwrap() - expected.standard_error().unwrap()).abs() < 1e-5, "{name}: {found:?}");
    }
    let deviation = |rows: &[f64]| {
        let mean = rows.iter().sum::<f64>() / rows.len() as f64;
        (rows.iter().map(|row| (row - mean).powi(2)).sum::<f64>() / (rows.len() - 1) as f64).sqrt()
    };
    let gain = metric(&metrics, "reward_gain");
    let expected = gains.iter().sum::<f64>() / 48.0 / deviation(&start_rewards);
    assert!((gain.value - expected).abs() < 1e-4, "{gain:?} not {expected}");
    let error = deviation(&gains) / 48f64.sqrt() / deviation(&start_rewards);
    assert!((gain.se.unwrap() - error).abs() < 1e-4, "{gain:?} not ± {error}");
    // The halves cover all prompts, and neither is empty.
    let count = |half: &str| value(&metrics, &format!("{half}{REWARD_DIFFERENCE}_n"));
    assert_eq!(count(SELECTION) + count(REPORT), 48.0);
    assert!(count(SELECTION) > 12.0 && count(REPORT) > 12.0);
    let half = |half: &str| value(&metrics, &format!("{half}{REWARD_DIFFERENCE}"));
    let together = (half(SELECTION) * count(SELECTION) + half(REPORT) * count(REPORT)) / 48.0;
    assert!((together - value(&metrics, REWARD_DIFFERENCE)).abs() < 1e-9);
    assert!(metrics.iter().any(|metric| metric.name == "selection_reward_gain"));
    let texts: std::collections::BTreeSet<&str> = last.iter().map(|sample| sample.text.as_str()).collect();
    assert!((value(&metrics, "duplicate_rate") - (1.0 - texts.len() as f64 / 48.0)).abs() < 1e-12);
}
