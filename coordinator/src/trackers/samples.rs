//! Completions and reward distributions of a round, as trackers show them.

use std::fmt::Write;

use foil_proto::v1::{self, RewardSource};

use super::batch::{Histogram, JobFacts};
use super::delivery::{Context, own};
use super::http::Failure;
use super::source::PhaseFacts;

/// The first evaluation completions of a round, with their prompts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Completions {
    pub(super) round: u32,
    /// Milliseconds since the Unix epoch.
    pub(super) at: u64,
    /// Never empty.
    pub(super) rows: Vec<v1::CompletionRow>,
}

/// The completions of the round whose policy was evaluated last; none if the job asks for none.
pub(super) async fn completions(
    job: &JobFacts,
    facts: &PhaseFacts,
    cx: &Context,
) -> Result<Option<Completions>, Failure> {
    if job.num_completions == 0 {
        return Ok(None);
    }
    let (round, driver) = (facts.phase.round, cx.driver.unscoped());
    let rows = cx.feed.completions(&driver, &job.id, round, job.num_completions).await;
    let rows = rows.map_err(|status| own(&status))?;
    let completions = Completions { round, at: facts.committed_at.unwrap_or_default(), rows };
    Ok((!completions.rows.is_empty()).then_some(completions))
}

/// The distributions of the rewards of that round.
pub(super) async fn histograms(
    job: &JobFacts,
    facts: &PhaseFacts,
    cx: &Context,
) -> Result<Vec<Histogram>, Failure> {
    let (round, at) = (facts.phase.round, facts.committed_at.unwrap_or_default());
    let found = cx.feed.rewards(&cx.driver.unscoped(), &job.id, round).await;
    let Some(found) = found.map_err(|status| own(&status))? else { return Ok(Vec::new()) };
    let histogram = |histogram: v1::RewardHistogram| {
        let name = source(histogram.source())?;
        let edges = match histogram.source() {
            RewardSource::EvaluationGold => found.gold_edges.clone(),
            _ => found.edges.clone(),
        };
        Some(Histogram { tag: format!("rewards/{name}"), step: round.into(), at, histogram, edges })
    };
    Ok(found.histograms.into_iter().filter_map(histogram).collect())
}

fn source(source: RewardSource) -> Option<&'static str> {
    Some(match source {
        RewardSource::Unspecified => return None,
        RewardSource::Golden => "golden",
        RewardSource::GoldenCompletions => "golden_completions",
        RewardSource::Chosen => "chosen",
        RewardSource::Rejected => "rejected",
        RewardSource::Training => "training",
        RewardSource::Evaluation => "evaluation",
        RewardSource::EvaluationGold => "evaluation_gold",
    })
}

/// A prompt's messages, one line each with its role.
pub(super) fn prompt(row: &v1::CompletionRow) -> String {
    let mut text = String::new();
    for message in &row.prompt {
        let _ = writeln!(text, "{}: {}", message.role, shown(message.text.as_ref()));
    }
    text
}

/// A prompt and its completions with their metrics, as one text.
pub(super) fn text(row: &v1::CompletionRow) -> String {
    let mut text = prompt(row);
    for completion in &row.completions {
        let figure = |name: &str, value: Option<f64>| {
            value.map(|value| format!(", {name} {value:.4}")).unwrap_or_default()
        };
        let _ = writeln!(
            text,
            "\n({} tokens{}{}{})\n{}",
            completion.tokens,
            figure("reward", completion.reward),
            figure("gold", completion.gold),
            figure("kl", completion.kl),
            shown(completion.text.as_ref())
        );
    }
    text
}

pub(super) fn shown(text: Option<&v1::Text>) -> &str {
    text.map(|text| text.text.as_str()).unwrap_or_default()
}
