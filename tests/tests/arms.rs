//! The arms of an honest experiment with the letters game, on one seed: the game against its controls.
//!
//! Their order is the claim that the game makes. `FOIL_ARMS=full` plays them at the size of the shipped job file, some minutes
//! each, and holds the whole order; `FOIL_ARMS_SEED` plays another seed. Where the variable is not set, the game and the control
//! without golden answers are played small: too small for their order, which is only not to be surely the other way round.

use std::collections::BTreeMap;

use foil_tests::{Estimate, Outcome, Run, difference, gold_by_prompt, letters_job};

/// Standard errors that a difference must stand out by.
const ERRORS: f64 = 2.0;

/// What one arm came to: the gold reward on each prompt, by round.
struct Arm {
    start: f64,
    rounds: Vec<BTreeMap<u64, f64>>,
}

impl Arm {
    fn play(run: &Run) -> Self {
        let outcome: Outcome = run.finish();
        let rounds = (1..).take(outcome.rounds.len()).map(|round| gold_by_prompt(run, round)).collect();
        Self { start: outcome.start_gold().value, rounds }
    }

    fn last(&self) -> &BTreeMap<u64, f64> {
        self.rounds.last().expect("an arm has rounds")
    }

    /// The round of the highest mean: chosen on what it is compared on, to the control's favor.
    fn best(&self) -> &BTreeMap<u64, f64> {
        let mean = |golds: &BTreeMap<u64, f64>| golds.values().sum::<f64>() / golds.len() as f64;
        self.rounds.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))).expect("an arm has rounds")
    }
}

/// Asserts it, and gives the difference as a line to print.
fn stands_out(what: &str, difference: Estimate) -> String {
    let Estimate { value, se } = difference;
    assert!(value > ERRORS * se, "{what}: {value:.3} ± {se:.3} is not above 0 by {ERRORS} standard errors");
    format!("{what}: {value:.3} ± {se:.3}")
}

fn arm(preset: Option<&str>, size: &[&str]) -> Arm {
    let preset = preset.map(|preset| format!("preset={preset}"));
    let run = Run::job(letters_job()).ranks(2).set_all(size);
    Arm::play(&preset.iter().fold(run, |run, preset| run.set(preset)))
}

#[test]
fn the_game_beats_its_controls() {
    match std::env::var("FOIL_ARMS").as_deref() {
        Ok("full") => {
            let seed = std::env::var("FOIL_ARMS_SEED").unwrap_or_else(|_| "2".to_owned());
            let arm = |preset| arm(preset, &[&format!("seed={seed}")]);
            let [game, frozen] = [None, Some("frozen-apo")].map(arm);
            let [fixed, refreshed] = [Some("static-rm"), Some("human-only-refresh")].map(arm);
            assert!([&frozen, &fixed, &refreshed].into_iter().all(|arm| arm.start == game.start));
            println!("{}", stands_out("APO over frozen-apo", difference(game.last(), frozen.last())));
            println!("{}", stands_out("frozen-apo over static-rm", difference(frozen.last(), fixed.last())));
            println!(
                "{}",
                stands_out("APO over static-rm's best round", difference(game.last(), fixed.best()))
            );
            println!(
                "{}",
                stands_out("APO over human-only-refresh", difference(game.last(), refreshed.last()))
            );
        }
        _ => {
            println!(
                "the short form, two small arms; FOIL_ARMS=full plays all of them and holds their order"
            );
            let [game, fixed] = [None, Some("static-rm")].map(|preset| arm(preset, &SHORT));
            assert_eq!(game.start, fixed.start, "both arms start from the same policy");
            assert_ne!(game.last(), fixed.last(), "the control is the game itself");
            let Estimate { value, se } = difference(game.last(), fixed.last());
            assert!(value > -ERRORS * se, "APO over static-rm: {value:.3} ± {se:.3} is surely below 0");
        }
    }
}

/// Small enough for half a minute an arm.
const SHORT: [&str; 9] = [
    "seed=2",
    "rounds=2",
    "data.generator.sft=1000",
    "data.generator.golden=300",
    "data.generator.prompts=300",
    "data.generator.evaluation=300",
    "data.gold_preferences.pairs=300",
    "data.gold_preferences.evaluation_pairs=64",
    "sft_step.epochs=6",
];
