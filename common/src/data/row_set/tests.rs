use super::*;
use crate::data::rows::{self, DemonstrationRow, PairRow, assign_ids};

/// Rows of random lengths whose lines take `bytes` or more; every fifth repeats its prompt.
fn demonstrations(bytes: usize) -> Vec<DemonstrationRow> {
    let (mut rows, mut total) = (Vec::new(), 0);
    while total < bytes {
        let number = rows.len() as u64;
        let answer: String = (0..fastrand::usize(0..6000)).map(|_| fastrand::char(..)).collect();
        total += answer.len();
        let prompt = Prompt::user((number - u64::from(number % 5 == 4)).to_string());
        rows.push(DemonstrationRow { id: 0, prompt, answer });
    }
    assign_ids(&mut rows);
    rows
}

#[test]
fn a_set_gives_back_its_rows_in_memory_and_in_a_file() {
    for bytes in [0, 1, 100_000, 9 << 20] {
        let rows = demonstrations(bytes);
        let mut set = RowSet::of(rows.clone()).unwrap();
        assert_eq!(set.lines.is_in_a_file(), bytes > 8 << 20);
        assert_eq!(set.to_vec().unwrap(), rows);
        assert!(set.ids().eq(rows.iter().map(Row::id)));
        assert!(set.lines().keys().copied().eq(rows.iter().map(|row| row.prompt.key())));
        let written: Vec<u8> = set.lines().pieces().flat_map(|piece| piece.unwrap()).collect();
        assert_eq!(written, rows::write(&rows));
        let batches: Vec<Vec<DemonstrationRow>> = set.batches().map(Result::unwrap).collect();
        assert!(batches.iter().all(|batch| (1..=BATCH_ROWS).contains(&batch.len())));
        assert_eq!(batches.concat(), rows);
        let prompts: Vec<_> = set.lines().prompts().map(Result::unwrap).collect();
        assert!(prompts.iter().map(|(_, prompt)| prompt).eq(rows.iter().map(|row| &row.prompt)));
        // Any part of it, from any position.
        let kept: Vec<bool> = rows.iter().map(|_| fastrand::u8(..) < 100).collect();
        set.retain(|index, id| {
            assert_eq!(id, rows[index].id);
            kept[index]
        });
        let expected: Vec<_> = rows.iter().zip(kept).filter(|(_, kept)| *kept).map(|(row, _)| row).collect();
        assert!(set.iter().map(Result::unwrap).eq(expected.iter().copied().cloned()));
        for _ in 0..expected.len().min(20) {
            let index = fastrand::usize(..expected.len());
            assert_eq!(set.get(index).unwrap(), *expected[index]);
            assert_eq!(set.lines().prompt(index).unwrap(), expected[index].prompt);
        }
        assert!(set.get(expected.len()).is_err());
        let is_even = |key: &PromptKey| key.0[0].is_multiple_of(2);
        let (odd, even) = set.partition(is_even);
        assert_eq!(odd.len() + even.len(), expected.len());
        assert!(even.iter().all(|row| is_even(&row.unwrap().prompt.key())));
        assert!(!odd.iter().any(|row| is_even(&row.unwrap().prompt.key())));
    }
}

#[test]
fn equal_rows_get_the_ids_of_their_occurrence() {
    let pair = |text: &str, groups: &[&str]| PairRow {
        id: 0,
        prompt: Prompt::user(text),
        chosen: "yes".into(),
        rejected: "no".into(),
        margin: None,
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    };
    let mut rows = vec![pair("a", &[]), pair("b", &[]), pair("a", &[]), pair("a", &[])];
    let of_content = rows.iter().cloned().map(|mut row| {
        row.set_id(content_id(&row, 0));
        row
    });
    let set = RowSet::of(of_content).unwrap().with_distinct_ids().unwrap();
    assign_ids(&mut rows);
    assert_eq!(set.to_vec().unwrap(), rows);
    assert!(!set.has_groups());
    let grouped = RowSet::of([pair("a", &[]), pair("b", &["chat"])]).unwrap();
    assert!(grouped.has_groups());
    let bare = grouped.changed(|row| row.groups.clear()).unwrap();
    assert!(!bare.has_groups() && bare.iter().all(|row| row.unwrap().groups.is_empty()));
}
