use foil_common::data::row_set::RowSet;
use foil_common::data::rows::Prompt;

use super::*;

#[tokio::test]
async fn overlaps_are_reported() {
    let store = Store::in_memory();
    let mut wire = file_job(&store).await;
    let data = wire.data.as_mut().unwrap();
    data.evaluation = Some(v1::EvaluationDataSpec { prompts: data.prompts.clone(), preferences: vec![] });
    data.prompts.push(data.golden[0].clone());
    let resolved = resolved(wire, &store).await.unwrap();
    let warned = |text: &str| resolved.warnings.iter().any(|warning| warning.contains(text));
    assert!(warned("evaluation_prompts: 10 of its 10 prompts"), "{:?}", resolved.warnings);
    assert!(warned("reward model's own prompts"), "{:?}", resolved.warnings);
    // One file for both, as is common in a first job: the reward model is trained on prompts that it is
    // measured on.
    let mut wire = file_job(&store).await;
    let data = wire.data.as_mut().unwrap();
    let lines: Vec<String> = (0..40)
        .map(|n| {
            let prompt: String = "abcdefgh".chars().cycle().skip(n % 8).take(n / 8 + 2).collect();
            format!("{{\"prompt\":\"{prompt}\",\"chosen\":\"a!!\",\"rejected\":\"w\"}}")
        })
        .collect();
    data.preferences = vec![input(&store, "pairs.jsonl", lines.join("\n")).await];
    data.prompts = data.preferences.clone();
    let warnings = request(wire, false).run(&store).await.unwrap().warnings;
    let shared =
        |line: &&String| line.starts_with("evaluation_prompts: ") && line.contains("are in preferences too");
    let found = warnings.iter().find(shared);
    assert!(found.is_some_and(|line| line.contains("reward measured there flatters")), "{warnings:?}");
}

/// Any two sets of a job that are made to share one prompt are reported by both their names, and no other
/// sets are.
#[test]
fn every_two_sets_that_share_a_prompt_are_reported() {
    type Put = fn(&mut Sets, u64);
    fn prompt(number: u64) -> Prompt {
        Prompt::user(number.to_string())
    }
    fn pair(id: u64) -> PairRow {
        let (chosen, rejected) = ("a".into(), "b".into());
        PairRow { id, prompt: prompt(id), chosen, rejected, margin: None, groups: Vec::new() }
    }
    fn golden(id: u64) -> GoldenRow {
        GoldenRow { id, prompt: prompt(id), golden: "a".into() }
    }
    fn lone(id: u64) -> PromptRow {
        PromptRow { id, prompt: prompt(id) }
    }
    fn push<T: Row>(set: &mut RowSet<T>, row: T) {
        *set = RowSet::of(set.to_vec().unwrap().into_iter().chain([row])).unwrap();
    }
    let fill: [(&str, Put); 9] = [
        ("sft", |sets, id| {
            push(&mut sets.sft, DemonstrationRow { id, prompt: prompt(id), answer: "a".into() });
        }),
        ("preferences", |sets, id| push(&mut sets.preferences, pair(id))),
        ("evaluation_preferences", |sets, id| push(&mut sets.evaluation_preferences, pair(id))),
        ("gold_preference_prompts", |sets, id| push(&mut sets.gold_preference_prompts, lone(id))),
        ("gold_preference_evaluation_prompts", |sets, id| {
            push(&mut sets.gold_preference_evaluation_prompts, lone(id));
        }),
        ("golden", |sets, id| push(&mut sets.golden, golden(id))),
        ("golden_holdout", |sets, id| push(&mut sets.golden_holdout, golden(id))),
        ("prompts", |sets, id| push(&mut sets.prompts, lone(id))),
        ("evaluation_prompts", |sets, id| push(&mut sets.evaluation_prompts, lone(id))),
    ];
    let none = Sets::default();
    assert_eq!(fill.map(|(name, _)| name), none.counts().map(|(name, _)| name), "a set is not walked");
    for first in 0..fill.len() {
        for second in first + 1..fill.len() {
            let mut sets = Sets::default();
            fill.iter().zip(1..).for_each(|((_, put), own)| put(&mut sets, own));
            [first, second].into_iter().for_each(|set| fill[set].1(&mut sets, 100));
            let lines = super::super::overlaps::pair_warnings(&sets);
            let (first, second) = (fill[first].0, fill[second].0);
            assert_eq!(lines.len(), 1, "{first} and {second}: {lines:?}");
            let either = |a: &str, b: &str| {
                lines[0].starts_with(&format!("{a}: 1 of its 2 prompts (1 row) is in {b} too, "))
            };
            assert!(either(first, second) || either(second, first), "{first} and {second}: {lines:?}");
        }
    }
}
