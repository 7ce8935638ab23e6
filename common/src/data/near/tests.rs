use std::collections::HashSet as Set;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::data::rows::{PairRow, PromptRow, assign_ids};

fn prompts(texts: &[String]) -> Vec<PromptRow> {
    let mut rows: Vec<_> =
        texts.iter().map(|text| PromptRow { id: 0, prompt: Prompt::user(text.as_str()) }).collect();
    assign_ids(&mut rows);
    rows
}

/// Jaccard similarity by its definition, for lower-case words only.
fn jaccard(one: &str, other: &str, length: usize) -> f64 {
    let set = |text: &str| -> Set<Vec<String>> {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        words.windows(length).map(<[String]>::to_vec).collect()
    };
    let (one, other) = (set(one), set(other));
    one.intersection(&other).count() as f64 / one.union(&other).count() as f64
}

/// Texts of random words, many of them changed copies of others.
fn corpus(seed: u64) -> Vec<String> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut texts: Vec<Vec<String>> = Vec::new();
    for _ in 0..300 {
        let copied = texts.choose(&mut rng).cloned().filter(|_| rng.random_bool(0.6));
        let mut words = copied.unwrap_or_else(|| {
            (0..rng.random_range(20..80)).map(|_| format!("w{}", rng.random_range(0..500))).collect()
        });
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..words.len());
            words[at] = format!("w{}", rng.random_range(0..500));
        }
        texts.push(words);
    }
    texts.into_iter().map(|words| words.join(" ")).collect()
}

#[test]
fn duplicates_are_those_of_a_comparison_of_all_rows() {
    let seed = rand::rng().random();
    let texts = corpus(seed);
    let rows = RowSet::of(prompts(&texts)).unwrap();
    let (mut missed, mut wanted_count) = (0, 0);
    for (threshold, ngram) in [(0.8, 3), (0.6, 5), (0.95, 1)] {
        let found = NearDuplicates::new(threshold, ngram).of_rows(&rows).unwrap();
        let mut kept: Vec<usize> = Vec::new();
        let is_duplicate: Vec<bool> = found.iter().map(Option::is_some).collect();
        for (row, found) in found.iter().enumerate() {
            let near = |earlier: &usize| jaccard(&texts[row], &texts[*earlier], ngram) >= threshold;
            let wanted = kept.iter().copied().find(near);
            wanted_count += usize::from(wanted.is_some());
            match (found, wanted) {
                // No pair is found that is not near, and no duplicate of a duplicate.
                (Some(earlier), _) => {
                    assert!(near(earlier) && !is_duplicate[*earlier], "seed {seed}: {row} and {earlier}");
                }
                (None, Some(_)) => missed += 1,
                (None, None) => {}
            }
            if found.is_none() {
                kept.push(row);
            }
        }
    }
    assert!(wanted_count > 100, "seed {seed}");
    assert!(missed * 50 <= wanted_count, "seed {seed}: {missed} of {wanted_count} are missed");
}

#[test]
fn the_signature_estimates_the_similarity() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    for shared in [0, 10, 50, 90, 100usize] {
        let mut error = 0.0;
        for _ in 0..200 {
            let common: Vec<u64> = (0..shared).map(|_| rng.random()).collect();
            let of = |rng: &mut rand_chacha::ChaCha8Rng| {
                let own: Vec<u64> = (0..100 - shared).map(|_| rng.random()).collect();
                signature(common.iter().copied().chain(own).collect::<Vec<_>>().into_iter())
            };
            let (one, other) = (of(&mut rng), of(&mut rng));
            let equal = one.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / HASHES as f64;
            error += equal - shared as f64 / (200 - shared) as f64;
        }
        // Unbiased: the mean of 200 estimates, each with a standard deviation of at most 0.0625.
        assert!((error / 200.0).abs() < 0.02, "{shared}: {}", error / 200.0);
    }
}

#[test]
fn every_part_of_a_row_must_be_near() {
    let words = |prefix: &str| (0..60).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>().join(" ");
    let (prompt, answer) = (words("p"), words("a"));
    let row = |chosen: &str, rejected: &str| PairRow {
        id: 0,
        prompt: Prompt::user(prompt.as_str()),
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
        margin: None,
        groups: Vec::new(),
    };
    let mut rows = vec![
        row(&answer, "no"),
        row(&format!("{answer} indeed"), "No"),
        // Another answer to the same prompt, and the opposite preference.
        row(&answer, "never"),
        row("no", &answer),
    ];
    assign_ids(&mut rows);
    let found = NearDuplicates::new(0.8, 5).of_rows(&RowSet::of(rows).unwrap()).unwrap();
    assert_eq!(found, [None, Some(0), None, None]);
}

#[test]
fn prompts_of_two_sets_are_compared_without_system_turns() {
    let words = |count: usize| (0..count).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
    let with_system = |text: &str, system: &str| Prompt {
        messages: vec![Message::new(Role::System, system), Message::new(Role::User, text)],
    };
    let long = words(200);
    let lines = |prompts: Vec<Prompt>| {
        let rows = prompts.into_iter().zip(0..).map(|(prompt, id)| PromptRow { id, prompt });
        RowSet::of(rows).unwrap()
    };
    let measured = lines(vec![
        Prompt::user(words(50)),
        Prompt::user(words(49)),
        with_system("who is it?", &long),
        Prompt::user("other"),
        // Counted once.
        Prompt::user(words(50)),
    ]);
    let trained = lines(vec![
        Prompt::user(format!("{} more", words(49))),
        Prompt::user(words(49)),
        with_system("what is this?", &long),
    ]);
    let found = NearDuplicates::new(0.8, 5).of_prompts(measured.lines(), trained.lines()).unwrap();
    // The second one is equal to a training prompt, which is counted elsewhere.
    assert_eq!(found, [true, false, false, false]);
}
