//! The results of jobs for experiment trackers, with the same limits and caches as pages.

use foil_proto::v1;
use tonic::{Code, Status};

use super::completions::Completions;
use super::distributions::Distributions;
use super::query::Query;
use super::read::Reader;
use crate::driver::UserHandle;

/// Number of bins of a histogram.
const BINS: u32 = 30;
/// Size limit of a text of a completion.
const TEXT_BYTES: u32 = 4096;

/// Reads results. Cheap to clone; clones share their caches.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    pub(super) reader: Reader,
    pub(super) completions: Completions,
    pub(super) distributions: Distributions,
}

impl Feed {
    /// Calls `visit` with each non-empty line of an object.
    pub(crate) async fn lines(
        &self,
        object: &v1::Object,
        mut visit: impl FnMut(&[u8]) -> Result<(), Status>,
    ) -> Result<(), Status> {
        self.reader.each_line(object, |line, _| visit(line)).await
    }

    /// The distributions of rewards in a round; none if it has none.
    pub(crate) async fn rewards(
        &self,
        driver: &UserHandle,
        job: &str,
        round: u32,
    ) -> Result<Option<v1::RoundDistributions>, Status> {
        let request = v1::GetDistributionsRequest { job_id: job.to_owned(), rounds: vec![round], bins: BINS };
        let found = absent_is_none(self.distributions.get(driver, request).await)?;
        Ok(found.and_then(|found| found.rounds.into_iter().next()))
    }

    /// The first evaluation completions of a round, with their prompts.
    pub(crate) async fn completions(
        &self,
        driver: &UserHandle,
        job: &str,
        round: u32,
        count: u32,
    ) -> Result<Vec<v1::CompletionRow>, Status> {
        let query = Query::parse(v1::ListCompletionsRequest {
            job_id: job.to_owned(),
            set: v1::CompletionSet::Evaluation.into(),
            rounds: vec![round],
            page_size: count,
            text_bytes: TEXT_BYTES,
            ..Default::default()
        })?;
        let found = absent_is_none(self.completions.list(driver, &query).await)?;
        Ok(found.map(|found| found.rows).unwrap_or_default())
    }
}

/// None for a round that lacks the requested data, or a job that has been deleted.
fn absent_is_none<T>(found: Result<T, Status>) -> Result<Option<T>, Status> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(status) if matches!(status.code(), Code::InvalidArgument | Code::NotFound) => Ok(None),
        // The request exceeds the limits of a page.
        Err(status) if status.code() == Code::FailedPrecondition => Ok(None),
        Err(status) => Err(status),
    }
}
