//! Every policy method and every reward loss end to end on the letters job.

use std::f64::consts::LN_2;

use foil_tests::{Completion, Outcome, Run, completions_by_prompt, steps};

fn run(settings: &[&str]) -> Outcome {
    let outcome = Run::letters().ranks(2).set_all(settings).finish();
    assert_eq!(outcome.json["state"], "succeeded");
    outcome
}

/// A metric of the last round.
fn figure(outcome: &Outcome, side: &str, name: &str) -> f64 {
    outcome.last().estimate(side, name).value
}

/// One round in which each policy step uses all prompts. The first step starts from the policy that generated
/// them.
fn whole_batches(settings: &[&str]) -> (Run, Outcome) {
    let run = Run::letters().ranks(2).set_all(&[
        "data.generator.prompts=192",
        "data.generator.evaluation=600",
        "reward_step.epochs=4",
        "policy_step.batch_sequences=1024",
        "policy_step.epochs=12",
        "policy_step.learning_rate=1e-3",
        "policy_step.schedule.warmup_steps=0",
    ]);
    let run = run.set_all(settings);
    let outcome = run.finish();
    assert_eq!(figure(&outcome, "policy", "train_steps"), 12.0, "{}", outcome.json);
    (run, outcome)
}

/// Asserts that the policy has learned from its rewards in the right direction, and from the completions
/// `read`.
#[track_caller]
fn assert_learned(outcome: &Outcome, read: &[&Completion]) {
    assert!(outcome.last().estimate("policy", "reward_gain").exceeds(0.0), "{}", outcome.json);
    assert!(figure(outcome, "policy", "drift_mean") < 1e-5, "{}", outcome.json);
    assert_eq!(figure(outcome, "policy", "train_num_completions"), read.len() as f64);
    let mean = read.iter().map(|completion| completion.reward).sum::<f64>() / read.len() as f64;
    assert_near(figure(outcome, "policy", "train_selected_reward_mean"), mean, 1e-6);
}

#[track_caller]
fn assert_near(found: f64, expected: f64, within: f64) {
    assert!((found - expected).abs() <= within, "{found} is not {expected} ± {within}");
}

/// Whether `chosen` may be preferred to `rejected`.
fn is_preferred(chosen: &Completion, rejected: &Completion) -> bool {
    chosen.reward > rejected.reward && !chosen.is_blank()
}

/// The best completion; the first of equals wins.
fn best(completions: &[Completion]) -> &Completion {
    let completions = completions.iter().filter(|completion| !completion.is_blank());
    let best = completions.reduce(|best, next| if next.reward > best.reward { next } else { best });
    best.expect("a completion says something")
}

/// RRHF's two terms, recomputed from the samples (arXiv 2304.05302, Eq. 2 and 4), equal those of the first
/// step.
#[test]
fn rrhf_ranks_completions_and_imitates_the_best() {
    const WEIGHT: f64 = 3.0;
    let (run, outcome) = whole_batches(&[&format!("policy_step.rrhf={{ranking_weight: {WEIGHT}}}")]);
    let prompts = completions_by_prompt(&run, 1);
    let likelihood = |completion: &Completion| completion.log_prob / completion.tokens as f64;
    let (mut ranking, mut nll, mut read) = (0.0, 0.0, Vec::new());
    for completions in &prompts {
        let best = best(completions);
        nll -= best.log_prob;
        for chosen in completions {
            for rejected in completions.iter().filter(|rejected| is_preferred(chosen, rejected)) {
                ranking += (likelihood(rejected) - likelihood(chosen)).max(0.0);
            }
        }
        let is_paired = |one: &Completion| {
            completions.iter().any(|other| is_preferred(one, other) || is_preferred(other, one))
        };
        read.extend(
            completions.iter().filter(|completion| std::ptr::eq(*completion, best) || is_paired(completion)),
        );
    }
    assert_learned(&outcome, &read);
    let (ranking, nll) = (ranking / prompts.len() as f64, nll / prompts.len() as f64);
    let steps = steps(&run, "r01.policy.train");
    let step = |step: usize, name: &str| steps[step][name].as_f64().expect(name);
    assert_near(step(0, "ranking_loss"), ranking, 1e-4);
    assert_near(step(0, "best_nll"), nll, 1e-4);
    assert_near(step(0, "loss"), WEIGHT * ranking + nll, 1e-3);
    assert!(
        step(11, "ranking_loss") < 0.5 * ranking,
        "the order of the completions is not learned: {steps:?}"
    );
}

/// Before the first step every pair costs 1 / (2β)², and no loss is below that of its mean margin.
#[test]
fn ipo_pulls_the_best_and_the_worst_apart_to_its_margin() {
    const BETA: f64 = 0.5;
    let (run, outcome) = whole_batches(&[&format!("policy_step.ipo={{beta: {BETA}}}")]);
    assert_learned(&outcome, &ends(&completions_by_prompt(&run, 1)));
    let steps = steps(&run, "r01.policy.train");
    let step = |step: usize, name: &str| steps[step][name].as_f64().expect(name);
    let target = 1.0 / (2.0 * BETA);
    assert_near(step(0, "loss"), target * target, 1e-5);
    assert_eq!(step(0, "rewards/margins"), 0.0);
    for row in 1..steps.len() {
        let mean = (step(row, "rewards/margins") / BETA - target).powi(2);
        assert!(step(row, "loss") >= mean - 1e-6, "step {row}: {steps:?}");
    }
    assert!(step(11, "rewards/accuracies") > 0.9, "{steps:?}");
    assert_near(step(11, "rewards/margins") / BETA, target, 0.2 * target);
}

/// Checks the first step's loss and margin, recomputed from the samples (arXiv 2405.14734, Eq. 6).
#[test]
fn simpo_compares_mean_log_probabilities() {
    const GAMMA: f64 = 0.5;
    let (run, outcome) = whole_batches(&[&format!("policy_step.simpo={{gamma: {GAMMA}}}")]);
    let prompts = completions_by_prompt(&run, 1);
    let ends = ends(&prompts);
    assert_learned(&outcome, &ends);
    let reward = |completion: &Completion| 2.0 * completion.log_prob / completion.tokens as f64;
    let margins: Vec<f64> = ends.chunks(2).map(|pair| reward(pair[0]) - reward(pair[1])).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let losses: Vec<f64> = margins.iter().map(|margin| (GAMMA - margin).exp().ln_1p()).collect();
    let steps = steps(&run, "r01.policy.train");
    let step = |step: usize, name: &str| steps[step][name].as_f64().expect(name);
    assert_near(step(0, "loss"), mean(&losses), 1e-4);
    assert_near(step(0, "rewards/margins"), mean(&margins), 1e-4);
    assert!(step(11, "rewards/accuracies") > 0.9, "{steps:?}");
}

/// Each prompt's best and worst completion, if their rewards differ.
fn ends(prompts: &[Vec<Completion>]) -> Vec<&Completion> {
    let pair = |completions| -> Option<[&Completion; 2]> {
        let best = best(completions);
        let worst = completions.iter().min_by(|a, b| a.reward.total_cmp(&b.reward))?;
        is_preferred(best, worst).then_some([best, worst])
    };
    prompts.iter().filter_map(|completions| pair(completions)).flatten().collect()
}

/// Advantages of a prompt's completions cancel before the first step. Then the surrogate falls below 0.
/// Ratios are clipped when they leave 1 ± `epsilon`; none is clipped at first.
#[test]
fn policy_gradients_follow_advantages_within_their_clip() {
    for method in ["grpo", "rloo"] {
        let (run, outcome) = whole_batches(&[&format!("policy_step.{method}={{epsilon: 0.5}}")]);
        let prompts = completions_by_prompt(&run, 1);
        assert_learned(&outcome, &prompts.iter().flatten().collect::<Vec<_>>());
        let steps = steps(&run, "r01.policy.train");
        let step = |step: usize, name: &str| steps[step][name].as_f64().expect(name);
        assert_near(step(0, "loss"), 0.0, 1e-5);
        assert_eq!(step(0, "clip_fraction"), 0.0);
        assert!((1..12).all(|row| step(row, "loss") < 0.0), "{method}: {steps:?}");
        let free = figure(&outcome, "policy", "train_clip_fraction");
        let tight = run_clipped(method);
        assert!(free < tight, "{method}: {free} of ratios clipped at 0.5, {tight} at 0.01");
    }
}

/// The fraction of ratios clipped by a narrow range.
fn run_clipped(method: &str) -> f64 {
    let (_, outcome) = whole_batches(&[&format!("policy_step.{method}={{epsilon: 0.01}}")]);
    figure(&outcome, "policy", "train_clip_fraction")
}

/// Near the reference, the loss falls by half the margin of implicit rewards.
#[test]
fn dpo_starts_every_round_at_ln_2_and_falls_with_beta() {
    const BETA: f64 = 0.2;
    let (run, outcome) = whole_batches(&[
        "rounds=2",
        "policy_step.learning_rate=1e-4",
        &format!("policy_step.dpo={{beta: {BETA}}}"),
    ]);
    for (round, figures) in (1..).zip(&outcome.rounds) {
        assert_near(figures.estimate("policy", "train_first_loss").value, LN_2, 1e-5);
        let steps = steps(&run, &format!("r{round:02}.policy.train"));
        let second = |name: &str| steps[1][name].as_f64().expect(name);
        let slope = (LN_2 - second("loss")) / second("rewards/margins");
        assert_near(slope, 0.5, 0.05);
    }
    assert_learned(&outcome, &ends(&completions_by_prompt(&run, 2)));
}

#[test]
fn a_kl_term_is_measured_from_the_start_policy() {
    let from_start = run(&["rounds=2", "policy_step.grpo={beta: 0.1, reference: initial}"]);
    assert!(figure(&from_start, "policy", "train_kl") > 0.0, "{}", from_start.json);
}

/// The reward metrics of one round with a third of 240 golden answers held out. Asserts that the held-out
/// answers are significantly separated from fresh completions.
fn separated(settings: &[&str]) -> (Run, Outcome) {
    let sizes = ["data.generator.golden=240", "data.golden_holdout=0.3", "reward_step.epochs=6"];
    let run = Run::letters().ranks(2).set_all(&sizes).set_all(settings);
    let outcome = run.finish();
    let low = outcome.last().value("reward", "fresh_accuracy_low");
    assert!(low > 0.9, "{settings:?}: {}", outcome.json);
    (run, outcome)
}

/// The largest absolute weight of a reward model's scalar head.
fn largest_of_head(outcome: &Outcome) -> f32 {
    let bytes = std::fs::read(outcome.artifact("reward").join("model.safetensors")).expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let head = tensors.tensor("score.weight").expect("a scalar head");
    assert_eq!(head.dtype(), safetensors::Dtype::F32);
    let numbers = head.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four")));
    numbers.fold(0.0, |largest, number| largest.max(number.abs()))
}

/// A fresh head scores everything near 0. There each of a discriminator's two sides costs ln 2, a pair costs
/// ln 2, and the critic's difference of means costs nothing.
#[test]
fn golden_answers_are_separated_from_completions_by_any_loss() {
    const NEAR: f64 = 0.05;
    let first = |outcome: &Outcome| figure(outcome, "reward", "train_first_loss");

    let (_run, clipped) = separated(&["reward_step.wgan.weight_clip=0.02"]);
    let of_humans = 1.0 - figure(&clipped, "reward", "train_golden_weight_share");
    assert_near(first(&clipped), of_humans * LN_2, NEAR);
    assert!(figure(&clipped, "reward", "train_loss") < 0.0, "{}", clipped.json);
    assert_eq!(largest_of_head(&clipped), 0.02, "the head is not clipped");

    let (_, discriminator) = separated(&["reward_step.loss=gail"]);
    assert_near(first(&discriminator), 2.0 * LN_2, NEAR);
    assert_eq!(figure(&discriminator, "reward", "train_human_pairs"), 0.0);
    assert!(discriminator.last().estimate("reward", "fresh_chosen_reward_mean").exceeds(0.0));
    assert!(discriminator.last().estimate("reward", "fresh_rejected_reward_mean").is_under(0.0));

    // The best margin of a pair that is wrong with probability ε is ln((1 − ε) / ε).
    let smoothed = ["reward_step.bradley_terry.label_smoothing=0.3", "reward_step.bradley_terry.margin=true"];
    let (ceiling, plain) = ((0.7_f64 / 0.3).ln(), separated(&smoothed).1);
    assert_near(first(&plain), LN_2, NEAR);
    let margin = figure(&plain, "reward", "fresh_margin_mean");
    assert!((0.5 * ceiling..1.1 * ceiling).contains(&margin), "{margin}: {}", plain.json);

    let (_, centered) =
        separated(&[&smoothed[..], &["reward_step.bradley_terry.center_rewards_coefficient=1"]].concat());
    let offset = |outcome: &Outcome| {
        let mean = |side: &str| figure(outcome, "reward", &format!("fresh_{side}_reward_mean"));
        (mean("chosen") + mean("rejected")).abs()
    };
    assert!(offset(&centered) < 0.5 * offset(&plain), "{} is not near 0", offset(&centered));
}

#[test]
fn a_rank_killed_in_the_reference_phase_changes_no_bit() {
    let job = || Run::letters().ranks(2).set("policy_step.method=dpo");
    let baseline = job().finish().weights();
    let run = job();
    let once = run.scratch().join("killed").to_string_lossy().into_owned();
    let killed = run.env("FOIL_FAILPOINT", "phase.ref_log_probs=kill@1").env("FOIL_FAILPOINT_ONCE", once);
    assert!(killed.finish().weights() == baseline, "the final weights differ");
    assert!(killed.scratch().join("killed").exists(), "no rank was killed");
}
