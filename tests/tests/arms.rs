//! The arms of a controlled experiment with the letters job on one seed: APO against its controls.
//!
//! The order of the arms is the claim of APO. It is significant here by standard errors over the same
//! evaluation prompts. Those measure how certainly the arms' policies differ, not the variance over seeds.
//! `FOIL_ARMS=full` runs the arms at the size of the shipped job file, which takes a minute or two each, and
//! `FOIL_ARMS_SEED` sets another seed. By default they are small, with two rounds on fewer rows. At that size
//! APO has not outgrown a frozen reward model yet, so its lead over that control is not asserted.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;

use foil_tests::{Estimate, Outcome, Round, Run, difference, gold_by_prompt, letters_job};

/// Minimum difference in standard errors.
const ERRORS: f64 = 2.0;

/// The size of the arms and the number of concurrent ones.
struct Size {
    settings: Vec<String>,
    ranks: u32,
    at_once: usize,
}

impl Size {
    fn full() -> Self {
        let seed = std::env::var("FOIL_ARMS_SEED").unwrap_or_else(|_| "2".to_owned());
        Self { settings: vec![format!("seed={seed}")], ranks: 2, at_once: 1 }
    }

    /// Takes some seconds of CPU per arm. Evaluation is cheap: many prompts keep its errors small.
    fn short() -> Self {
        let settings = [
            "seed=2",
            "rounds=2",
            "data.generator.sft=1000",
            "data.generator.golden=300",
            "data.generator.prompts=300",
            "data.generator.evaluation=1500",
            "data.gold_preferences.pairs=300",
            "data.gold_preferences.evaluation_pairs=64",
            "sft_step.epochs=6",
        ];
        Self { settings: settings.map(str::to_owned).to_vec(), ranks: 1, at_once: 3 }
    }
}

/// The letters job itself, without the presets that turn it into a control.
const GAME: Option<&str> = None;
const ARMS: [Option<&str>; 5] =
    [GAME, Some("frozen-apo"), Some("static-rm"), Some("human-only-refresh"), Some("gail")];

/// The result of one arm.
struct Arm {
    name: String,
    start: f64,
    rounds: Vec<Round>,
    /// The gold reward on each prompt, by round.
    golds: Vec<BTreeMap<u64, f64>>,
}

impl Arm {
    fn run(preset: Option<&str>, size: &Size) -> Self {
        let settings: Vec<&str> = size.settings.iter().map(String::as_str).collect();
        let run = Run::job(letters_job()).ranks(size.ranks).set_all(&settings);
        let run = match preset {
            Some(preset) => run.set(&format!("preset={preset}")),
            None => run,
        };
        let outcome: Outcome = run.finish();
        let golds = (1..).take(outcome.rounds.len()).map(|round| gold_by_prompt(&run, round)).collect();
        let (name, start) = (preset.unwrap_or("apo").to_owned(), outcome.start_gold().value);
        Self { name, start, rounds: outcome.rounds, golds }
    }

    fn run_all(size: &Size) -> [Self; 5] {
        let mut arms = Vec::new();
        for presets in ARMS.chunks(size.at_once.min(ARMS.len())) {
            std::thread::scope(|scope| {
                let players = presets.iter().map(|preset| scope.spawn(move || Self::run(*preset, size)));
                let players: Vec<_> = players.collect();
                arms.extend(players.into_iter().map(|player| player.join().expect("the arm succeeds")));
            });
        }
        arms.try_into().ok().expect("all arms")
    }

    fn last(&self) -> &BTreeMap<u64, f64> {
        self.golds.last().expect("an arm has rounds")
    }

    /// The round with the highest mean. It is chosen on the rows on which it is compared, in favor of the
    /// control.
    fn best(&self) -> &BTreeMap<u64, f64> {
        let mean = |golds: &BTreeMap<u64, f64>| golds.values().sum::<f64>() / golds.len() as f64;
        self.golds.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))).expect("an arm has rounds")
    }

    /// Asserts the data of the reward models: with or without human pairs, with or without golden answers,
    /// once or in every round.
    fn assert_trained(&self, humans: bool, golden: bool, every_round: bool) {
        for (round, figures) in (1..).zip(&self.rounds) {
            let trained = ["train_human_pairs", "train_golden_pairs"]
                .map(|pairs| figures.get("reward", pairs).map(|count| count > 0.0));
            let expected = [humans, golden].map(|pairs| (round == 1 || every_round).then_some(pairs));
            assert_eq!(trained, expected, "{} in round {round}: {figures:?}", self.name);
        }
    }
}

/// Asserts that each arm is the experiment that its name claims.
fn assert_honest(arms: &[Arm; 5]) {
    let [apo, frozen, fixed, refreshed, gail] = arms;
    apo.assert_trained(true, true, true);
    frozen.assert_trained(true, true, false);
    fixed.assert_trained(true, false, false);
    refreshed.assert_trained(true, false, true);
    gail.assert_trained(false, true, true);
    // A fresh head scores everything near 0, where each of a discriminator's two sides costs ln 2.
    let first_loss = gail.rounds[0].value("reward", "train_first_loss");
    assert!((first_loss - 2.0 * LN_2).abs() < 0.1, "gail's first loss is {first_loss}, not 2 ln 2");
    assert!(arms.iter().all(|arm| arm.start == apo.start), "the arms start from different policies");
    // Until a reward model is refreshed, an arm and its frozen counterpart are equal.
    for (once, always) in [(frozen, apo), (fixed, refreshed)] {
        assert!(once.golds[0] == always.golds[0], "{} and {} differ in round 1", once.name, always.name);
        assert!(once.last() != always.last(), "{} is {}", once.name, always.name);
    }
    assert!(apo.golds[0] != fixed.golds[0] && apo.golds[0] != gail.golds[0], "golden answers have no effect");
}

/// Asserts that `a` ends above `golds`, a round of `b`. Returns the difference as text.
fn assert_above(a: &Arm, b: &Arm, golds: &BTreeMap<u64, f64>) -> String {
    let Estimate { value, se } = difference(a.last(), golds);
    let told = format!("{} over {}: {value:.3} ± {se:.3}", a.name, b.name);
    assert!(value > ERRORS * se, "{told} is not above 0 by {ERRORS} standard errors");
    told
}

#[test]
fn apo_beats_its_controls() {
    let is_full = std::env::var("FOIL_ARMS").is_ok_and(|form| form == "full");
    let arms = Arm::run_all(&if is_full { Size::full() } else { Size::short() });
    assert_honest(&arms);
    let [apo, frozen, fixed, refreshed, gail] = &arms;
    for control in [fixed, refreshed, gail] {
        println!("{}", assert_above(apo, control, control.best()));
    }
    println!("{}", assert_above(frozen, fixed, fixed.last()));
    if is_full {
        println!("{}", assert_above(apo, frozen, frozen.last()));
    }
}
