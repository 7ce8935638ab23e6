//! Tests of reward models and the settings of their pairs.

use foil_common::data::rows::{PairRow, Prompt, assign_ids};

use super::*;

/// The loss of the first step on pairs with margin 2, when a fresh head's scores are all near 0.
fn first_loss(margins: bool) -> f64 {
    let mut job = letters_job();
    let loss = v1::BradleyTerrySpec { margin: margins, ..Default::default() };
    job.reward_step.get_or_insert_default().loss = Some(v1::reward_step_spec::Loss::BradleyTerry(loss));
    let mut test = TestRank::new(job);
    let start = test.start_model();
    let sets = letters::generate(17, Counts { sft: 32, golden: 0, prompts: 0, evaluation: 0 });
    let demonstrations = test.dataset("sft", &sets.sft);
    let tune = Work::Sft(v1::Sft { policy: Some(start.clone()), demonstrations });
    let (policy, _) = test.gang("r00.sft", tune, &start);
    let pair = |prompt: &str| PairRow {
        id: 0,
        prompt: Prompt::user(prompt),
        chosen: format!("{prompt}!!"),
        rejected: "wxyz".to_owned(),
        margin: Some(2.0),
        groups: Vec::new(),
    };
    let mut pairs: Vec<PairRow> = ["abcde", "bcdef", "cdefg", "defgh"].map(pair).into();
    assign_ids(&mut pairs);
    let human = test.dataset("preferences", &pairs).map(Source::Pairs).and_then(source);
    let train = Work::TrainReward(v1::TrainReward { start: Some(policy.clone()), human, golden: None });
    let (_, result) = test.gang("r01.reward.train", train, &policy);
    value(&result.metrics, "first_loss")
}

/// A pair with equal scores has the loss −log σ(−m).
#[test]
fn a_rows_margin_counts_only_if_the_job_says_so() {
    for (margins, margin) in [(false, 0.0_f64), (true, 2.0)] {
        let (found, expected) = (first_loss(margins), margin.exp().ln_1p());
        assert!((found - expected).abs() < 0.2, "{found} is not {expected}: margins {margins}");
    }
}
