use foil_proto::v1;

use super::*;
use crate::job::fixture::{Edit, datasets, job};

fn ids(edits: &[Edit]) -> Vec<String> {
    plan(&job(edits), &datasets()).into_iter().map(|phase| phase.id.to_string()).collect()
}

#[test]
fn phases_in_order() {
    let round = |round: u32| {
        [
            "reward.generate",
            "reward.train",
            "reward.evaluate",
            "reward.evaluate_fresh",
            "policy.generate",
            "policy.score",
            "policy.train",
            "policy.evaluate",
        ]
        .map(|work| format!("r{round:02}.{work}"))
    };
    let start =
        ["r00.sft", "r00.preferences.generate", "r00.preferences.evaluation.generate", "r00.policy.evaluate"];
    let expected: Vec<String> =
        start.map(str::to_owned).into_iter().chain(round(1)).chain(round(2)).collect();
    assert_eq!(ids(&[]), expected);
}

#[test]
fn sizes_follow_the_rows() {
    let phases = plan(&job(&[]), &datasets());
    let size = |id: &str| phases.iter().find(|phase| phase.id == id).map(|phase| (phase.chunks, phase.steps));
    assert_eq!(size("r00.sft"), Some((0, 3)), "130 rows by 64");
    assert_eq!(size("r01.reward.generate"), Some((3 + 1, 0)), "9 and 3 rows by 4, never in one chunk");
    assert_eq!(size("r01.reward.train"), Some((0, 2)), "70 human and 9·4 golden pairs by 64");
    assert_eq!(size("r01.policy.train"), Some((0, 1)));
    assert_eq!(size("r02.policy.evaluate"), Some((2, 0)));
    let wire: Vec<v1::PhasePlan> = phases.iter().map(Into::into).collect();
    let back: Vec<Phase> = wire.iter().map(|phase| Phase::try_from(phase).unwrap()).collect();
    assert_eq!(back, phases);
    assert!(
        Phase::try_from(&v1::PhasePlan { id: "r01.dance".into(), round: 1, ..Default::default() }).is_err()
    );
}

#[test]
fn a_plan_that_is_too_large_names_the_field_to_change() {
    let bounded = |edits: &[Edit], rows: u64| {
        let datasets: Vec<v1::Dataset> =
            datasets().into_iter().map(|set| v1::Dataset { rows: set.rows.max(rows), ..set }).collect();
        super::bounded(&job(edits), &datasets).map(|phases| phases.len()).map_err(|error| error.to_string())
    };
    assert!(bounded(&[|spec| spec.rounds = Some(1000)], 0).unwrap() > 8000);
    let message = bounded(&[|spec| spec.rounds = Some(10_000)], 0).unwrap_err();
    assert!(message.starts_with("rounds: found 10000"), "{message}");
    let single: fn(&mut v1::JobSpec) = |spec| {
        spec.generation = Some(v1::GenerationSpec { chunk_prompts: Some(1), ..Default::default() });
    };
    let message = bounded(&[single], 10_001).unwrap_err();
    assert!(message.starts_with("generation.chunk_prompts: found 1"), "{message}");
    let message = bounded(&[single, |spec| spec.rounds = Some(100)], 4_900).unwrap_err();
    assert!(message.contains("phases of all rounds"), "{message}");
}
