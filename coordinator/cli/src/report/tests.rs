use super::*;

#[test]
fn a_rounded_zero_has_no_sign() {
    assert_eq!([fixed(-0.004, 2), fixed(-0.005001, 2), fixed(0.0, 1)], ["0.00", "-0.01", "0.0"]);
    assert_eq!(main_metrics(&[metric("reward_mean", -0.0001, None)]), ["reward 0.000"]);
}

#[test]
fn an_error_has_two_significant_digits() {
    let digits = |error| digits_of(2, Some(error));
    assert_eq!([0.5, 0.05, 0.0123, 0.001].map(digits), [2, 3, 3, 4]);
    assert_eq!([0.0, 1e-17, f64::NAN, f64::INFINITY].map(digits), [2; 4]);
    assert_eq!(digits_of(1, None), 1);
    let gold = Column { head: "gold", side: Side::Policy, metric: "gold_mean", digits: 2 };
    assert_eq!(figure(&[metric("gold_mean", 0.0041, Some(0.0123))], &gold, " ± "), "0.004 ± 0.012");
}

pub(crate) fn metric(name: &str, value: f64, se: Option<f64>) -> v1::Metric {
    v1::Metric { name: name.to_owned(), value, se }
}

pub(crate) fn finished_job() -> v1::Job {
    let round = |round, accuracy, gold| v1::RoundResult {
        round,
        reward: vec![
            metric("accuracy", accuracy, Some(0.02)),
            metric("ece", 0.05, None),
            metric("fresh_accuracy", 0.95, Some(0.01)),
        ],
        policy: vec![
            metric("reward_mean", 1.5, Some(0.05)),
            metric("gold_mean", gold, Some(0.06)),
            metric("kl", 3.25, Some(0.1)),
            metric("length_mean", 9.5, None),
        ],
    };
    let mut job = v1::Job {
        id: "01-letters".to_owned(),
        name: "letters".to_owned(),
        start: vec![metric("gold_mean", 2.6, Some(0.06)), metric("length_mean", 8.0, None)],
        rounds: vec![round(1, 0.75, 3.5), round(2, 0.7, 4.25)],
        best_round: 2,
        ..Default::default()
    };
    job.set_state(v1::JobState::Succeeded);
    job
}

#[test]
fn the_table_shows_every_round_with_errors() {
    let expected = "\
round  RM human       RM fresh       reward         gold           KL             length
start  –              –              –              2.600 ± 0.060  –              8.0
1      0.750 ± 0.020  0.950 ± 0.010  1.500 ± 0.050  3.500 ± 0.060  3.250 ± 0.100  9.5
2 *    0.700 ± 0.020  0.950 ± 0.010  1.500 ± 0.050  4.250 ± 0.060  3.250 ± 0.100  9.5";
    assert_eq!(table(&finished_job(), usize::MAX), expected);
    assert_eq!(table(&finished_job(), 91), expected);
    let narrow = table(&finished_job(), 80);
    for columns in [20, 40, 60] {
        let parts = table(&finished_job(), columns);
        assert!(parts.lines().all(|line| line.chars().count() <= columns), "{parts}");
        assert!(parts.split("\n\n").count() > 1 && parts.split("\n\n").all(|part| part.starts_with("round")));
        let figures = |table: &str| table.matches('±').count();
        assert_eq!(figures(&parts), figures(expected), "every figure is there: {parts}");
    }
    assert!(narrow.contains("2 *    0.700±0.020") && narrow.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn the_table_shows_gains_and_the_interval_of_a_rate_of_1() {
    let mut job = finished_job();
    for round in &mut job.rounds {
        round.policy.insert(0, metric("reward_gain", 0.5, Some(0.125)));
        round.policy.retain(|metric| metric.name != "gold_mean");
        round.reward.retain(|metric| metric.name != "fresh_accuracy");
        round.reward.push(metric("fresh_accuracy", 1.0, None));
        round
            .reward
            .extend([metric("fresh_accuracy_low", 0.925, None), metric("fresh_accuracy_high", 1.0, None)]);
    }
    job.start.retain(|metric| metric.name != "gold_mean");
    let expected = "\
round  RM human       RM fresh              gain         reward         KL             length
start  –              –                     0.00         –              –              8.0
1      0.750 ± 0.020  1.000 [0.925, 1.000]  0.50 ± 0.12  1.500 ± 0.050  3.250 ± 0.100  9.5
2 *    0.700 ± 0.020  1.000 [0.925, 1.000]  0.50 ± 0.12  1.500 ± 0.050  3.250 ± 0.100  9.5";
    assert_eq!(table(&job, usize::MAX), expected);
    assert!(table(&job, 80).contains("1.000[0.925,1.000]"));
    let notes = notes(&job);
    assert!(notes.len() == 1 && notes[0].starts_with("gain: reward minus the start policy's"), "{notes:?}");
}

#[test]
fn progress_and_specification_fit_a_line() {
    let step = vec![metric("seconds", 1.0, None), metric("loss", 0.5784, None)];
    let told = v1::PhaseProgress { done: 12, total: 40, unit: "steps".into(), step, ..Default::default() };
    assert_eq!(progress(&told), "step 12 of 40, loss 0.578");
    let rows = v1::PhaseProgress { done: 3, total: 9, unit: "prompts".into(), ..Default::default() };
    assert_eq!(progress(&rows), "3 of 9 prompts");
    let loading = v1::PhaseProgress {
        done: 779_356,
        total: 1_169_621,
        unit: "bytes loaded".into(),
        ..Default::default()
    };
    assert_eq!(progress(&loading), "761.1 KiB of 1.1 MiB loaded");
    let spec = v1::JobSpec {
        rounds: Some(2),
        policy_step: Some(v1::PolicyStepSpec {
            method: Some(v1::policy_step_spec::Method::Dpo(v1::DpoSpec::default())),
            ..Default::default()
        }),
        reward_step: Some(v1::RewardStepSpec {
            loss: Some(v1::reward_step_spec::Loss::Wgan(v1::WganSpec::default())),
            ..Default::default()
        }),
        resources: Some(v1::ResourceSpec { ranks: Some(2), device: "cpu".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(outline(&spec), "2 rounds of dpo against wgan, 2 ranks on cpu");
}

#[test]
fn empty_columns_are_omitted() {
    let mut job = finished_job();
    job.start.clear();
    for round in &mut job.rounds {
        round.policy.retain(|metric| metric.name != "gold_mean");
    }
    let table = table(&job, usize::MAX);
    assert!(!table.contains("gold") && !table.contains("start") && table.contains("KL"), "{table}");
}

#[test]
fn the_json_has_every_required_metric() {
    let artifacts = LocalArtifacts { policy: Some("out/policy".into()), reward: Some("out/reward".into()) };
    let round = |round: u32, accuracy: f64, gold: f64| {
        json!({
            "round": round,
            "reward": {
                "accuracy": accuracy, "accuracy_se": 0.02, "ece": 0.05, "loss": null,
                "fresh_accuracy": 0.95, "fresh_accuracy_se": 0.01
            },
            "policy": {
                "reward_gain": null, "reward_mean": 1.5, "reward_mean_se": 0.05, "gold_mean": gold, "gold_mean_se": 0.06,
                "kl": 3.25, "kl_se": 0.1, "drift": null, "length_mean": 9.5, "truncated_rate": null
            }
        })
    };
    let expected = json!({
        "job": "01-letters", "name": "letters", "state": "succeeded",
        "start": { "gold_mean": 2.6, "gold_mean_se": 0.06, "length_mean": 8.0 },
        "rounds": [round(1, 0.75, 3.5), round(2, 0.7, 4.25)],
        "best_round": 2,
        "best": { "round": 2, "by": "", "selection": null, "report": null },
        "alarms": [],
        "warnings": [],
        "artifacts": { "policy": "out/policy", "reward": "out/reward" },
        "seconds": 12.5
    });
    assert_eq!(summary(&finished_job(), &artifacts, 12.5), expected);
}

#[test]
fn the_drift_of_a_round_is_from_its_evaluation_or_else_its_reference_phase() {
    let reference = metric("log_probs_drift_mean", 2e-6, Some(1e-7));
    assert_eq!(policy(std::slice::from_ref(&reference))["drift"], 2e-6);
    assert_eq!(policy(&[reference, metric("drift_mean", 3e-6, None)])["drift"], 3e-6);
}
