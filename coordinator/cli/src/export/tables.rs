//! Tables of rounds: of each run with standard errors, and of each arm over its seeds.

use std::collections::BTreeMap;

use foil_proto::v1;

use super::seeds::{Estimate, over_runs};
use crate::report::{COLUMNS, Column, Side, cells, digits_of, fixed, state_name};

/// The runs of one arm, in the order of the command line.
struct Arm<'a> {
    name: &'a str,
    runs: Vec<&'a v1::RunReport>,
}

fn arms(runs: &[v1::RunReport]) -> Vec<Arm<'_>> {
    let mut arms: Vec<Arm<'_>> = Vec::new();
    for run in runs {
        match arms.iter_mut().find(|arm| arm.name == run.arm) {
            Some(arm) => arm.runs.push(run),
            None => arms.push(Arm { name: &run.arm, runs: vec![run] }),
        }
    }
    arms
}

fn seed(run: &v1::RunReport) -> u32 {
    run.job.as_ref().and_then(|job| job.spec.as_ref()?.seed).unwrap_or(0)
}

/// The metrics of a job: round, reward or policy, and the metric. Round 0 is the start policy.
fn metrics(job: &v1::Job) -> impl Iterator<Item = (u32, Side, &v1::Metric)> {
    let start = job.start.iter().map(|metric| (0, Side::Policy, metric));
    let rounds = job.rounds.iter().flat_map(|round| {
        let reward = round.reward.iter().map(|metric| (round.round, Side::Reward, metric));
        reward.chain(round.policy.iter().map(|metric| (round.round, Side::Policy, metric)))
    });
    start.chain(rounds)
}

fn side(side: Side) -> &'static str {
    match side {
        Side::Reward => "reward",
        Side::Policy => "policy",
    }
}

/// The values of all runs of an arm, by round and metric, in the order of the first run that has them.
type Values<'a> = Vec<((u32, Side, &'a str), Vec<f64>)>;

fn values<'a>(arm: &Arm<'a>) -> Values<'a> {
    let (mut places, mut values) = (BTreeMap::new(), Values::new());
    for (round, side, metric) in arm.runs.iter().filter_map(|run| run.job.as_ref()).flat_map(metrics) {
        let key = (round, side, metric.name.as_str());
        let place = *places.entry(key).or_insert_with(|| {
            values.push((key, Vec::new()));
            values.len() - 1
        });
        values[place].1.push(metric.value);
    }
    values
}

/// A line for each metric of each round of each run.
pub(super) fn csv(runs: &[v1::RunReport]) -> String {
    let mut text = String::from("arm,job,name,seed,state,round,model,metric,value,se\n");
    for run in runs {
        let Some(job) = &run.job else { continue };
        let head =
            [quoted(&run.arm), quoted(&job.id), quoted(&job.name), seed(run).to_string(), state_name(job)];
        for (round, of, metric) in metrics(job) {
            let se = metric.se.map(|se| se.to_string()).unwrap_or_default();
            let row =
                [round.to_string(), side(of).to_owned(), quoted(&metric.name), metric.value.to_string(), se];
            text += &format!("{},{}\n", head.join(","), row.join(","));
        }
    }
    text
}

/// A line for each metric of each round of each arm.
pub(super) fn arms_csv(runs: &[v1::RunReport]) -> String {
    let mut text = String::from("arm,round,model,metric,runs,mean,half_width_95\n");
    for arm in arms(runs) {
        for ((round, of, metric), values) in values(&arm) {
            let Some(Estimate { runs, mean, half_width }) = over_runs(&values) else { continue };
            let half_width = half_width.map(|width| width.to_string()).unwrap_or_default();
            let (name, metric) = (quoted(arm.name), quoted(metric));
            text += &format!("{name},{round},{},{metric},{runs},{mean},{half_width}\n", side(of));
        }
    }
    text
}

/// A field of a CSV file (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// The number of an arm's runs that have a round.
fn seeds(arm: &Arm<'_>, round: u32) -> usize {
    let jobs = arm.runs.iter().filter_map(|run| run.job.as_ref());
    jobs.filter(|job| metrics(job).any(|(found, ..)| found == round)).count()
}

/// A row for each round of each arm: the mean over the runs that have it, with its interval. Empty columns
/// are left out.
fn arm_cells(runs: &[v1::RunReport], between: &str) -> Vec<Vec<String>> {
    let arms = arms(runs);
    let values: Vec<Values<'_>> = arms.iter().map(values).collect();
    let find = |values: &Values<'_>, round: u32, column: &Column| {
        let found = values.iter().find(|(key, _)| *key == (round, column.side, column.metric));
        found.and_then(|(_, values)| over_runs(values))
    };
    let rounds = |values: &Values<'_>| {
        let mut rounds: Vec<u32> = values.iter().map(|((round, ..), _)| *round).collect();
        rounds.sort_unstable();
        rounds.dedup();
        rounds
    };
    let rows: Vec<(usize, u32)> = values
        .iter()
        .enumerate()
        .flat_map(|(arm, values)| rounds(values).into_iter().map(move |round| (arm, round)))
        .collect();
    let shown: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| rows.iter().any(|(arm, round)| find(&values[*arm], *round, column).is_some()))
        .collect();
    let mut cells = vec![["arm", "seeds", "round"].map(str::to_owned).to_vec()];
    cells[0].extend(shown.iter().map(|column| column.head.to_owned()));
    for (arm, round) in rows {
        let name = if round == 0 { "start".to_owned() } else { round.to_string() };
        let mut row = vec![arms[arm].name.to_owned(), seeds(&arms[arm], round).to_string(), name];
        row.extend(shown.iter().map(|column| match find(&values[arm], round, column) {
            None => "–".to_owned(),
            Some(Estimate { mean, half_width, .. }) => {
                let digits = digits_of(column.digits, half_width);
                let mean = fixed(mean, digits);
                match half_width {
                    Some(width) => format!("{mean}{between}{}", fixed(width, digits)),
                    None => mean,
                }
            }
        }));
        cells.push(row);
    }
    cells
}

/// The heading above a run's table.
fn title(run: &v1::RunReport, job: &v1::Job) -> String {
    format!("{}, seed {}, {} (job {})", run.arm, seed(run), state_name(job), job.id)
}

const RUN_NOTE: &str = "Each metric with its standard error, or its 95 % interval in brackets. * marks the best round. Rewards of \
                        different rounds come from different reward models and are not comparable.";
const ARM_NOTE: &str =
    "Means over the runs of an arm, with half the width of their 95 % interval by Student's t.";

pub(super) fn markdown(runs: &[v1::RunReport]) -> String {
    let mut text = String::from("# Rounds\n");
    if runs.len() > 1 {
        text += &format!("\n## Arms\n\n{ARM_NOTE}\n\n{}", markdown_table(&arm_cells(runs, " ± ")));
    }
    text += &format!("\n## Runs\n\n{RUN_NOTE}\n");
    for run in runs {
        let Some(job) = &run.job else { continue };
        let title = markdown_text(&title(run, job));
        text += &format!("\n### {title}\n\n{}", markdown_table(&cells(job, " ± ")));
        for alarm in foil_coordinator::job::alarms(job) {
            text += &format!("\nWarning: {}\n", markdown_text(&alarm));
        }
        for warning in &job.warnings {
            text += &format!("\nWarning of the submission: {}\n", markdown_text(warning));
        }
    }
    text
}

fn markdown_table(cells: &[Vec<String>]) -> String {
    let Some((head, rows)) = cells.split_first() else { return "No round is evaluated.\n".to_owned() };
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| markdown_text(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = format!("|{}\n", " --- |".repeat(head.len()));
    [line(head), rule].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

fn markdown_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '|' | '*' | '_' | '`' | '<' | '[' | '\\') {
            escaped.push('\\');
        }
        escaped.push(if character.is_control() { ' ' } else { character });
    }
    escaped
}

pub(super) fn latex(runs: &[v1::RunReport]) -> String {
    let mut text = String::from("% Needs \\usepackage{booktabs}.\n");
    if runs.len() > 1 {
        text += &format!("\n% {ARM_NOTE}\n{}", latex_table(&arm_cells(runs, " ± ")));
    }
    for run in runs {
        let Some(job) = &run.job else { continue };
        let title = title(run, job).replace(char::is_control, " ");
        text += &format!("\n% {title}\n{}", latex_table(&cells(job, " ± ")));
    }
    text
}

fn latex_table(cells: &[Vec<String>]) -> String {
    let Some((head, rows)) = cells.split_first() else { return "% No round is evaluated.\n".to_owned() };
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| latex_text(cell)).collect();
        format!("{} \\\\\n", cells.join(" & "))
    };
    let rows: String = rows.iter().map(|row| line(row)).collect();
    let columns = "l".repeat(head.len());
    format!(
        "\\begin{{tabular}}{{{columns}}}\n\\toprule\n{}\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n",
        line(head)
    )
}

fn latex_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', character]),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '±' => escaped.push_str("$\\pm$"),
            '–' => escaped.push_str("--"),
            // At the start of a cell, it would begin an argument of the line before.
            '[' => escaped.push_str("{[}"),
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::tests::runs;
    use super::*;

    #[test]
    fn arms_have_the_means_of_their_seeds() {
        let cells = arm_cells(&runs(), "±");
        let gold = cells[0].iter().position(|head| head == "gold").unwrap();
        let found: Vec<_> = cells[1..].iter().map(|row| [&row[0], &row[1], &row[2], &row[gold]]).collect();
        // Gold rewards 1, 2 and 4, plus the round: t(2) · √(7/3) / √3 = 3.79.
        assert_eq!(
            found,
            [
                ["apo", "3", "start", "2.60±0.00"],
                ["apo", "3", "1", "3.33±3.79"],
                ["apo", "3", "2", "4.33±3.79"],
                ["static_rm", "1", "start", "2.60"],
                ["static_rm", "1", "1", "1.50"],
                ["static_rm", "1", "2", "2.50"],
            ]
        );
        let csv = arms_csv(&runs());
        let line = csv.lines().find(|line| line.starts_with("apo,2,policy,gold_mean,")).unwrap();
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields[4], "3");
        assert!((fields[5].parse::<f64>().unwrap() - 13.0 / 3.0).abs() < 1e-12);
        assert!(csv.contains("static_rm,1,policy,gold_mean,1,1.5,\n"), "one run has no interval: {csv}");
    }

    #[test]
    fn a_round_has_the_number_of_runs_that_came_to_it() {
        let mut runs = runs();
        runs[1].job.as_mut().unwrap().rounds.pop();
        runs[2].job.as_mut().unwrap().start.clear();
        let cells = arm_cells(&runs[..3], "±");
        let found: Vec<_> = cells[1..].iter().map(|row| [&row[1], &row[2]]).collect();
        assert_eq!(found, [["2", "start"], ["3", "1"], ["2", "2"]]);
    }

    #[test]
    fn the_tables_of_rounds_have_every_figure() {
        let csv = csv(&runs()[..1]);
        assert!(csv.contains("apo,apo-0,letters,0,succeeded,1,reward,accuracy,0.75,0.02\n"), "{csv}");
        assert!(csv.contains("apo,apo-0,letters,0,succeeded,0,policy,gold_mean,2.6,0.06\n"), "{csv}");
        assert_eq!(csv.lines().count(), 1 + 2 + 2 * 7);
        let markdown = markdown(&runs());
        assert!(markdown.contains("| static\\_rm | 1 | 2 | 0.700 |"), "{markdown}");
        assert!(markdown.contains("| 2 \\* | 0.700 ± 0.020 |"), "{markdown}");
        let mut warned = runs();
        warned[0].job.as_mut().unwrap().warnings = vec!["evaluation_prompts: 3 of its 10 prompts".into()];
        let warned = super::markdown(&warned);
        let line = "\nWarning of the submission: evaluation\\_prompts: 3 of its 10 prompts\n";
        assert_eq!(warned.matches(line).count(), 1, "{warned}");
        let latex = latex(&runs());
        assert!(latex.contains("static\\_rm & 1 & 2 & 0.700 &") && latex.contains("0.700 $\\pm$ 0.020"));
        assert_eq!(latex.matches("\\begin{tabular}").count(), 5, "the arms, and each run");
    }

    #[test]
    fn names_cannot_break_a_table() {
        assert_eq!(quoted("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(markdown_text("a|b<i>\n"), "a\\|b\\<i> ");
        assert_eq!(latex_text("50%_{x}\\[1]\n"), "50\\%\\_\\{x\\}\\textbackslash{}{[}1] ");
        let mut hostile = runs();
        hostile[0].arm = "x\n\\input{y}".to_owned();
        assert!(latex(&hostile).lines().all(|line| !line.starts_with("\\input")));
        assert_eq!(markdown_table(&[]), "No round is evaluated.\n");
    }
}
