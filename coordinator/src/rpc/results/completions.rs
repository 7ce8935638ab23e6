//! Listing of completions: the rows, their order, and the page itself.

use std::sync::Arc;

use foil_common::data::rows::Prompt;
use foil_proto::v1::{self, CompletionSort};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use tonic::Status;

use super::cache::Cache;
use super::catalog::{Catalog, Column};
use super::chunk::Sample;
use super::index::{self, Index, Matches};
use super::order::{Found, Listed, Order, Ordering};
use super::query::Query;
use super::read::{Reader, blocking, damaged};
use super::wire::{completion, messages, text};
use crate::driver::UserHandle;
use crate::rpc::status::{bad_field, no_job, stopped};

/// Size limit of the texts of one row's completions; with very many completions, each is truncated further.
const ROW_BYTES: usize = 1 << 20;
/// Size beyond which a page takes no further row.
const PAGE_BYTES: usize = 1 << 20;
/// Number of rows assembled concurrently.
const CONCURRENT_ROWS: usize = 4;

/// Memory for indices and row orders.
const INDEX_CACHE_BYTES: usize = 96 << 20;
const MATCHES_CACHE_BYTES: usize = 16 << 20;
const ORDER_CACHE_BYTES: usize = 32 << 20;

/// Lists completions. Cheap to clone; clones share their caches.
#[derive(Debug, Clone)]
pub(super) struct Completions {
    pub(super) reader: Reader,
    indices: Cache<Index>,
    matches: Cache<Matches>,
    orders: Cache<Order>,
}

/// A row of a data set of prompts, which may have a golden answer.
#[derive(Debug, Deserialize)]
pub(super) struct PromptRow {
    pub(super) id: u64,
    pub(super) prompt: Prompt,
    #[serde(default)]
    pub(super) golden: Option<String>,
}

impl Completions {
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader,
            indices: Cache::new(INDEX_CACHE_BYTES),
            matches: Cache::new(MATCHES_CACHE_BYTES),
            orders: Cache::new(ORDER_CACHE_BYTES),
        }
    }

    pub(super) async fn list(
        &self,
        driver: &UserHandle,
        query: &Query,
    ) -> Result<v1::ListCompletionsResponse, Status> {
        let catalog = catalog(driver, &query.job, query.set, "rounds", &query.rounds).await?;
        let listed = self.listed(driver, query, &catalog).await?;
        let mut response = v1::ListCompletionsResponse {
            total: listed.len(),
            total_unfiltered: catalog.rows(),
            rounds: catalog.columns.iter().map(Column::wire).collect(),
            available_rounds: catalog.available.clone(),
            seed: catalog.seed,
            ..Default::default()
        };
        let end = query.offset.saturating_add(query.page_size as u64);
        let rows = (query.offset..end.min(listed.len())).map_while(|at| listed.row(at));
        let rows = stream::iter(rows).map(|row| self.row(driver, &catalog, row, query.text_bytes));
        let mut rows = rows.buffered(CONCURRENT_ROWS);
        let (mut taken, mut bytes) = (query.offset, 0);
        while let Some((row, mut wire)) = rows.try_next().await? {
            wire.disagreement = listed.disagreement(row);
            bytes += prost::Message::encoded_len(&wire);
            response.rows.push(wire);
            taken += 1;
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        if taken < listed.len() && !response.rows.is_empty() {
            let shown: Vec<u32> = catalog.columns.iter().map(|column| column.round).collect();
            response.next_page_token = query.token(taken, &shown);
        }
        Ok(response)
    }

    /// The rows selected by a query.
    async fn listed(&self, driver: &UserHandle, query: &Query, catalog: &Catalog) -> Result<Listed, Status> {
        let last = catalog.columns.last().map(|column| column.round);
        let sorted_by = query.sort_round.or(last);
        let by = catalog.columns.iter().position(|column| Some(column.round) == sorted_by);
        if let (Some(round), None) = (query.sort_round, by) {
            return Err(bad_field("sort_round", &format!("round {round} is not one of those shown")));
        }
        if query.sort == CompletionSort::Prompt && !query.has_filter() {
            let rows = if catalog.columns.is_empty() { 0 } else { catalog.rows() };
            return Ok(Listed::All { rows, descending: query.descending });
        }
        index::check_size(catalog)?;
        let keys: Vec<String> = catalog.columns.iter().map(|column| column.key(&catalog.job)).collect();
        let order = self.order(driver, query, catalog, by);
        Ok(Listed::Some(self.orders.get(&query.key(&keys), order).await?))
    }

    async fn order(
        &self,
        driver: &UserHandle,
        query: &Query,
        catalog: &Catalog,
        by: Option<usize>,
    ) -> Result<Order, Status> {
        let mut indices = Vec::new();
        for column in &catalog.columns {
            indices.push(self.index(driver, catalog, column).await?);
        }
        let found = self.found(driver, query, catalog).await?;
        let only = match query.filter.prompt_id {
            Some(id) => Some(self.row_of(catalog, id).await?),
            None => None,
        };
        let order = Ordering {
            sort: query.sort,
            descending: query.descending,
            filter: query.filter.clone(),
            indices,
            by,
            found,
            only,
        };
        blocking(move || Ok(order.rows())).await
    }

    /// The metrics of a round's completions.
    pub(super) async fn index(
        &self,
        driver: &UserHandle,
        catalog: &Catalog,
        column: &Column,
    ) -> Result<Arc<Index>, Status> {
        let read = index::build(&self.reader, driver, catalog, column);
        self.indices.get(&column.key(&catalog.job), read).await
    }

    /// Where the query's text occurs, if it has one.
    async fn found(
        &self,
        driver: &UserHandle,
        query: &Query,
        catalog: &Catalog,
    ) -> Result<Option<Found>, Status> {
        let text = query.filter.contains.to_lowercase();
        if text.is_empty() {
            return Ok(None);
        }
        let named = blake3::hash(text.as_bytes()).to_hex();
        let segments: Vec<&str> =
            catalog.segments.iter().map(|segment| segment.object.key.as_str()).collect();
        let key = format!("{}/{named}", segments.join("+"));
        let read = index::prompt_matches(&self.reader, catalog, &text);
        let prompts = self.matches.get(&key, read).await?;
        let mut columns = Vec::new();
        for column in &catalog.columns {
            let key = format!("{}/{named}", column.key(&catalog.job));
            let read = index::matches(&self.reader, driver, catalog, column, &text);
            columns.push(self.matches.get(&key, read).await?);
        }
        Ok(Some(Found { prompts, columns }))
    }

    /// The row of a prompt id: one, or none.
    async fn row_of(&self, catalog: &Catalog, id: u64) -> Result<Option<u32>, Status> {
        for segment in &catalog.segments {
            let rows = self.reader.rows(&segment.object).await?;
            if let Some(local) = rows.ids.iter().position(|known| *known == id) {
                return Ok(u32::try_from(segment.first + local as u64).ok());
            }
        }
        Ok(None)
    }

    /// A row with its completions, and its number.
    async fn row(
        &self,
        driver: &UserHandle,
        catalog: &Catalog,
        row: u64,
        text_bytes: usize,
    ) -> Result<(u64, v1::CompletionRow), Status> {
        let (segment, prompt) = self.prompt(catalog, row).await?;
        let local = row - catalog.segments[segment].first;
        let chunk = u32::try_from(local / catalog.chunk_prompts).unwrap_or(u32::MAX);
        let count: usize = catalog.columns.iter().map(|column| column.samples as usize).sum();
        let limit = text_bytes.min((ROW_BYTES / count.max(1)).max(64));
        let mut wire = v1::CompletionRow {
            prompt_id: prompt.id,
            prompt: messages(&prompt.prompt, text_bytes),
            golden: prompt.golden.as_deref().map(|golden| text(golden, text_bytes)),
            held_out: catalog.segments[segment].held_out,
            ..Default::default()
        };
        for column in catalog.columns.iter().filter(|column| column.bases[segment].is_some()) {
            // Chunks may be large, so only one is held at a time.
            let chunk = self.reader.chunk(driver, catalog, column, segment, chunk).await?;
            let Some(group) = chunk.prompts.get(&prompt.id) else { continue };
            let (round, completions) = (column.round, &group.completions);
            wire.completions.extend(completions.iter().map(|found| completion(round, found, limit)));
            wire.golden_rewards.extend(group.golden_reward.map(|reward| v1::GoldenReward { round, reward }));
        }
        Ok((row, wire))
    }

    /// The prompt of a row, and its segment.
    async fn prompt(&self, catalog: &Catalog, row: u64) -> Result<(usize, PromptRow), Status> {
        let (segment, local) =
            catalog.locate(row).ok_or_else(|| Status::internal("a row beyond the data set"))?;
        let object = &catalog.segments[segment].object;
        let rows = self.reader.rows(object).await?;
        Ok((segment, self.reader.row(object, &rows, local).await?))
    }

    /// One completion of the catalog's only column, with its prompt.
    pub(super) async fn find(
        &self,
        driver: &UserHandle,
        catalog: &Catalog,
        prompt_id: u64,
        index: u32,
    ) -> Result<Option<Located>, Status> {
        let Some(row) = self.row_of(catalog, prompt_id).await? else { return Ok(None) };
        let (segment, prompt) = self.prompt(catalog, row.into()).await?;
        let Some(column) = catalog.columns.first().filter(|column| column.bases[segment].is_some()) else {
            return Ok(None);
        };
        let number = (u64::from(row) - catalog.segments[segment].first) / catalog.chunk_prompts;
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let chunk = self.reader.chunk(driver, catalog, column, segment, number).await?;
        let group = chunk.prompts.get(&prompt_id);
        let found =
            group.and_then(|group| group.completions.iter().find(|found| found.sample.index == index));
        Ok(found.cloned().map(|completion| Located { completion, prompt, number }))
    }
}

/// A completion and its location.
pub(super) struct Located {
    pub(super) completion: Sample,
    pub(super) prompt: PromptRow,
    /// Number of its chunk in the segment.
    pub(super) number: u32,
}

/// The catalog of a data set, from the job's state; errors name `field` as the source of the requested
/// rounds.
pub(super) async fn catalog(
    driver: &UserHandle,
    job: &str,
    set: v1::CompletionSet,
    field: &'static str,
    rounds: &[u32],
) -> Result<Catalog, Status> {
    let rounds = rounds.to_vec();
    let found = driver.inspect(job, move |state| Catalog::of(state, set, field, &rounds)).await;
    found.map_err(stopped)?.ok_or_else(|| no_job(job))?
}

/// Status for a completion that does not exist.
pub(super) fn no_completion(catalog: &Catalog, prompt_id: u64, index: u32) -> Status {
    match catalog.columns.first() {
        Some(column) => bad_field(
            "prompt_id",
            &format!("there is no completion {index} of prompt {prompt_id} in {}", column.phase),
        ),
        None => damaged(&catalog.job, "it has no such round"),
    }
}
