//! Gathers the data of a report from the coordinator, within bounds: a report is one file that a browser
//! holds in memory.

use anyhow::Result;
use foil_common::version::VERSION;
use foil_proto::v1::results_client::ResultsClient;
use foil_proto::v1::{self, CompletionSet};

use crate::client::Client;

/// Maximum number of curve points of all phases together, and the bounds for one phase.
const ALL_POINTS: usize = 20_000;
const PHASE_POINTS: (usize, usize) = (20, 500);
const TEXT_BYTES: u32 = 4096;
/// Number of rows whose completions of the last round include their tokens.
const DETAILED_ROWS: usize = 20;
const PAGE_ROWS: u32 = 100;
/// Maximum number of pages of the timeline.
const TIMELINE_PAGES: usize = 5;

/// How much of a run a report includes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Number of prompts of each set.
    pub(super) prompts: u32,
    /// Whether a page shows more than the tables of rounds.
    pub(super) with_page: bool,
}

/// Asks for everything that a report shows of a job. Its arm is left open.
pub(super) async fn run(client: &Client, job: v1::Job, extent: Extent) -> Result<v1::RunReport> {
    let id = job.id.clone();
    let mut run = v1::RunReport { job: Some(slim(job)), ..Default::default() };
    if !extent.with_page {
        return Ok(run);
    }
    run.steps = Some(steps(client, &run, &id).await?);
    let request = v1::GetDistributionsRequest { job_id: id.clone(), ..Default::default() };
    run.distributions = Some(
        client
            .ask(
                request,
                |line, request| async move { ResultsClient::new(line).get_distributions(request).await },
            )
            .await?,
    );
    run.timeline = Some(timeline(client, &id).await?);
    for set in [CompletionSet::Evaluation, CompletionSet::Training, CompletionSet::Golden] {
        let page = completions(client, &id, set, extent.prompts as usize).await?;
        if page.total == 0 || page.rows.is_empty() {
            continue;
        }
        run.details.extend(details(client, &id, set, &page).await?);
        run.completions.push(v1::CompletionReport { set: set.into(), page: Some(page) });
    }
    Ok(run)
}

pub(super) fn report(title: &str, runs: Vec<v1::RunReport>) -> v1::Report {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let generated_at = Some(pbjson_types::Timestamp { seconds, nanos: 0 });
    v1::Report { version: VERSION.to_owned(), generated_at, title: title.to_owned(), runs }
}

/// A job without the objects of its artifacts, which are numerous and useless without the store.
fn slim(mut job: v1::Job) -> v1::Job {
    job.artifacts.iter_mut().for_each(|artifact| artifact.objects.clear());
    job
}

async fn steps(client: &Client, run: &v1::RunReport, id: &str) -> Result<v1::GetStepsResponse> {
    let plan = run.job.as_ref().and_then(|job| job.plan.as_ref());
    let phases = plan.map_or(0, |plan| plan.phases.iter().filter(|phase| phase.steps > 0).count());
    let points = (ALL_POINTS / phases.max(1)).clamp(PHASE_POINTS.0, PHASE_POINTS.1);
    let mut request = v1::GetStepsRequest {
        job_id: id.to_owned(),
        max_points: u32::try_from(points).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut all = v1::GetStepsResponse::default();
    loop {
        let page: v1::GetStepsResponse = client
            .ask(
                request.clone(),
                |line, request| async move { ResultsClient::new(line).get_steps(request).await },
            )
            .await?;
        all.phases.extend(page.phases);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

async fn timeline(client: &Client, id: &str) -> Result<v1::GetTimelineResponse> {
    let mut request = v1::GetTimelineRequest { job_id: id.to_owned(), page_token: String::new() };
    let mut all = v1::GetTimelineResponse::default();
    for page in 0..TIMELINE_PAGES {
        let found: v1::GetTimelineResponse = client
            .ask(request.clone(), |line, request| async move {
                ResultsClient::new(line).get_timeline(request).await
            })
            .await?;
        all.spans.extend(found.spans);
        if page == 0 {
            (all.attempts, all.alarms) = (found.attempts, found.alarms);
        }
        if found.next_page_token.is_empty() {
            break;
        }
        request.page_token = found.next_page_token;
    }
    Ok(all)
}

/// The first rows of a set, as one page.
async fn completions(
    client: &Client,
    id: &str,
    set: CompletionSet,
    rows: usize,
) -> Result<v1::ListCompletionsResponse> {
    let mut request = v1::ListCompletionsRequest {
        job_id: id.to_owned(),
        set: set.into(),
        text_bytes: TEXT_BYTES,
        page_size: u32::try_from(rows).unwrap_or(u32::MAX).clamp(1, PAGE_ROWS),
        ..Default::default()
    };
    let mut all: Option<v1::ListCompletionsResponse> = None;
    loop {
        let page: v1::ListCompletionsResponse = client
            .ask(request.clone(), |line, request| async move {
                ResultsClient::new(line).list_completions(request).await
            })
            .await?;
        request.page_token.clone_from(&page.next_page_token);
        let all = match &mut all {
            Some(all) => {
                all.rows.extend(page.rows);
                all
            }
            None => all.insert(page),
        };
        all.next_page_token.clear();
        if request.page_token.is_empty() || all.rows.len() >= rows {
            all.rows.truncate(rows);
            return Ok(std::mem::take(all));
        }
    }
}

/// The tokens of the first rows' completions in the last round, one per row.
async fn details(
    client: &Client,
    id: &str,
    set: CompletionSet,
    page: &v1::ListCompletionsResponse,
) -> Result<Vec<v1::CompletionDetail>> {
    let mut details = Vec::new();
    for row in page.rows.iter().take(DETAILED_ROWS) {
        let Some(last) = row.completions.last().map(|found| found.round) else { continue };
        let in_last = row.completions.iter().find(|found| found.round == last);
        let request = v1::GetCompletionRequest {
            job_id: id.to_owned(),
            set: set.into(),
            round: last,
            prompt_id: row.prompt_id,
            index: in_last.map_or(0, |found| found.index),
        };
        let detail = client.ask(request, |line, request| async move {
            ResultsClient::new(line).get_completion(request).await
        });
        let prompt_id = row.prompt_id;
        details.push(v1::CompletionDetail { set: set.into(), prompt_id, detail: Some(detail.await?) });
    }
    Ok(details)
}
