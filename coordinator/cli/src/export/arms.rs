//! Groups the runs of a report into arms: runs of the same settings that differ by their seeds.

use anyhow::{Result, bail};
use foil_common::spec::{Difference, differences, without_scheduling};
use foil_proto::v1;

use crate::client::is_ended;
use crate::report::state_name;

/// Maximum number of differing settings in the name of an arm.
const MAX_SETTINGS: usize = 3;

/// Names the arms of the runs that have none, and checks all arms. Returns warnings about arms whose means
/// may mislead.
///
/// # Errors
/// Two runs of an arm are the same run, so that its interval would be too narrow.
pub(super) fn group(runs: &mut [v1::RunReport]) -> Result<Vec<String>> {
    name_all(runs);
    let mut warnings = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for run in runs.iter() {
        if names.contains(&run.arm.as_str()) {
            continue;
        }
        names.push(&run.arm);
        let arm: Vec<&v1::RunReport> = runs.iter().filter(|other| other.arm == run.arm).collect();
        refuse_repetitions(&arm)?;
        warnings.extend(mixed_settings(&arm));
        warnings.extend(incomplete(&arm));
    }
    Ok(warnings)
}

/// The settings that make an experiment; a run's seed and the number of its devices do not.
fn experiment(run: &v1::RunReport) -> v1::JobSpec {
    let spec = run.job.as_ref().and_then(|job| job.spec.as_ref()).map(without_scheduling).unwrap_or_default();
    let kept = |resources: &v1::ResourceSpec| v1::ResourceSpec {
        precision: resources.precision.clone(),
        sharding: resources.sharding.clone(),
        deterministic: resources.deterministic,
        ..Default::default()
    };
    let resources = spec.resources.as_ref().map(kept).filter(|kept| *kept != v1::ResourceSpec::default());
    v1::JobSpec { name: String::new(), seed: None, resources, ..spec }
}

fn seed(run: &v1::RunReport) -> u32 {
    run.job.as_ref().and_then(|job| job.spec.as_ref()?.seed).unwrap_or(0)
}

/// A run's job, as the user can tell it from others.
fn describe(run: &v1::RunReport) -> String {
    let job = run.job.clone().unwrap_or_default();
    match run.directory.is_empty() {
        true => format!("{} ({})", job.name, job.id),
        false => run.directory.clone(),
    }
}

/// Names arms after their jobs. Where jobs of one name have several settings, each arm's name has those in
/// which it differs.
fn name_all(runs: &mut [v1::RunReport]) {
    let unnamed: Vec<usize> = (0..runs.len()).filter(|index| runs[*index].arm.is_empty()).collect();
    // Indices of the runs of each arm, by the name of their jobs.
    let mut named: Vec<(String, Vec<Vec<usize>>)> = Vec::new();
    for index in unnamed {
        let name = runs[index].job.as_ref().map(|job| job.name.clone()).unwrap_or_default();
        let position = named.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
            named.push((name, Vec::new()));
            named.len() - 1
        });
        let arms = &mut named[position].1;
        let own = experiment(&runs[index]);
        match arms.iter_mut().find(|arm| differences(&experiment(&runs[arm[0]]), &own).is_empty()) {
            Some(arm) => arm.push(index),
            None => arms.push(vec![index]),
        }
    }
    for (name, arms) in named {
        let specs: Vec<v1::JobSpec> = arms.iter().map(|arm| experiment(&runs[arm[0]])).collect();
        for (arm, name) in arms.iter().zip(arm_names(&name, &specs)) {
            arm.iter().for_each(|index| runs[*index].arm.clone_from(&name));
        }
    }
}

/// Names of the arms with these settings, whose jobs have the same name.
fn arm_names(name: &str, arms: &[v1::JobSpec]) -> Vec<String> {
    let [first, others @ ..] = arms else { return Vec::new() };
    let mut fields: Vec<String> = others
        .iter()
        .flat_map(|other| differences(first, other))
        .map(|Difference { field, .. }| field)
        .collect();
    fields.sort_unstable();
    fields.dedup();
    let own = |arm: &v1::JobSpec| {
        // Compared with no settings at all, every field has its value.
        let values = differences(&v1::JobSpec::default(), arm);
        let value = |field: &String| {
            let found = values.iter().find(|value| value.field == *field)?;
            let leaf = field.rsplit('.').next().unwrap_or(field);
            let is_unique = fields.iter().filter(|other| other.rsplit('.').next() == Some(leaf)).count() == 1;
            let short = if is_unique { leaf } else { field };
            Some(format!("{short} {}", found.values[1].as_deref().unwrap_or("unset")))
        };
        fields.iter().filter_map(value).take(MAX_SETTINGS).collect::<Vec<_>>().join(", ")
    };
    let mut names: Vec<String> = Vec::new();
    for arm in arms {
        let settings = if fields.is_empty() { String::new() } else { own(arm) };
        let full = if settings.is_empty() { name.to_owned() } else { format!("{name}, {settings}") };
        let numbered = (2..).map(|number| format!("{full} ({number})"));
        let free = std::iter::once(full.clone()).chain(numbered).find(|candidate| !names.contains(candidate));
        names.extend(free);
    }
    names
}

fn refuse_repetitions(arm: &[&v1::RunReport]) -> Result<()> {
    for (index, run) in arm.iter().enumerate() {
        let is_same = |other: &&&v1::RunReport| {
            seed(other) == seed(run) && differences(&experiment(other), &experiment(run)).is_empty()
        };
        if let Some(earlier) = arm[..index].iter().find(is_same) {
            bail!(
                "{} and {} are the same run: the arm {:?} has their settings and seed {} twice, which says nothing about \
                 the spread over seeds; leave one out, or name another arm for it, as other={}",
                describe(earlier),
                describe(run),
                run.arm,
                seed(run),
                describe(run)
            );
        }
    }
    Ok(())
}

/// A warning if an arm that the user named has runs of several settings.
fn mixed_settings(arm: &[&v1::RunReport]) -> Option<String> {
    let [first, others @ ..] = arm else { return None };
    let (run, found) = others.iter().find_map(|run| {
        let first = differences(&experiment(first), &experiment(run)).into_iter().next()?;
        Some((run, first.field))
    })?;
    Some(format!(
        "the runs of the arm {:?} differ by more than their seeds: {} and {} by {found}; its interval is over all of that",
        run.arm,
        describe(first),
        describe(run)
    ))
}

/// A warning if an arm has a run that ended early, which bounds the rounds that all of them have.
fn incomplete(arm: &[&v1::RunReport]) -> Option<String> {
    let rounds = |run: &v1::RunReport| run.job.as_ref().map_or(0, |job| job.rounds.len());
    let most = arm.iter().map(|run| rounds(run)).max()?;
    let run = arm.iter().min_by_key(|run| rounds(run)).filter(|run| rounds(run) < most)?;
    let job = run.job.as_ref()?;
    let state = if is_ended(job) { state_name(job) } else { "in progress".to_owned() };
    Some(format!(
        "{} has {} of the {most} rounds of the arm {:?} and is {state}; later rounds are means over fewer seeds",
        describe(run),
        rounds(run),
        run.arm
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, seed: u32, rate: f64) -> v1::RunReport {
        let step = v1::RewardStepSpec { learning_rate: Some(rate), ..Default::default() };
        let spec = v1::JobSpec { seed: Some(seed), reward_step: Some(step), ..Default::default() };
        let rounds = vec![v1::RoundResult::default(); 3];
        let mut job = v1::Job {
            id: format!("{name}-{seed}-{rate}"),
            name: name.to_owned(),
            spec: Some(spec),
            rounds,
            ..Default::default()
        };
        job.set_state(v1::JobState::Succeeded);
        v1::RunReport { job: Some(job), directory: format!("{name}{seed}"), ..Default::default() }
    }

    fn arms(runs: &[v1::RunReport]) -> Vec<&str> {
        runs.iter().map(|run| run.arm.as_str()).collect()
    }

    #[test]
    fn runs_of_one_name_and_other_settings_are_other_arms() {
        let mut runs = vec![run("a", 0, 0.1), run("a", 1, 0.1), run("a", 0, 0.2), run("b", 0, 0.1)];
        runs[1].job.as_mut().unwrap().spec.as_mut().unwrap().resources =
            Some(v1::ResourceSpec { ranks: Some(2), ..Default::default() });
        assert_eq!(group(&mut runs).unwrap(), [] as [String; 0]);
        assert_eq!(
            arms(&runs),
            ["a, learning_rate 0.1", "a, learning_rate 0.1", "a, learning_rate 0.2", "b"]
        );
    }

    #[test]
    fn precision_makes_another_arm_and_the_number_of_ranks_does_not() {
        let of = |ranks: u32, precision: &str| {
            let mut run = run("a", ranks, 0.1);
            let resources = v1::ResourceSpec {
                ranks: Some(ranks),
                precision: precision.to_owned(),
                ..Default::default()
            };
            run.job.as_mut().unwrap().spec.as_mut().unwrap().resources = Some(resources);
            run
        };
        let mut runs = vec![of(1, "fp32"), of(2, "fp32"), of(2, "bf16")];
        group(&mut runs).unwrap();
        assert_eq!(arms(&runs), ["a, precision fp32", "a, precision fp32", "a, precision bf16"]);
    }

    #[test]
    fn an_arm_does_not_count_a_run_twice() {
        let mut twice = vec![run("a", 0, 0.1), run("a", 0, 0.1)];
        let refused = group(&mut twice).unwrap_err().to_string();
        assert!(refused.contains("seed 0 twice") && refused.contains("other=a0"), "{refused}");
        twice[0].arm = String::new();
        twice[1].arm = "other".to_owned();
        group(&mut twice).unwrap();
        assert_eq!(arms(&twice), ["a", "other"]);
    }

    #[test]
    fn arms_whose_means_mislead_are_warned_of() {
        let mut runs = vec![run("a", 0, 0.1), run("b", 0, 0.2), run("c", 1, 0.1)];
        runs.iter_mut().for_each(|run| run.arm = "mine".to_owned());
        runs[2].job.as_mut().unwrap().rounds.truncate(1);
        let warnings = group(&mut runs).unwrap();
        assert!(warnings[0].contains("a0 and b0 by reward_step.learning_rate"), "{warnings:?}");
        assert!(warnings[1].starts_with("c1 has 1 of the 3 rounds of the arm \"mine\""), "{warnings:?}");
        assert_eq!(warnings.len(), 2);
    }
}
