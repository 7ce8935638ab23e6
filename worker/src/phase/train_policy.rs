//! Train the policy on its own scored answers, by the job's method.

use foil_common::spec::Method;
use foil_proto::v1;

use super::support::error::need;
use super::support::gang::{Course, Trained, metric};
use super::support::lessons::Lessons;
use super::support::models::Policy;
use super::support::policy_rows::{Comparisons, PolicyRows};
use super::support::rows::Span;
use super::{PhaseError, TaskContext};
use crate::model::HeadKind;
use crate::train::{Demonstrations, PolicyAnswers, Summary};

pub(super) fn run(
    context: &mut TaskContext,
    command: &v1::RunGang,
    work: &v1::TrainPolicy,
) -> Result<Trained, PhaseError> {
    let rows = PolicyRows::read(context, &work.prompts, Span::ALL, &work.samples, &work.scores)?;
    let comparisons = Comparisons::read(&mut context.cache, &work.reference)?;
    let start = need(&work.policy, "a policy")?;
    let mut policy = context.loader().policy(start)?;
    let text = context.trained_text(start, &policy.encoder)?;
    policy.model.set_token_ids(&text.ids);

    let lessons = Lessons::of(context, &policy, &rows.scored()?, &comparisons)?;
    if lessons.groups.is_empty() {
        let why = "every answer to them is blank, or no better than another";
        return Err(PhaseError::NothingLeft { set: "prompts", rows: rows.prompts.len(), why });
    }
    if let Some(lora) = context.job.policy_step.lora.clone() {
        policy.model.add_lora(&lora, context.draw(command)?);
    }
    let summary = train(context, command, &policy, &lessons)?;
    let adapter = policy.model.merge();

    let step = context.job.policy_step.clone();
    let dir = context.cache.scratch("policy")?;
    let parameters = policy.model.parameters();
    context.save(&start.name, parameters, step.save_dtype, |dtype| policy.model.save(&dir, dtype))?;
    context.save_text(start, &text, &dir)?;
    if let Some(adapter) = adapter {
        context.save_adapter(start, policy.model.config(), HeadKind::LanguageModel, adapter, &dir)?;
    }
    let mut metrics = summary.metrics();
    let answers = lessons.rewards.len() as f64;
    metrics.push(metric("selected_reward_mean", lessons.rewards.iter().sum::<f64>() / answers));
    metrics.push(metric("selected_answers", answers));
    metrics.push(metric("dropped_prompts", (rows.prompts.len() - lessons.groups.len()) as f64));
    Ok(Trained { dir, parameters_blake3: parameters.blake3(), metrics })
}

fn train(
    context: &mut TaskContext,
    command: &v1::RunGang,
    policy: &Policy,
    lessons: &Lessons,
) -> Result<Summary, PhaseError> {
    let step = context.job.policy_step.clone();
    let course = Course {
        epochs: step.epochs,
        batch: step.batch_sequences,
        learning_rate: step.learning_rate_of(need(&command.task, "a task")?.round),
        optimizer: &step.optimizer,
        schedule: &step.schedule,
    };
    let (model, precision) = (&policy.model, context.precision());
    match step.method {
        Method::Rejection => {
            let rows = lessons.demonstrations();
            let objective = Demonstrations::new(model, &rows, precision);
            context.train(command, &objective, model.trainable(), &course)
        }
        Method::Rrhf { .. } | Method::Dpo { .. } | Method::Ipo { .. } | Method::Grpo(_) | Method::Rloo(_) => {
            let objective = PolicyAnswers::new(model, &lessons.groups, &lessons.losses, precision);
            context.train(command, &objective, model.trainable(), &course)
        }
    }
}
