use foil_common::spec;

use super::fixture::{after, commit_next, commit_next_with, event, object, state};
use super::*;
use crate::tenant::DEFAULT_TENANT;
use foil_proto::v1;

fn crash(state: &mut JobState) {
    let cause = Cause { rank: Some(1), ..Cause::new(CauseClass::Crash, "rank 1 crashed") };
    let attempt = state.attempt;
    state.apply(&event(5, Change::AttemptEnded { attempt, cause })).unwrap();
}

fn restart(state: &mut JobState) {
    let (attempt, phase) = (state.attempt + 1, state.phase().unwrap().id.to_string());
    state.apply(&event(6, Change::AttemptStarted { attempt, phase, world: 2 })).unwrap();
}

#[test]
fn three_attempts_without_a_commit_end_a_job_and_a_commit_forgives() {
    let mut state = after(&[], 0);
    for _ in 0..2 {
        crash(&mut state);
        assert!(decide(&state).is_none());
        restart(&mut state);
    }
    commit_next(&mut state);
    for _ in 0..2 {
        crash(&mut state);
        restart(&mut state);
    }
    assert!(decide(&state).is_none());
    crash(&mut state);
    let (change, _) = decide(&state).unwrap();
    let Change::Ended(Outcome::Failed(failure)) = &change else { panic!("{change:?}") };
    assert_eq!((failure.class.as_str(), failure.rank), ("no_progress", Some(1)));
    assert_eq!((failure.last_class.as_str(), failure.failed_attempts, failure.attempt), ("crash", 3, 5));
    assert!(failure.message.contains("rank 1 crashed"), "{}", failure.message);
    state.apply(&event(9, change)).unwrap();
    assert!(state.is_ended() && decide(&state).is_none());
}

#[test]
fn a_restarted_coordinator_is_no_failure_of_the_job() {
    let mut state = after(&[], 0);
    for _ in 0..10 {
        let cause = Cause::new(CauseClass::CoordinatorRestart, "restart");
        let attempt = state.attempt;
        state.apply(&event(5, Change::AttemptEnded { attempt, cause })).unwrap();
        assert!(decide(&state).is_none() && state.wants_devices());
        restart(&mut state);
    }
}

#[test]
fn bad_data_fails_at_the_first_attempt() {
    let mut state = after(&[], 0);
    let cause = Cause::new(CauseClass::Data, "row 7 is empty");
    state.apply(&event(5, Change::AttemptEnded { attempt: 1, cause })).unwrap();
    let Some((Change::Ended(Outcome::Failed(failure)), _)) = decide(&state) else { panic!() };
    assert_eq!(failure.class, "data");
}

#[test]
fn a_failure_reports_all_that_is_known_and_survives_the_log() {
    let detail = Detail {
        step: Some(7),
        chunk: None,
        last_class: None,
        signal: Some("SIGBUS".into()),
        rows: vec!["human pair 5".into()],
        memory: Some(v1::MemoryShortage { place: "host".into(), peak_bytes: Some(9), ..Default::default() }),
        preempted_by: None,
    };
    let cause = Cause { detail: detail.clone(), ..Cause::new(CauseClass::Nonfinite, "no number") };
    let change = Change::AttemptEnded { attempt: 1, cause };
    let bytes = rmp_serde::to_vec_named(&event(5, change)).unwrap();
    let mut state = after(&[], 3);
    state.apply(&rmp_serde::from_slice(&bytes).unwrap()).unwrap();
    let (change, _) = decide(&state).unwrap();
    let bytes = rmp_serde::to_vec_named(&event(6, change)).unwrap();
    state.apply(&rmp_serde::from_slice(&bytes).unwrap()).unwrap();

    let failure = view::job(&state).failure.unwrap();
    assert_eq!((failure.round, failure.step, failure.attempt), (state.phase().unwrap().round, Some(7), 1));
    assert_eq!(
        (failure.signal.as_str(), &failure.rows, &failure.memory),
        ("SIGBUS", &detail.rows, &detail.memory)
    );
}

#[test]
fn a_submission_of_an_older_log_belongs_to_the_default_tenant() {
    let submitted = fixture::submitted(&[]);
    let mut old = serde_json::to_value(&submitted).unwrap();
    assert!(old.as_object_mut().unwrap().remove("tenant").is_some());
    assert_eq!(serde_json::from_value::<Submitted>(old).unwrap().tenant(), DEFAULT_TENANT);
    assert_eq!(Submitted { tenant: "research".into(), ..submitted }.tenant(), "research");
}

#[test]
fn warnings_survive_the_log_and_are_in_no_list() {
    let warnings = vec!["evaluation_prompts: 3 of its 10 prompts (3 rows) are in preferences too".to_owned()];
    let submitted = Submitted { warnings: warnings.clone(), ..fixture::submitted(&[]) };
    let bytes = rmp_serde::to_vec_named(&event(1, Change::Submitted(Box::new(submitted)))).unwrap();
    let Change::Submitted(read) = rmp_serde::from_slice::<Event>(&bytes).unwrap().change else { panic!() };
    let state = JobState::submitted(fixture::JOB, 1, *read).unwrap();
    assert_eq!(view::job(&state).warnings, warnings);
    assert_eq!(view::listed(&state).warnings, [] as [String; 0]);

    let old = rmp_serde::to_vec_named(&fixture::submitted(&[])).unwrap();
    let named = |bytes: &[u8]| bytes.windows(8).any(|window| window == b"warnings");
    assert!(!named(&old) && named(&bytes), "a log without warnings looks like one of an older version");
    assert_eq!(rmp_serde::from_slice::<Submitted>(&old).unwrap().warnings, [] as [String; 0]);
}

#[test]
fn a_cause_of_an_older_log_has_no_detail() {
    let cause = Cause::new(CauseClass::Crash, "rank 1 crashed");
    let mut old = serde_json::to_value(&cause).unwrap();
    assert!(old.as_object_mut().unwrap().remove("detail").is_some());
    assert_eq!(serde_json::from_value::<Cause>(old).unwrap(), cause);
}

#[test]
fn cancelling_waits_for_the_ranks() {
    let mut state = after(&[], 0);
    state.apply(&event(4, Change::CancelRequested)).unwrap();
    assert!(decide(&state).is_none());
    assert_eq!(view::wire_state(&state.status), v1::JobState::Cancelling);
    let cause = Cause::new(CauseClass::Cancelled, "cancelled");
    state.apply(&event(5, Change::AttemptEnded { attempt: 1, cause })).unwrap();
    assert_eq!(decide(&state).unwrap().0, Change::Ended(Outcome::Cancelled));
}

#[test]
fn illegal_events_change_nothing() {
    let chunk = |phase: &str, chunk| {
        Change::ChunkDone(ChunkDone {
            phase: phase.into(),
            chunk,
            object: object("x"),
            moments: vec![],
            calibration: None,
            seconds: 1.0,
            leased_at: 0,
        })
    };
    let mut state = after(&[], 1);
    let before = state.clone();
    let phase = state.phase().unwrap().id.to_string();
    let stale = Cause::new(CauseClass::Crash, "");
    for change in [
        Change::AttemptStarted { attempt: 2, phase: phase.clone(), world: 2 },
        Change::AttemptEnded { attempt: 7, cause: stale },
        Change::Ended(Outcome::Succeeded),
        chunk("r00.sft", 0),
        chunk(&phase, 999),
    ] {
        state.apply(&event(9, change)).unwrap_err();
        assert_eq!(state, before);
    }
    state.apply(&event(9, chunk(&phase, 0))).unwrap();
    state.apply(&event(9, chunk(&phase, 0))).unwrap_err();
    assert_eq!(state.revision, before.revision + 1);
}

#[test]
fn the_best_round_is_the_first_of_equals_and_figures_keep_their_round() {
    let phases = state(&[]).phases.len();
    let done = view::job(&after(&[], phases));
    assert_eq!(done.best_round, 2);
    assert_eq!(done.rounds.len(), 2);
    assert_eq!(done.start[0].value, 0.0);
    assert!(done.rounds[1].policy.iter().any(|metric| metric.name == "gold_mean" && metric.value == 2.0));
    assert!(done.rounds[0].reward.iter().any(|metric| metric.name == "fresh_gold_mean"));
    assert_eq!(done.phases_done as usize, phases);
}

/// The best round if the evaluations of rounds 1, 2, … have these metrics.
fn best_of(metric_for_best_model: &'static str, figures: &[&[(&str, f64)]]) -> u32 {
    let mut state = after(&[|spec| spec.rounds = Some(3)], 0);
    state.spec.evaluation.metric_for_best_model = match metric_for_best_model {
        "reward_gain" => spec::BestMetric::RewardGain,
        "reward_accuracy" => spec::BestMetric::RewardAccuracy,
        _ => spec::BestMetric::GoldMean,
    };
    while let Some(phase) = state.phase() {
        let of_round = figures.get((phase.round as usize).wrapping_sub(1)).copied().unwrap_or_default();
        commit_next_with(&mut state, |phase| {
            let of_round = if phase.id.ends_with(".evaluate") { of_round } else { &[] };
            let metric =
                |(name, value): &(&str, f64)| v1::Metric { name: (*name).into(), value: *value, se: None };
            of_round.iter().map(metric).collect()
        });
    }
    view::job(&state).best_round
}

#[test]
fn the_best_round_is_named_by_its_own_half_of_the_rows() {
    // Over all rows the best would be round 1, over the reporting half round 3.
    let halved: [&[(&str, f64)]; 3] = [
        &[("gold_mean", 9.0), ("selection_gold_mean", 4.0), ("report_gold_mean", 5.0)],
        &[("gold_mean", 4.0), ("selection_gold_mean", 5.0), ("report_gold_mean", 4.0)],
        &[("gold_mean", 5.0), ("selection_gold_mean", 5.0), ("report_gold_mean", 9.0)],
    ];
    assert_eq!(best_of("gold_mean", &halved), 2);
    let whole: [&[(&str, f64)]; 3] = [&[("gold_mean", 3.0)], &[("gold_mean", 1.0)], &[("gold_mean", 2.0)]];
    assert_eq!(best_of("gold_mean", &whole), 1, "few rows are not split");
    let accuracy: [&[(&str, f64)]; 2] = [
        &[("accuracy", 0.9), ("selection_accuracy", 0.6)],
        &[("accuracy", 0.8), ("selection_accuracy", 0.7)],
    ];
    assert_eq!(best_of("reward_accuracy", &accuracy), 2);
}

/// Raw means are not comparable: the reward models have different zeros.
#[test]
fn without_gold_the_gain_over_the_start_policy_names_the_best_round() {
    let shifted: [&[(&str, f64)]; 3] = [
        &[("reward_mean", -0.7), ("reward_gain", 0.8), ("reward_difference_mean", 0.1)],
        &[("reward_mean", -0.6), ("reward_gain", 0.1), ("reward_difference_mean", 0.2)],
        &[("reward_mean", -0.3), ("reward_gain", 0.3), ("reward_difference_mean", 0.3)],
    ];
    assert_eq!(best_of("reward_gain", &shifted), 1);
    // Scores of one start answer have no deviation.
    let lone: [&[(&str, f64)]; 2] = [&[("reward_difference_mean", 0.1)], &[("reward_difference_mean", 0.2)]];
    assert_eq!(best_of("reward_gain", &lone), 2);
}

#[test]
fn one_checkpoint_in_every_n_steps_is_kept_besides_the_last_three() {
    const APART: u32 = 10;
    fn keep(spec: &mut v1::JobSpec) {
        spec.resources.get_or_insert_default().checkpoint_keep_steps = Some(APART);
    }
    let made = |state: &mut JobState, step| {
        let phase = state.phase().unwrap().id.to_string();
        let checkpoint = v1::Checkpoint { phase, step, attempt: 1, objects: vec![] };
        state.apply(&event(4, Change::CheckpointCommitted(checkpoint))).unwrap();
    };
    let kept = |state: &JobState| state.checkpoints.iter().map(|kept| kept.step).collect::<Vec<_>>();
    for _ in 0..50 {
        let mut state = after(&[keep], 0);
        let mut steps = Vec::new();
        for _ in 0..40 {
            steps.push(steps.last().unwrap_or(&0) + fastrand::u64(1..=4));
            made(&mut state, *steps.last().unwrap());
        }
        let (old, last) = (&steps[..37], &steps[37..]);
        // Each checkpoint that is at least this many steps after the one kept before it.
        let mut expected: Vec<u64> = Vec::new();
        for &step in old {
            if step >= expected.last().unwrap_or(&0) + u64::from(APART) {
                expected.push(step);
            }
        }
        expected.extend(last);
        assert_eq!(kept(&state), expected, "{steps:?}");
        commit_next(&mut state);
        assert_eq!(kept(&state), [0; 0], "the phase is done");
    }
    let mut state = after(&[], 0);
    (1..=9).for_each(|step| made(&mut state, step * 10));
    assert_eq!(kept(&state), [70, 80, 90], "if the job keeps none");
}
