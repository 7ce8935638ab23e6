use super::*;
use std::collections::{BTreeSet, HashSet};

const COUNTS: Counts = Counts { sft: 4000, golden: 1000, prompts: 1000, evaluation: 500 };

#[test]
fn gold_follows_its_rules() {
    let cases = [
        ("abcde", "abcde!!", true, 7.0),
        ("abcde", "ec!b!da", true, 7.0),
        ("abcde", "", true, 0.0),
        ("abcde", "", false, -2.0),
        ("abcde", "aaaa", true, 1.0),
        ("abcde", "!", true, 1.0),
        ("abcde", "!!!", true, 0.5),
        ("abcde", "!!!!", true, -1.0),
        ("abcde", "abw", true, 1.5),
        ("abcde", "wwxyz", true, -2.5),
        ("abcde", "af", true, 0.5),
        ("abcde", "afff", true, 0.5),
        ("abcde", "fgh", true, -1.5),
        ("abcde", "abcde!!", false, 5.0),
        ("hgfed", "abc>h", true, -0.5),
    ];
    for (prompt, answer, finished, expected) in cases {
        assert_eq!(gold(prompt, answer, finished), expected, "{prompt} {answer} {finished}");
    }
}

/// The reward over token ids with EOS = 3, letters 4 to 11, fillers 12 to 15, `!` = 16, directly from its
/// definition.
fn gold_of_ids(prompt: &[usize], row: &[usize]) -> f64 {
    let end = row.iter().position(|&id| id == 3);
    let text = &row[..end.unwrap_or(row.len())];
    let set: BTreeSet<usize> = text.iter().copied().collect();
    let asked: BTreeSet<usize> = prompt.iter().copied().collect();
    let marks = text.iter().filter(|&&id| id == 16).count() as f64;
    let fillers = text.iter().filter(|&&id| (12..16).contains(&id)).count() as f64;
    let letters: BTreeSet<usize> = set.iter().copied().filter(|id| (4..12).contains(id)).collect();
    letters.intersection(&asked).count() as f64 + if marks > 2.0 { 5.0 - 1.5 * marks } else { marks }
        - fillers / 2.0
        - letters.difference(&asked).count() as f64 / 2.0
        - if end.is_none() { 2.0 } else { 0.0 }
}

#[test]
fn gold_equals_its_definition_over_tokens() {
    const VOCABULARY: &[u8; 17] = b"\0\0>\0abcdefghwxyz!";
    let mut draw = Draw::new(1, "test");
    for _ in 0..5000 {
        let prompt = draw.prompt();
        let row: Vec<usize> = (0..16).map(|_| [2, 3, 4][draw.below(12).min(2)] + draw.below(13)).collect();
        let end = row.iter().position(|&id| id == 3);
        let text: String = row[..end.unwrap_or(16)].iter().map(|&id| char::from(VOCABULARY[id])).collect();
        let ids: Vec<usize> = prompt.bytes().map(|byte| usize::from(byte - b'a') + 4).collect();
        assert_eq!(gold(&prompt, &text, end.is_some()), gold_of_ids(&ids, &row), "{prompt} {text}");
    }
}

#[test]
fn generated_sets_have_the_stated_distributions() {
    let letters = generate(0, COUNTS);
    assert_eq!((letters.sft.len(), letters.golden.len()), (4000, 1000));
    assert_eq!((letters.prompts.len(), letters.evaluation_prompts.len()), (1000, 500));
    let asked = |prompt: &Prompt| -> BTreeSet<u8> { prompt.last_text().bytes().collect() };
    for row in &letters.golden {
        assert_eq!(gold(row.prompt.last_text(), &row.golden, true), 7.0);
        assert_eq!(row.golden.len(), 7);
    }
    for row in &letters.prompts {
        assert_eq!((row.prompt.last_text().len(), asked(&row.prompt).len()), (5, 5));
    }
    let rate = |test: &dyn Fn(&DemonstrationRow) -> f64| letters.sft.iter().map(test).sum::<f64>() / 4000.0;
    let marks = |row: &DemonstrationRow| row.answer.bytes().filter(|&byte| byte == b'!').count();
    // Four standard errors of 4,000 draws around the stated probabilities.
    for (count, probability) in MARKS.iter().enumerate() {
        let found = rate(&|row| f64::from(marks(row) == count));
        let error = 4.0 * (probability * (1.0 - probability) / 4000.0f64).sqrt();
        assert!((found - probability).abs() < error, "P({count} marks) is {found}");
    }
    let fillers = rate(&|row| row.answer.bytes().filter(|byte| FILLERS.contains(byte)).count() as f64);
    assert!((fillers - 1.5).abs() < 0.08, "{fillers}");
    // A prompt letter is kept with .55, or comes back as the letter from anywhere with .3 / 8.
    let covered = rate(&|row| {
        asked(&row.prompt).iter().filter(|byte| row.answer.as_bytes().contains(byte)).count() as f64
    });
    assert!((covered - 5.0 * (0.55 + 0.45 * 0.3 / 8.0)).abs() < 0.08, "{covered}");
    let wrong = rate(&|row| {
        f64::from(
            row.answer.bytes().any(|byte| LETTERS.contains(&byte) && !asked(&row.prompt).contains(&byte)),
        )
    });
    assert!((wrong - 0.3 * 3.0 / 8.0).abs() < 0.02, "{wrong}");
    let longest = letters.sft.iter().map(|row| row.answer.len()).max().unwrap();
    assert!(longest <= 12 && letters.sft.iter().all(|row| !row.answer.is_empty()));
}

#[test]
fn sets_depend_on_the_seed_and_not_on_each_other() {
    let letters = generate(5, COUNTS);
    assert_eq!(letters, generate(5, COUNTS));
    assert_ne!(letters.prompts, generate(6, COUNTS).prompts);
    let smaller = generate(5, Counts { sft: 10, golden: 20, prompts: 30, evaluation: 40 });
    assert_eq!(smaller.golden, letters.golden[..20]);
    assert_eq!(smaller.sft, letters.sft[..10]);
    assert_ne!(letters.prompts[..500], letters.evaluation_prompts);
    for ids in [
        letters.sft.iter().map(|row| row.id).collect::<HashSet<_>>(),
        letters.prompts.iter().map(|row| row.id).collect(),
    ] {
        assert!(ids.len() == 4000 || ids.len() == 1000);
    }
}

#[test]
fn preference_prompts_are_from_the_golden_split_and_numbered() {
    let letters = generate(5, COUNTS);
    let keys: HashSet<_> = letters.golden.iter().map(|row| row.prompt.key()).collect();
    let golden = RowSet::of(letters.golden.clone()).unwrap();
    let rows = preference_prompts(5, &golden, 2000).unwrap();
    assert!(rows.iter().enumerate().all(|(n, row)| row.id == n as u64 && keys.contains(&row.prompt.key())));
    assert!(rows.iter().map(|row| row.prompt.key()).collect::<HashSet<_>>().len() > 700);
    assert_eq!(preference_evaluation_prompts(5, 500).len(), 500);
    assert!(preference_prompts(5, &RowSet::default(), 10).unwrap().is_empty());
}

#[test]
fn preferences_are_bradley_terry_draws_keyed_by_pair() {
    for (first, second) in [(1.0f64, 1.0), (1.5, 1.0), (0.0, 1.0)] {
        let wins =
            (0..20_000).filter(|&id| prefer_first(3, id, first, second, 2.0)).count() as f64 / 20_000.0;
        let expected = 1.0 / (1.0 + (-2.0 * (first - second)).exp());
        assert!((wins - expected).abs() < 0.015, "{first} against {second}: {wins}, not {expected}");
    }
    let draws = |seed| (0..64).map(|id| prefer_first(seed, id, 0.0, 0.0, 2.0)).collect::<Vec<_>>();
    assert_eq!(draws(3), draws(3));
    assert_ne!(draws(3), draws(4));
}
