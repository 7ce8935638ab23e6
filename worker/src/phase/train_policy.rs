//! Train the policy by rejection sampling: supervised fine-tuning on the best of its own n answers.

use std::collections::BTreeMap;

use foil_common::data::rows::PromptRow;
use foil_common::stage::Stage;
use foil_proto::v1;

use super::dialogue::Reader;
use super::error::need;
use super::gang::{Course, Trained, metric};
use super::models::Policy;
use super::rows::{Sampled, Samples, Span, read_prompts, read_scores};
use super::{Bench, PhaseError};
use crate::objective::rejection;
use crate::train::{Demonstration, Demonstrations};

pub(super) fn run(
    bench: &mut Bench,
    command: &v1::RunGang,
    work: &v1::TrainPolicy,
) -> Result<Trained, PhaseError> {
    let prompts = read_prompts(&mut bench.cache, &work.prompts, Span::ALL)?;
    let samples = Samples::read(&mut bench.cache, &work.samples)?;
    let scores = read_scores(&mut bench.cache, &work.scores)?;
    let start = need(&work.policy, "a policy")?;
    let policy = bench.loader().policy(start)?;

    let chosen = choose(bench, &policy, &prompts, &samples, &scores)?;
    if chosen.demonstrations.is_empty() {
        let why = "every answer to them is blank";
        return Err(PhaseError::NothingLeft { set: "prompts", rows: prompts.len(), why });
    }
    let step = &bench.job.policy_step;
    let round = need(&command.task, "a task")?.round;
    let course = Course {
        epochs: step.epochs,
        batch: step.batch_sequences,
        learning_rate: step.learning_rate_of(round),
        optimizer: &step.optimizer,
        schedule: &step.schedule,
    };
    let objective = Demonstrations::new(&policy.model, &chosen.demonstrations, bench.precision());
    let summary = bench.train(command, &objective, policy.model.parameters(), &course)?;

    let dir = bench.cache.scratch("policy")?;
    let parameters = policy.model.parameters();
    bench.save(&start.name, parameters, step.save_dtype, |dtype| policy.model.save(&dir, dtype))?;
    let mut metrics = summary.metrics();
    metrics.push(metric("selected_reward_mean", chosen.rewards / chosen.demonstrations.len() as f64));
    metrics.push(metric("dropped_prompts", (prompts.len() - chosen.demonstrations.len()) as f64));
    Ok(Trained { dir, parameters_blake3: parameters.blake3(), metrics })
}

struct Chosen {
    demonstrations: Vec<Demonstration>,
    /// Summed over the chosen answers.
    rewards: f64,
}

/// The best answer to each prompt, in the very tokens that were sampled. Prompts whose answers are all blank are left
/// out.
fn choose(
    bench: &Bench,
    policy: &Policy,
    prompts: &[PromptRow],
    samples: &Samples,
    scores: &BTreeMap<(u64, u32), f64>,
) -> Result<Chosen, PhaseError> {
    let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &bench.job };
    let budget = bench.job.sampling.max_new_tokens;
    let mut chosen = Chosen { demonstrations: Vec::with_capacity(prompts.len()), rewards: 0.0 };
    bench.reports.expect(Stage::Encoding, prompts.len() as u64);
    for row in prompts {
        bench.reports.advance(Stage::Encoding, 1);
        let answers = samples.of(row.id)?;
        let rewards = rewards_of(answers, scores)?;
        let texts: Vec<&str> = answers.iter().map(|answer| answer.sample.text.as_str()).collect();
        let winner = match bench.job.controls.select_worst {
            false => rejection::select(&rewards, &texts),
            true => rejection::select_worst(&rewards, &texts),
        };
        let Some(winner) = winner else { continue };
        let mut ids = reader.prompt(row.id, &row.prompt, budget)?;
        let answer_start = ids.len();
        ids.extend(&answers[winner].sample.tokens);
        chosen.demonstrations.push(Demonstration { id: row.id, ids, answer_start });
        chosen.rewards += rewards[winner];
    }
    Ok(chosen)
}

fn rewards_of(answers: &[Sampled], scores: &BTreeMap<(u64, u32), f64>) -> Result<Vec<f64>, PhaseError> {
    let rewards = answers.iter().map(|answer| {
        let key = (answer.sample.prompt_id, answer.sample.index);
        scores.get(&key).copied().ok_or_else(|| PhaseError::Samples {
            object: "scores".to_owned(),
            what: format!("they lack sample {} of row {}", key.1, key.0),
        })
    });
    rewards.collect()
}
