//! The metrics of a round's completions, without their texts: the basis for sorting and filtering rows.

use std::collections::HashMap;

use foil_proto::v1::{self, Selection};
use futures::{TryStreamExt, pin_mut};
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

use super::cache::Size;
use super::catalog::{Catalog, Column};
use super::chunk::Sample;
use super::read::Reader;
use crate::driver::UserHandle;
use crate::rpc::status::status;

/// Maximum number of completions, over all rounds shown, that a listing sorts and filters.
pub(super) const MAX_FACTS: u64 = 1_000_000;

/// The metrics of one completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fact {
    /// The prompt's row among those of all segments.
    pub(super) row: u32,
    pub(super) tokens: u32,
    /// NaN if there is none; the same holds for the next two fields.
    pub(super) reward: f64,
    pub(super) gold: f64,
    pub(super) kl: f64,
    pub(super) finished: bool,
    pub(super) selection: Selection,
}

/// The metrics of a round's completions, ordered by row and index.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) facts: Vec<Fact>,
}

impl Size for Index {
    fn bytes(&self) -> usize {
        self.facts.capacity() * size_of::<Fact>()
    }
}

/// For each completion of an index, whether it contains a text.
#[derive(Debug, Default)]
pub(super) struct Matches(pub(super) Vec<bool>);

impl Size for Matches {
    fn bytes(&self) -> usize {
        self.0.capacity()
    }
}

impl Fact {
    fn of(row: u32, completion: &Sample) -> Self {
        let Sample { sample, selection } = completion;
        Self {
            row,
            tokens: u32::try_from(sample.tokens.len()).unwrap_or(u32::MAX),
            reward: sample.reward.unwrap_or(f64::NAN),
            gold: sample.gold.unwrap_or(f64::NAN),
            kl: sample.kl.unwrap_or(f64::NAN),
            finished: sample.finished,
            selection: *selection,
        }
    }
}

/// Refuses to sort or filter more completions than fit in memory.
pub(super) fn check_size(catalog: &Catalog) -> Result<(), Status> {
    let of_column = |column: &Column| {
        let covered = catalog.segments.iter().zip(&column.bases).filter(|(_, base)| base.is_some());
        covered.map(|(segment, _)| segment.rows).sum::<u64>().saturating_mul(column.samples)
    };
    let completions = catalog.columns.iter().map(of_column).fold(0, u64::saturating_add);
    if completions <= MAX_FACTS {
        return Ok(());
    }
    let problem = format!(
        "the rounds shown have {completions} completions, and at most {MAX_FACTS} are sorted or filtered: show fewer rounds, or \
         all rows in the order of the data set"
    );
    Err(status(Code::FailedPrecondition, "TOO_MANY_COMPLETIONS", problem, ErrorDetails::new()))
}

/// Reads all completions of a round once.
pub(super) async fn build(
    reader: &Reader,
    driver: &UserHandle,
    catalog: &Catalog,
    column: &Column,
) -> Result<Index, Status> {
    let mut index = Index::default();
    visit(reader, driver, catalog, column, |row, completion| index.facts.push(Fact::of(row, completion)))
        .await?;
    index.facts.shrink_to_fit();
    Ok(index)
}

/// Searches all completions of a round for a text in lower case.
pub(super) async fn matches(
    reader: &Reader,
    driver: &UserHandle,
    catalog: &Catalog,
    column: &Column,
    text: &str,
) -> Result<Matches, Status> {
    let mut matches = Matches::default();
    visit(reader, driver, catalog, column, |_, completion| {
        matches.0.push(contains(&completion.sample.text, text));
    })
    .await?;
    matches.0.shrink_to_fit();
    Ok(matches)
}

/// Searches all prompts for a text in lower case.
pub(super) async fn prompt_matches(
    reader: &Reader,
    catalog: &Catalog,
    text: &str,
) -> Result<Matches, Status> {
    #[derive(serde::Deserialize)]
    struct Row {
        prompt: foil_common::data::rows::Prompt,
    }
    let mut matches = Matches::default();
    for segment in &catalog.segments {
        reader
            .each_line(&segment.object, |line, _| {
                let row: Row = serde_json::from_slice(line)
                    .map_err(|error| super::read::damaged(&segment.object.key, &error.to_string()))?;
                matches.0.push(row.prompt.messages.iter().any(|message| contains(&message.content, text)));
                Ok(())
            })
            .await?;
    }
    Ok(matches)
}

fn contains(text: &str, lower_case: &str) -> bool {
    text.to_lowercase().contains(lower_case)
}

/// Calls `take` with each completion of a round and its row, ordered by row and index.
async fn visit(
    reader: &Reader,
    driver: &UserHandle,
    catalog: &Catalog,
    column: &Column,
    mut take: impl FnMut(u32, &Sample),
) -> Result<(), Status> {
    for (segment, rows) in catalog.segments.iter().enumerate() {
        if column.bases[segment].is_none() {
            continue;
        }
        let ids = reader.rows(&rows.object).await?;
        let chunks = reader.each_chunk(driver, catalog, column, segment).await?;
        pin_mut!(chunks);
        let mut first = 0;
        while let Some(chunk) = chunks.try_next().await? {
            let of_chunk = ids.ids.iter().skip(first).take(catalog.chunk_prompts as usize);
            for (local, id) in (first..).zip(of_chunk) {
                let row = u32::try_from(rows.first + local as u64).unwrap_or(u32::MAX);
                let group = chunk.prompts.get(id);
                group.iter().flat_map(|group| &group.completions).for_each(|found| take(row, found));
            }
            first += catalog.chunk_prompts as usize;
        }
    }
    Ok(())
}

/// The mean of a metric over each row's completions; rows without it are omitted.
pub(super) fn row_means(facts: &[Fact], figure: impl Fn(&Fact) -> f64) -> HashMap<u32, f64> {
    let rows = facts.chunk_by(|a, b| a.row == b.row);
    let mean = |facts: &[Fact]| {
        let known = facts.iter().map(&figure).filter(|value| value.is_finite());
        let (count, sum) = known.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
        (count > 0).then(|| (facts[0].row, sum / f64::from(count)))
    };
    rows.filter_map(mean).collect()
}

/// How much rounds differ on each row: the largest difference between their mean rewards, each measured in
/// standard deviations from its round's mean. Rows with fewer than two rounds are omitted.
pub(super) fn disagreement<'a>(rounds: impl Iterator<Item = &'a [Fact]>) -> HashMap<u32, f64> {
    let mut bounds: HashMap<u32, (f64, f64, u32)> = HashMap::new();
    for facts in rounds {
        let means = row_means(facts, |fact| fact.reward);
        // In row order, so that the sums are bit-identical each time.
        let mut ordered: Vec<(u32, f64)> = means.into_iter().collect();
        ordered.sort_unstable_by_key(|(row, _)| *row);
        let moments: foil_common::stats::Moments = ordered.iter().map(|(_, mean)| *mean).collect();
        let spread = moments.mean().zip(moments.standard_deviation().filter(|spread| *spread > 0.0));
        let Some((mean, deviation)) = spread else { continue };
        for (row, reward) in ordered {
            let standard = (reward - mean) / deviation;
            let bound = bounds.entry(row).or_insert((standard, standard, 0));
            *bound = (bound.0.min(standard), bound.1.max(standard), bound.2 + 1);
        }
    }
    let several = bounds.into_iter().filter(|(_, (.., rounds))| *rounds >= 2);
    several.map(|(row, (low, high, _))| (row, high - low)).collect()
}

/// Whether a completion passes a filter, ignoring texts.
pub(super) fn passes(filter: &v1::CompletionFilter, fact: &Fact) -> bool {
    let within = |value: f64, min: Option<f64>, max: Option<f64>| {
        // NaN is outside every range.
        min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max)
    };
    filter.finished.is_none_or(|finished| finished == fact.finished)
        && (filter.selection() == Selection::Unspecified || filter.selection() == fact.selection)
        && within(fact.reward, filter.min_reward, filter.max_reward)
        && within(fact.gold, filter.min_gold, filter.max_gold)
        && filter.min_tokens.is_none_or(|min| fact.tokens >= min)
        && filter.max_tokens.is_none_or(|max| fact.tokens <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(row: u32, reward: f64) -> Fact {
        Fact {
            row,
            tokens: row + 1,
            reward,
            gold: f64::NAN,
            kl: 0.5,
            finished: row.is_multiple_of(2),
            selection: Selection::Unspecified,
        }
    }

    #[test]
    fn rows_have_the_means_of_what_is_known() {
        let facts = [fact(0, 1.0), fact(0, 3.0), fact(2, f64::NAN), fact(2, 5.0), fact(3, f64::NAN)];
        assert_eq!(row_means(&facts, |fact| fact.reward), HashMap::from([(0, 2.0), (2, 5.0)]));
        assert!(row_means(&facts, |fact| fact.gold).is_empty());
    }

    #[test]
    fn disagreement_does_not_depend_on_the_offset_and_scale_of_a_reward_model() {
        let one = [fact(0, 1.0), fact(1, 2.0), fact(2, 3.0)];
        let same = [fact(0, 70.0), fact(1, 90.0), fact(2, 110.0)];
        let turned = [fact(0, 3.0), fact(1, 2.0), fact(2, 1.0)];
        let of = |rounds: &[&[Fact]]| {
            let mut found: Vec<_> = disagreement(rounds.iter().copied()).into_iter().collect();
            found.sort_by_key(|(row, _)| *row);
            found
        };
        assert_eq!(of(&[&one, &same]), [(0, 0.0), (1, 0.0), (2, 0.0)]);
        assert_eq!(of(&[&one, &turned]), [(0, 2.0), (1, 0.0), (2, 2.0)]);
        assert_eq!(of(&[&one]), [], "one round agrees with itself");
        assert_eq!(of(&[&one, &[fact(0, 1.0), fact(1, 1.0)]]), [], "identical rewards carry no information");
    }

    #[test]
    fn a_filter_bounds_figures_and_leaves_out_what_has_none() {
        let passes = |filter: v1::CompletionFilter, fact: Fact| passes(&filter, &fact);
        let none = v1::CompletionFilter::default();
        assert!(passes(none.clone(), fact(0, f64::NAN)));
        let reward = v1::CompletionFilter { min_reward: Some(1.0), max_reward: Some(2.0), ..none.clone() };
        assert!(passes(reward.clone(), fact(0, 1.0)) && passes(reward.clone(), fact(0, 2.0)));
        assert!(!passes(reward.clone(), fact(0, 2.1)) && !passes(reward, fact(0, f64::NAN)));
        let gold = v1::CompletionFilter { max_gold: Some(9.0), ..none.clone() };
        assert!(!passes(gold, fact(0, 1.0)));
        let finished = v1::CompletionFilter { finished: Some(true), ..none.clone() };
        assert!(passes(finished.clone(), fact(0, 1.0)) && !passes(finished, fact(1, 1.0)));
        let tokens = v1::CompletionFilter { min_tokens: Some(2), max_tokens: Some(2), ..none.clone() };
        assert!(passes(tokens.clone(), fact(1, 1.0)) && !passes(tokens.clone(), fact(0, 1.0)));
        assert!(!passes(tokens, fact(2, 1.0)));
        let chosen = v1::CompletionFilter { selection: Selection::Chosen.into(), ..none };
        assert!(!passes(chosen.clone(), fact(0, 1.0)));
        assert!(passes(chosen, Fact { selection: Selection::Chosen, ..fact(0, 1.0) }));
    }
}
