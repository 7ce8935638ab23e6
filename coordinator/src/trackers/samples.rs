//! Completions and distributions of rewards of a round, as trackers show them.

use std::fmt::Write;

use foil_proto::v1::{self, RewardSource};

use super::batch::{Batch, Histogram, JobFacts, Text};
use super::delivery::{Context, own};
use super::http::Failure;
use super::source::PhaseFacts;

/// Adds the completions and rewards of the round whose policy was evaluated last.
pub(super) async fn add(
    batch: &mut Batch,
    job: &JobFacts,
    facts: &PhaseFacts,
    cx: &Context,
) -> Result<(), Failure> {
    let (round, at) = (facts.phase.round, facts.committed_at.unwrap_or_default());
    let driver = cx.driver.unscoped();
    if job.num_completions > 0 {
        let rows = cx.feed.completions(&driver, &job.id, round, job.num_completions).await;
        let rows = rows.map_err(|status| own(&status))?;
        batch.texts.extend(rows.iter().enumerate().map(|(index, row)| Text {
            // A prompt has its tag, so that its completions can be followed over the rounds.
            tag: format!("completions/{index}"),
            step: round.into(),
            at,
            text: text(row),
        }));
    }
    let found = cx.feed.rewards(&driver, &job.id, round).await.map_err(|status| own(&status))?;
    let Some(found) = found else { return Ok(()) };
    batch.histograms.extend(found.histograms.into_iter().filter_map(|histogram| {
        let name = source(histogram.source())?;
        let edges = match histogram.source() {
            RewardSource::EvaluationGold => found.gold_edges.clone(),
            _ => found.edges.clone(),
        };
        Some(Histogram { tag: format!("rewards/{name}"), step: round.into(), at, histogram, edges })
    }));
    Ok(())
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

fn text(row: &v1::CompletionRow) -> String {
    let mut text = String::new();
    for message in &row.prompt {
        let _ = writeln!(text, "{}: {}", message.role, shown(message.text.as_ref()));
    }
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

fn shown(text: Option<&v1::Text>) -> &str {
    text.map(|text| text.text.as_str()).unwrap_or_default()
}
