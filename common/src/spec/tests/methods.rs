use super::*;

/// The policy step of a minimal job with these settings.
fn method(settings: &[&str]) -> Method {
    job(LEAST, settings).policy_step.method
}

#[test]
fn methods_get_the_defaults_of_their_own() {
    let dpo = Dpo {
        beta: 0.1,
        label_smoothing: 0.0,
        pairing: Pairing::BestWorst,
        log_ratio: Reduction::Sum,
        reference: ReferencePolicy::RoundStart,
    };
    let ipo = Ipo {
        beta: 0.1,
        pairing: Pairing::TopBottom(2),
        log_ratio: Reduction::Mean,
        reference: ReferencePolicy::RoundStart,
    };
    let kl = Some(KlPenalty { beta: 0.04, reference: ReferencePolicy::Initial });
    let cases = [
        (vec![], Method::Rejection(Rejection)),
        (vec!["policy_step.method=rrhf"], Method::Rrhf(Rrhf { ranking_weight: 1.0, nll: Reduction::Sum })),
        (vec!["policy_step.method=dpo"], Method::Dpo(dpo)),
        (vec!["policy_step.ipo.pairing=top_bottom_k"], Method::Ipo(ipo)),
        (vec!["policy_step.grpo.reference=initial"], Method::Grpo(Grpo::default())),
        (vec!["policy_step.rloo={reference: initial, beta: 0.04}"], Method::Rloo(Rloo { epsilon: 0.2, kl })),
    ];
    for (settings, expected) in cases {
        let job = job(LEAST, &settings);
        assert_eq!(job.policy_step.method, expected);
        assert_eq!(Job::try_from(v1::JobSpec::from(&job)).unwrap(), job, "{settings:?}");
    }
    assert_eq!(method(&["preset=paper-dpo"]).name(), "dpo");
    let published = Method::Rrhf(Rrhf { ranking_weight: 100.0, nll: Reduction::Mean });
    assert_eq!(method(&["preset=paper-rrhf"]), published);
}

#[test]
fn one_method_takes_the_place_of_another() {
    let file = format!("{LEAST}policy_step: {{ method: dpo, dpo: {{ beta: 0.3 }} }}\n");
    let beta = |job: Job| match job.policy_step.method {
        Method::Dpo(dpo) => Some(dpo.beta),
        _ => None,
    };
    assert_eq!(beta(job(&file, &[])), Some(0.3), "a method's name next to its settings");
    assert_eq!(beta(job(&file, &["policy_step.method=dpo"])), Some(0.3), "the name alone changes no setting");
    let based = format!("{file}preset: paper-rrhf\n");
    assert_eq!(beta(job(&based, &[])), Some(0.3), "a file's method overrides its preset's");
    for (setting, name) in [
        ("policy_step.method=grpo", "grpo"),
        ("policy_step.ipo={beta: 0.5}", "ipo"),
        ("policy_step.method=null", "rejection"),
    ] {
        assert_eq!(job(&file, &[setting]).policy_step.method.name(), name, "{setting}");
    }
    // A setting of another method is no choice of that method.
    let refused = message(&file, &["policy_step.ipo.beta=0.5"]);
    let expected = "policy_step.ipo.beta: found a setting of ipo, expected a setting of dpo, which the job file chooses; \
                    add --set policy_step.method=ipo to use ipo instead";
    assert!(refused.contains(expected), "{refused}");
    assert!(
        message(&format!("{LEAST}preset: paper-rrhf\n"), &["policy_step.ipo.beta=0.5"]).contains("of rrhf")
    );
    let chosen = job(&file, &["policy_step.method=ipo", "policy_step.ipo.beta=0.5"]);
    assert_eq!(chosen.policy_step.method.name(), "ipo");
    let both = message(&format!("{LEAST}policy_step: {{ method: ipo, dpo: {{ beta: 0.3 }} }}\n"), &[]);
    assert!(both.contains("policy_step.ipo: found dpo and ipo, expected one method"), "{both}");
}

#[test]
fn a_setting_that_its_method_does_not_have_is_refused() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["policy_step.label_smoothing=0.2"],
            "policy_step.label_smoothing: there is no such field; it is a setting of another block: dpo.label_smoothing",
        ),
        (&["policy_step.ipo.label_smoothing=0.1"], "policy_step.ipo.label_smoothing: there is no such field"),
        (
            &["policy_step.dpo.pairs_k=3"],
            "policy_step.dpo.pairs_k: found 3, expected nothing when pairing is best_worst; leave it out, or set pairing",
        ),
        (&["policy_step.rrhf.reference=initial"], "policy_step.rrhf.reference: there is no such field"),
        (&["policy_step.rank_weight=1"], "it is called rrhf.ranking_weight"),
        (&["reward_step.weight_clip=0.1"], "it is a setting of another block: wgan.weight_clip"),
        (
            &["preset=gail", "reward_step.human_weight=1"],
            "reward_step.human_weight: found 1, expected nothing when the loss is gail; gail trains on golden answers",
        ),
        (&["preset=gail", "reward_step.gail.margin=true"], "reward_step.gail.margin: there is no such field"),
    ];
    for (settings, expected) in cases {
        let found = message(LEAST, settings);
        assert!(found.contains(expected), "{settings:?}: {found}");
    }
}

#[test]
fn methods_refuse_what_they_cannot_learn_from() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["policy_step.method=dpo", "policy_step.samples=1"],
            "policy_step.samples: found 1, expected at least 2; dpo compares a prompt's completions",
        ),
        (
            &["policy_step.dpo.label_smoothing=0.5"],
            "policy_step.dpo.label_smoothing: found 0.5, expected a number of at least 0 and below 0.5",
        ),
        (&["policy_step.rloo.beta=0.1"], "policy_step.rloo.reference: found round_start, expected initial"),
        (
            &["policy_step.method=ppo"],
            "policy_step.method: found ppo, expected rejection, rrhf, dpo, ipo, grpo",
        ),
        (&["policy_step.method=dppo"], "did you mean dpo?"),
        (&["policy_step.method={}"], "policy_step.method: found {}, expected rejection, rrhf"),
        (&["policy_step.dpo.pairing=best"], "did you mean best_worst?"),
        (&["policy_step.rrhf.nll=token"], "policy_step.rrhf.nll: found token, expected sum or mean"),
        (&["reward_step.wgan.weight_clip=0"], "expected a number above 0"),
    ];
    for (settings, expected) in cases {
        let found = message(LEAST, settings);
        assert!(found.contains(expected), "{settings:?}: {found}");
    }
}

#[test]
fn gail_needs_no_human_pairs_and_wgan_a_bound() {
    let gail = job(LEAST, &["preset=gail", "data.preferences=null"]);
    assert_eq!((gail.reward_step.loss, gail.reward_step.human_weight), (RewardLoss::Gail(Gail), 0.0));
    assert_eq!(gail.warnings(), [] as [String; 0]);
    let wgan = job(LEAST, &["reward_step.loss=wgan"]);
    assert!(wgan.warnings()[0].contains("set reward_step.wgan.weight_clip"), "{:?}", wgan.warnings());
    let bounded = job(LEAST, &["reward_step.wgan.weight_clip=0.05"]);
    assert_eq!((bounded.reward_step.loss.weight_clip(), bounded.warnings()), (Some(0.05), vec![]));
}

#[test]
fn another_loss_contradicts_a_control() {
    let file = format!("{LEAST}reward_step: {{ wgan: {{ weight_clip: 1 }} }}\n");
    let found = message(&file, &["preset=gail"]);
    assert!(found.contains("reward_step.loss: found wgan, expected gail, as preset gail sets it"), "{found}");
    assert!(found.contains("--set reward_step.loss=VALUE"), "{found}");
    let settled = job(&file, &["preset=gail", "reward_step.loss=gail"]);
    assert_eq!(settled.reward_step.loss.name(), "gail");
    let settings = ["preset=gail", "reward_step.wgan={weight_clip: 1}", "reward_step.human_weight=0"];
    let foreign = job(LEAST, &settings);
    assert_eq!(foreign.reward_step.loss.name(), "wgan");
    assert!(foreign.warnings()[0].contains("reward_step.loss: wgan, where the control gail has gail"));
}

#[test]
fn policy_gradients_warn_of_filtered_samples() {
    let grpo = "policy_step.method=grpo";
    assert_eq!(job(LEAST, &[grpo]).warnings(), [] as [String; 0]);
    let hot = job(LEAST, &[grpo, "sampling.temperature=1.2"]).warnings();
    assert!(hot.len() == 1 && hot[0].contains("grpo") && hot[0].contains("temperature 1"), "{hot:?}");
    assert_eq!(job(LEAST, &["sampling.temperature=1.2"]).warnings(), [] as [String; 0]);
}

#[test]
fn methods_that_compare_answers_refuse_greedy_ones() {
    for setting in ["sampling.temperature=0", "sampling.top_k=1"] {
        let error = message(LEAST, &[setting, "policy_step.method=dpo"]);
        let field = setting.split('=').next().unwrap();
        assert!(error.contains(field) && error.contains("samples of a prompt are the same"), "{error}");
        let warnings = job(LEAST, &[setting]).warnings();
        assert!(warnings.iter().any(|warning| warning.contains("greedy")), "{warnings:?}");
    }
    assert!(
        message(LEAST, &["sampling.temperature=1e-9"]).contains("0, which is greedy, or at least 0.0001")
    );
    job(LEAST, &["policy_step.method=dpo", "sampling.temperature=0.01"]);
}
