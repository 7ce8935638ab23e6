//! One completion in full, token by token.

use foil_proto::v1::{self, CompletionSet};
use tonic::Status;

use super::catalog::Catalog;
use super::completions::{Completions, Located, catalog, no_completion};
use super::read::blocking;
use super::tokens;
use super::wire::{completion, messages, text};
use crate::driver::UserHandle;
use crate::job::JobState;
use crate::plan::{Phase, Work};
use crate::rpc::status::{bad_field, stopped};

/// Size limit of each text.
const TEXT_BYTES: usize = 1 << 20;
/// Size limit of the whole prompt, shared by its turns.
const PROMPT_BYTES: usize = 1 << 20;
const MAX_TOKENS: usize = 16_384;

pub(super) async fn get(
    completions: &Completions,
    driver: &UserHandle,
    request: v1::GetCompletionRequest,
) -> Result<v1::GetCompletionResponse, Status> {
    let v1::GetCompletionRequest { job_id, set, round, prompt_id, index } = request;
    let set = CompletionSet::try_from(set)
        .map_err(|_| bad_field("set", &format!("found {set}, which this version does not know")))?;
    let set = if set == CompletionSet::Unspecified { CompletionSet::Evaluation } else { set };
    let catalog = catalog(driver, &job_id, set, "round", &[round]).await?;
    let found = completions.find(driver, &catalog, prompt_id, index).await?;
    let found = found.ok_or_else(|| no_completion(&catalog, prompt_id, index))?;
    let log_probs = log_probs(completions, driver, &catalog, &found).await?;
    let (tokens, tokens_note) = tokens(completions, &catalog, &found, &log_probs).await?;
    let turns = found.prompt.prompt.messages.len().max(1);
    Ok(v1::GetCompletionResponse {
        completion: Some(completion(round, &found.completion, TEXT_BYTES)),
        prompt: messages(&found.prompt.prompt, (PROMPT_BYTES / turns).max(4096)),
        golden: found.prompt.golden.as_deref().map(|golden| text(golden, TEXT_BYTES)),
        round: catalog.columns.first().map(super::catalog::Column::wire),
        tokens,
        tokens_note,
        seed: catalog.seed,
    })
}

/// The log-probabilities of a completion under policies that are not being trained, if the job has any.
async fn log_probs(
    completions: &Completions,
    driver: &UserHandle,
    catalog: &Catalog,
    found: &Located,
) -> Result<v1::SampleLogProbs, Status> {
    let (prompt, index) = (found.prompt.id, found.completion.sample.index);
    let Some(round) = catalog.columns.first().map(|column| column.round) else {
        return Ok(Default::default());
    };
    if catalog.set != CompletionSet::Training {
        return Ok(v1::SampleLogProbs::default());
    }
    let chunk = found.number as usize;
    let look = move |state: &JobState| {
        let done = state.done(&Phase::id_of(round, Work::RefLogProbs))?;
        done.artifact.objects.get(chunk).cloned()
    };
    let object = driver.inspect(&catalog.job, look).await.map_err(stopped)?.flatten();
    let Some(object) = object else { return Ok(v1::SampleLogProbs::default()) };
    let batch: v1::LogProbsBatch = completions.reader.message(&object).await?;
    let mut samples = batch.samples.into_iter();
    Ok(samples.find(|sample| (sample.prompt_id, sample.index) == (prompt, index)).unwrap_or_default())
}

/// The tokens of a completion, or the reason why they have no texts.
async fn tokens(
    completions: &Completions,
    catalog: &Catalog,
    found: &Located,
    log_probs: &v1::SampleLogProbs,
) -> Result<(Vec<v1::CompletionToken>, String), Status> {
    let sample = &found.completion.sample;
    let ids: Vec<u32> = sample.tokens.iter().copied().take(MAX_TOKENS).collect();
    let (texts, note) = texts(completions, catalog, ids.clone()).await?;
    let finite = |values: &[f32], at: usize| values.get(at).copied().filter(|value| value.is_finite());
    let token = |(at, id): (usize, u32)| v1::CompletionToken {
        id,
        text: texts.get(at).cloned().unwrap_or_default(),
        log_prob: finite(&sample.log_probs, at),
        ref_log_prob: finite(&log_probs.ref_log_probs, at),
        old_log_prob: finite(&log_probs.old_log_probs, at),
    };
    Ok((ids.into_iter().enumerate().map(token).collect(), note))
}

async fn texts(
    completions: &Completions,
    catalog: &Catalog,
    ids: Vec<u32>,
) -> Result<(Vec<String>, String), Status> {
    let policy = catalog.columns.first().and_then(|column| column.policy.as_ref());
    // The tokens belong to the policy that wrote them. Their batch names a fingerprint of the tokenizer's
    // content, not the hash of its file.
    let tokenizer =
        policy.and_then(|policy| policy.objects.iter().find(|object| object.path == "tokenizer.json"));
    let Some(tokenizer) = tokenizer else {
        return Ok((Vec::new(), "the tokenizer of these tokens is not among the job's artifacts".to_owned()));
    };
    let _room = completions.reader.room(tokenizer.size).await?;
    let bytes = match completions.reader.object(tokenizer).await {
        Ok(bytes) => bytes,
        Err(status) if status.code() == tonic::Code::NotFound => {
            return Ok((Vec::new(), "the tokenizer of these tokens is no longer in the store".to_owned()));
        }
        Err(status) => return Err(status),
    };
    let texts = blocking(move || Ok(tokens::texts(&bytes, &ids))).await?;
    Ok(match texts {
        Ok(texts) => (texts, String::new()),
        Err(problem) => (Vec::new(), problem),
    })
}
