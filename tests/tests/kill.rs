//! SIGKILL of a rank in any phase does not change the final weights.

use foil_tests::Run;

/// Failpoints. `@n` is the hit at which the process kills itself.
const SITES: [&str; 11] = [
    "rank.start@1",
    "phase.load@1",
    "gang.join@1",
    "train.forward@2",
    "train.backward@2",
    "train.optimizer@2",
    "phase.generate@2",
    "phase.score@1",
    "phase.evaluate@2",
    "phase.upload@3",
    "phase.report@3",
];

/// The final weights of a run in which a rank died at the site.
fn weights_killed_at(site: &str, ranks: u32) -> (Vec<u8>, Vec<u8>) {
    let (name, visit) = site.split_once('@').expect("site@visit");
    let run = Run::letters().ranks(ranks);
    let marker = run.scratch().join("killed");
    let run = run
        .env("FOIL_FAILPOINT", format!("{name}=kill@{visit}"))
        .env("FOIL_FAILPOINT_ONCE", marker.display().to_string());
    let weights = run.finish().weights();
    assert!(marker.exists(), "{site} was never reached\n{}", run.logs());
    weights
}

fn weights_survive_every_site(ranks: u32) {
    let baseline = Run::letters().ranks(ranks).finish().weights();
    for site in SITES {
        assert!(
            weights_killed_at(site, ranks) == baseline,
            "killed at {site} with {ranks} ranks: the weights differ"
        );
    }
}

#[test]
fn a_rank_killed_in_any_phase_changes_no_weights_at_2_ranks() {
    weights_survive_every_site(2);
}

#[test]
fn a_rank_killed_in_any_phase_changes_no_weights_at_3_ranks() {
    weights_survive_every_site(3);
}
