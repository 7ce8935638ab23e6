//! The rows of a completion listing, and their order.

use std::collections::HashMap;
use std::sync::Arc;

use foil_proto::v1::{self, CompletionSort};

use super::cache::Size;
use super::index::{self, Fact, Index, Matches};

/// Rows in the order of a listing.
#[derive(Debug, Default)]
pub(super) struct Order {
    rows: Vec<u32>,
    disagreement: HashMap<u32, f64>,
}

impl Size for Order {
    fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<u32>() + self.disagreement.capacity() * size_of::<(u32, f64)>() * 2
    }
}

/// The rows of a listing.
pub(super) enum Listed {
    /// All rows, in the order of the data set or in reverse.
    All {
        rows: u64,
        descending: bool,
    },
    Some(Arc<Order>),
}

impl Listed {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::All { rows, .. } => *rows,
            Self::Some(order) => order.rows.len() as u64,
        }
    }

    pub(super) fn row(&self, at: u64) -> Option<u64> {
        match self {
            Self::All { rows, descending: false } => (at < *rows).then_some(at),
            Self::All { rows, descending: true } => rows.checked_sub(at + 1),
            Self::Some(order) => order.rows.get(usize::try_from(at).ok()?).map(|row| u64::from(*row)),
        }
    }

    pub(super) fn disagreement(&self, row: u64) -> Option<f64> {
        match self {
            Self::All { .. } => None,
            Self::Some(order) => order.disagreement.get(&u32::try_from(row).ok()?).copied(),
        }
    }
}

/// Where a text occurs.
pub(super) struct Found {
    /// By row.
    pub(super) prompts: Arc<Matches>,
    /// By completion, for each column.
    pub(super) columns: Vec<Arc<Matches>>,
}

/// Sort key and direction of rows.
pub(super) struct Ordering {
    pub(super) sort: CompletionSort,
    pub(super) descending: bool,
    pub(super) filter: v1::CompletionFilter,
    pub(super) indices: Vec<Arc<Index>>,
    /// The column to sort by.
    pub(super) by: Option<usize>,
    pub(super) found: Option<Found>,
    /// The only row that may be listed, if the filter specifies one.
    pub(super) only: Option<Option<u32>>,
}

impl Ordering {
    pub(super) fn rows(&self) -> Order {
        let mut rows: Vec<u32> =
            self.indices.iter().enumerate().flat_map(|(column, index)| self.passing(column, index)).collect();
        rows.sort_unstable();
        rows.dedup();
        let disagreement = match self.sort {
            CompletionSort::Disagreement => {
                index::disagreement(self.indices.iter().map(|index| index.facts.as_slice()))
            }
            _ => HashMap::new(),
        };
        let column = self.by.and_then(|by| self.indices.get(by));
        let means = |figure: fn(&Fact) -> f64| {
            column.map(|index| index::row_means(&index.facts, figure)).unwrap_or_default()
        };
        let means = match self.sort {
            CompletionSort::Unspecified | CompletionSort::Prompt => None,
            CompletionSort::Reward => Some(means(|fact| fact.reward)),
            CompletionSort::Length => Some(means(|fact| f64::from(fact.tokens))),
            CompletionSort::Gold => Some(means(|fact| fact.gold)),
            CompletionSort::Kl => Some(means(|fact| fact.kl)),
            CompletionSort::Disagreement => Some(disagreement.clone()),
        };
        match means {
            None if self.descending => rows.reverse(),
            None => {}
            // A stable sort: equal rows stay in the order of the data set.
            Some(means) => rows.sort_by(|a, b| match (means.get(a), means.get(b)) {
                (Some(a), Some(b)) if self.descending => b.total_cmp(a),
                (Some(a), Some(b)) => a.total_cmp(b),
                // Rows without a value come last in either direction.
                (a, b) => b.is_some().cmp(&a.is_some()),
            }),
        }
        Order { rows, disagreement }
    }

    /// The rows of the completions in a column that pass the filter.
    fn passing<'a>(&'a self, column: usize, index: &'a Index) -> impl Iterator<Item = u32> + 'a {
        let has_text = move |at: usize, row: u32| match &self.found {
            None => true,
            Some(found) => {
                let in_prompt = found.prompts.0.get(row as usize).copied().unwrap_or_default();
                in_prompt || found.columns[column].0.get(at).copied().unwrap_or_default()
            }
        };
        let may_be = move |row: u32| self.only.is_none_or(|only| only == Some(row));
        let passing = index.facts.iter().enumerate().filter(move |(at, fact)| {
            may_be(fact.row) && index::passes(&self.filter, fact) && has_text(*at, fact.row)
        });
        passing.map(|(_, fact)| fact.row)
    }
}

#[cfg(test)]
mod tests {
    use foil_proto::v1::Selection;

    use super::*;

    fn fact(row: u32, reward: f64, tokens: u32) -> Fact {
        Fact {
            row,
            tokens,
            reward,
            gold: f64::NAN,
            kl: f64::NAN,
            finished: tokens < 9,
            selection: Selection::Unspecified,
        }
    }

    fn ordering(sort: CompletionSort, descending: bool, facts: &[&[Fact]]) -> Ordering {
        let indices = facts.iter().map(|facts| Arc::new(Index { facts: facts.to_vec() })).collect();
        let by = facts.len().checked_sub(1);
        Ordering {
            sort,
            descending,
            filter: v1::CompletionFilter::default(),
            indices,
            by,
            found: None,
            only: None,
        }
    }

    #[test]
    fn rows_are_sorted_by_means_with_those_without_a_value_last() {
        let first = [fact(0, 9.0, 1), fact(1, 9.0, 1), fact(2, 9.0, 1), fact(3, 9.0, 1)];
        let last = [fact(0, 1.0, 5), fact(0, 3.0, 5), fact(1, f64::NAN, 9), fact(2, 2.0, 1), fact(3, 1.5, 7)];
        let rows = |sort, descending| ordering(sort, descending, &[&first, &last]).rows().rows;
        assert_eq!(rows(CompletionSort::Reward, false), [3, 0, 2, 1]);
        assert_eq!(rows(CompletionSort::Reward, true), [0, 2, 3, 1], "ties stay in order");
        assert_eq!(rows(CompletionSort::Length, true), [1, 3, 0, 2]);
        assert_eq!(rows(CompletionSort::Gold, true), [0, 1, 2, 3], "none has a gold reward");
        assert_eq!(rows(CompletionSort::Prompt, true), [3, 2, 1, 0]);
        let by_first = Ordering { by: Some(0), ..ordering(CompletionSort::Length, false, &[&first, &last]) };
        assert_eq!(by_first.rows().rows, [0, 1, 2, 3]);
    }

    #[test]
    fn a_row_is_listed_if_one_completion_passes_the_whole_filter() {
        let facts = [fact(0, 1.0, 5), fact(0, 3.0, 9), fact(1, 3.0, 5), fact(2, 1.0, 9)];
        let mut order = ordering(CompletionSort::Prompt, false, &[&facts]);
        order.filter.min_reward = Some(2.0);
        assert_eq!(order.rows().rows, [0, 1]);
        order.filter.finished = Some(true);
        assert_eq!(order.rows().rows, [1], "the other row's good one is not finished");
        let matches = |found: &[bool]| Arc::new(Matches(found.to_vec()));
        order.filter = v1::CompletionFilter::default();
        order.found = Some(Found {
            prompts: matches(&[false, false, true]),
            columns: vec![matches(&[false, true, false, false])],
        });
        assert_eq!(order.rows().rows, [0, 2]);
        order.only = Some(Some(2));
        assert_eq!(order.rows().rows, [2]);
        order.only = Some(None);
        assert_eq!(order.rows().rows, [] as [u32; 0]);
    }
}
