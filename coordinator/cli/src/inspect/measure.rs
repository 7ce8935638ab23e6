//! Statistics of a data set: lengths, repetitions, and prompts that it shares with others.

use std::collections::{HashMap, HashSet};

use foil_common::data::row_set::{RowSet, SpillError};
use foil_common::data::rows::{PromptKey, Row};
use foil_common::text::Limits;
use foil_common::text::inspect::Lengths;
use foil_coordinator::resolve::local::{LocalSet, Rows};
use serde::Serialize;

/// Maximum number of bars of a histogram.
const BARS: usize = 40;
/// Length up to which a histogram has bars, in budgets. A bar for one row of a megabyte would flatten all
/// others.
const BUDGETS: usize = 4;

/// Lengths in tokens, before truncation.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    pub(super) what: &'static str,
    pub(super) lengths: Lengths,
    pub(super) histogram: Histogram,
}

impl Measured {
    /// `fit` is the number of texts that are not cut.
    fn new(what: &'static str, lengths: &[usize], limits: Limits, budget: usize, fit: usize) -> Self {
        let histogram = Histogram::of(lengths, budget);
        let lengths = match limits.are_shared() {
            true => Lengths::sharing(lengths.to_vec(), budget, fit),
            false => Lengths::of(lengths.to_vec(), budget),
        };
        Self { what, lengths, histogram }
    }

    /// Prompts, one per row. As at submission, a prompt counts as cut if it is cut with any of its row's
    /// responses.
    pub(super) fn prompts(prompts: &[usize], responses: &[&[usize]], limits: Limits) -> Self {
        let is_cut = |(row, prompt): (usize, &usize)| {
            let mut kept = responses.iter().map(|responses| limits.fit(*prompt, responses[row]).0);
            prompt.min(&limits.prompt) < prompt || kept.any(|kept| kept < *prompt)
        };
        let cut = prompts.iter().enumerate().filter(|row| is_cut(*row)).count();
        Self::new("prompts", prompts, limits, limits.prompt, prompts.len() - cut)
    }

    /// Responses, one per row, to prompts of these lengths.
    pub(super) fn responses(
        what: &'static str,
        prompts: &[usize],
        responses: &[usize],
        limits: Limits,
    ) -> Self {
        let rows = prompts.iter().zip(responses);
        let fit = rows.filter(|(prompt, response)| limits.fit(**prompt, **response).1 == **response).count();
        Self::new(what, responses, limits, limits.response, fit)
    }
}

/// The tokens that each pair's two responses keep next to their prompt.
pub(super) fn kept(
    prompts: &[usize],
    chosen: &[usize],
    rejected: &[usize],
    limits: Limits,
) -> Vec<(usize, usize)> {
    let kept = |prompt: usize, response: usize| limits.fit(prompt, response).1;
    prompts
        .iter()
        .zip(chosen.iter().zip(rejected))
        .map(|(prompt, (chosen, rejected))| (kept(*prompt, *chosen), kept(*prompt, *rejected)))
        .collect()
}

/// Counts of lengths: bar `i` counts lengths in `i * width..(i + 1) * width`. `beyond` counts lengths far
/// beyond the budget, which have no bar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Histogram {
    pub(super) width: usize,
    pub(super) counts: Vec<usize>,
    pub(super) beyond: usize,
}

impl Histogram {
    /// Bars of a width of 1, 2 or 5 times a power of ten, the smallest that keeps them few.
    fn of(lengths: &[usize], budget: usize) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0).min(budget.saturating_mul(BUDGETS));
        let widths = (0..19).flat_map(|power| [1, 2, 5].map(|digit| digit * 10usize.pow(power)));
        let width = widths.into_iter().find(|width| longest / width < BARS).unwrap_or(usize::MAX);
        let mut counts = vec![0; if lengths.is_empty() { 0 } else { longest / width + 1 }];
        let mut beyond = 0;
        for length in lengths {
            match counts.get_mut(length / width) {
                Some(count) => *count += 1,
                None => beyond += 1,
            }
        }
        Self { width, counts, beyond }
    }

    /// The first length that has no bar.
    pub(super) fn end(&self) -> usize {
        self.counts.len().max(1) * self.width
    }
}

/// Repeated prompts and answers of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Repetitions {
    pub(super) distinct_prompts: usize,
    /// Rows whose prompt occurs in an earlier row.
    pub(super) repeated_prompts: usize,
    pub(super) responses: usize,
    /// Responses that occur in an earlier row, whatever its prompt.
    pub(super) repeated_responses: usize,
}

/// Repetitions in a set.
pub(super) fn repetitions(set: &LocalSet) -> Result<Repetitions, SpillError> {
    fn of<T: Row>(rows: &RowSet<T>) -> Result<Repetitions, SpillError> {
        let distinct_prompts = rows.lines().keys().collect::<HashSet<_>>().len();
        // Hashes, since the texts may be larger than memory.
        let (mut responses, mut distinct) = (0, HashSet::new());
        for row in rows.iter() {
            for response in row?.responses() {
                responses += 1;
                distinct.insert(*blake3::hash(response.as_bytes()).as_bytes());
            }
        }
        Ok(Repetitions {
            distinct_prompts,
            repeated_prompts: rows.len() - distinct_prompts,
            responses,
            repeated_responses: responses - distinct.len(),
        })
    }
    match &set.rows {
        Rows::Demonstrations(rows) => of(rows),
        Rows::Pairs(rows) => of(rows),
        Rows::Golden(rows) => of(rows),
        Rows::Prompts(rows) => of(rows),
    }
}

/// Prompts that two sets share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Overlap {
    pub(super) first: &'static str,
    pub(super) second: &'static str,
    /// Distinct prompts that are in both.
    pub(super) prompts: usize,
}

/// The shared prompts of each two sets that share any.
pub(super) fn overlaps(sets: &[LocalSet]) -> Vec<Overlap> {
    let keys: HashMap<&str, HashSet<&PromptKey>> =
        sets.iter().map(|set| (set.name, set.rows.lines().keys().collect())).collect();
    let pairs = sets
        .iter()
        .enumerate()
        .flat_map(|(at, first)| sets[at + 1..].iter().map(move |second| (first, second)));
    pairs
        .map(|(first, second)| Overlap {
            first: first.name,
            second: second.name,
            prompts: keys[first.name].intersection(&keys[second.name]).count(),
        })
        .filter(|overlap| overlap.prompts > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use foil_common::data::rows::{GoldenRow, Prompt, PromptRow};

    use super::*;

    #[test]
    fn every_length_is_in_one_bar() {
        for longest in [0, 1, 39, 40, 79, 80, 199, 200, 512, 8191, 1_000_000] {
            let lengths: Vec<usize> =
                (0..200).map(|_| rand::random_range(0..=longest)).chain([longest]).collect();
            let Histogram { width, counts, beyond } = Histogram::of(&lengths, usize::MAX);
            assert_eq!(beyond, 0);
            assert!(counts.len() <= BARS && counts.last() != Some(&0), "{longest}: {counts:?}");
            for (bar, count) in counts.iter().enumerate() {
                let inside =
                    lengths.iter().filter(|length| (bar * width..(bar + 1) * width).contains(length));
                assert_eq!(inside.count(), *count);
            }
        }
        assert_eq!(Histogram::of(&[79], 100).width, 2);
        assert_eq!(Histogram::of(&[80], 100).width, 5);
        assert_eq!(Histogram::of(&[], 100), Histogram { width: 1, counts: Vec::new(), beyond: 0 });
    }

    #[test]
    fn lengths_far_beyond_the_budget_do_not_flatten_the_others() {
        let Histogram { width, counts, beyond } = Histogram::of(&[3, 12, 399, 1_000_000, 2_000_000], 100);
        assert_eq!((width, counts.len(), counts[0], counts[1], beyond), (20, 21, 2, 0, 2));
    }

    #[test]
    fn parts_that_share_their_budget_are_cut_as_submission_counts() {
        // With 10 tokens for both, a response to 8 keeps 5 and one to 4 keeps 6; the prompt has the rest.
        let (prompts, chosen, rejected) = ([8, 4, 4], [7, 6, 7], [1, 1, 6]);
        let limits = Limits::shared(10);
        let fit = |measured: Measured| measured.lengths.fit;
        assert_eq!(fit(Measured::prompts(&prompts, &[&chosen, &rejected], limits)), 2);
        assert_eq!(fit(Measured::responses("chosen", &prompts, &chosen, limits)), 1);
        assert_eq!(fit(Measured::responses("rejected", &prompts, &rejected, limits)), 3);
        assert_eq!(kept(&prompts, &chosen, &rejected, limits), [(5, 1), (6, 1), (6, 6)]);
        let apart = Limits::of(5, 6);
        assert_eq!(fit(Measured::prompts(&prompts, &[&chosen], apart)), 2);
        assert_eq!(fit(Measured::responses("chosen", &prompts, &chosen, apart)), 1);
        assert!(!Measured::prompts(&prompts, &[], apart).lengths.is_shared);
    }

    #[test]
    fn repetitions_and_shared_prompts_are_counted() {
        fn set<T: Row>(rows: Vec<T>) -> RowSet<T> {
            RowSet::of(rows).unwrap()
        }
        let golden = |prompt: &str, golden: &str| GoldenRow {
            id: 0,
            prompt: Prompt::user(prompt),
            golden: golden.into(),
        };
        let prompt = |prompt: &str| PromptRow { id: 0, prompt: Prompt::user(prompt) };
        let sets = [
            LocalSet {
                name: "golden",
                rows: Rows::Golden(set(vec![golden("a", "x"), golden("b", "x"), golden("a", "y")])),
            },
            LocalSet {
                name: "prompts",
                rows: Rows::Prompts(set(vec![prompt("b"), prompt("b"), prompt("c")])),
            },
            LocalSet { name: "other", rows: Rows::Prompts(set(vec![prompt("d")])) },
        ];
        let expected =
            Repetitions { distinct_prompts: 2, repeated_prompts: 1, responses: 3, repeated_responses: 1 };
        assert_eq!(repetitions(&sets[0]).unwrap(), expected);
        assert_eq!(repetitions(&sets[1]).unwrap().responses, 0);
        assert_eq!(overlaps(&sets), [Overlap { first: "golden", second: "prompts", prompts: 1 }]);
    }
}
