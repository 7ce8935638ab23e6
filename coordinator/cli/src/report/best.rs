//! The best round, and its metric on rows that did not select it.

use foil_common::stats::{MIN_SPLIT_ROWS, REPORT, REWARD_DIFFERENCE, REWARD_GAIN, SELECTION};
use foil_proto::v1;
use serde_json::{Value, json};

/// The round that `evaluation.metric_for_best_model` selects.
pub(crate) struct Best {
    pub(crate) round: u32,
    pub(crate) by: String,
    /// The metric on the half of the rows that selected the round, and on the other half. `None` if there
    /// are too few rows.
    halves: Option<[Estimate; 2]>,
}

struct Estimate {
    value: f64,
    se: Option<f64>,
    rows: u64,
}

/// `None` until a round is evaluated.
pub(crate) fn best(job: &v1::Job) -> Option<Best> {
    let round = job.rounds.iter().find(|round| round.round == job.best_round && round.round > 0)?;
    let spec = job.spec.as_ref().and_then(|spec| spec.evaluation.as_ref());
    let by = spec.map(|evaluation| evaluation.metric_for_best_model.clone()).unwrap_or_default();
    let (metrics, name, counted) = match by.as_str() {
        "reward_accuracy" => (&round.reward, "accuracy", "accuracy"),
        REWARD_GAIN => (&round.policy, REWARD_GAIN, REWARD_DIFFERENCE),
        name => (&round.policy, name, name),
    };
    let find = |name: String| metrics.iter().find(|metric| metric.name == name);
    let of = |half: &str| {
        let figure = find(format!("{half}{name}"))?;
        let rows = find(format!("{half}{counted}_n"))?.value as u64;
        Some(Estimate { value: figure.value, se: figure.se, rows })
    };
    let halves = of(SELECTION).zip(of(REPORT)).map(|(selection, report)| [selection, report]);
    Some(Best { round: round.round, by, halves })
}

impl Best {
    /// The selection of the round, and its metric on the other rows, as text.
    pub(crate) fn text(&self) -> String {
        let Some([selection, report]) = &self.halves else {
            return format!(
                "by {}, on the same rows on which its metrics are measured, so that they are optimistic: fewer than \
                 {MIN_SPLIT_ROWS} evaluation rows are not split",
                self.by
            );
        };
        let se = report.se.map(|se| format!(" ± {se:.3}")).unwrap_or_default();
        format!(
            "by {} on {} of the evaluation rows; on the other {} it is {:.3}{se}",
            self.by, selection.rows, report.rows, report.value
        )
    }

    pub(super) fn json(&self) -> Value {
        let estimate = |half: usize| {
            let half = self.halves.as_ref().map(|halves| &halves[half]);
            half.map(|estimate| json!({ "value": estimate.value, "se": estimate.se, "rows": estimate.rows }))
        };
        json!({ "round": self.round, "by": self.by, "selection": estimate(0), "report": estimate(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{finished_job, metric};

    fn job(metric_for_best_model: &str) -> v1::Job {
        let evaluation = v1::EvaluationSpec {
            metric_for_best_model: metric_for_best_model.to_owned(),
            ..Default::default()
        };
        let spec = v1::JobSpec { evaluation: Some(evaluation), ..Default::default() };
        v1::Job { spec: Some(spec), ..finished_job() }
    }

    #[test]
    fn the_best_round_is_reported_on_rows_that_did_not_select_it() {
        let mut gold = job("gold_mean");
        gold.rounds[1].policy.extend([
            metric("selection_gold_mean", 4.5, Some(0.1)),
            metric("selection_gold_mean_n", 251.0, None),
            metric("report_gold_mean", 4.0, Some(0.09)),
            metric("report_gold_mean_n", 249.0, None),
        ]);
        let found = best(&gold).unwrap();
        assert_eq!(
            found.text(),
            "by gold_mean on 251 of the evaluation rows; on the other 249 it is 4.000 ± 0.090"
        );
        let expected = json!({
            "round": 2, "by": "gold_mean",
            "selection": { "value": 4.5, "se": 0.1, "rows": 251 }, "report": { "value": 4.0, "se": 0.09, "rows": 249 }
        });
        assert_eq!(found.json(), expected);
    }

    #[test]
    fn gains_and_accuracies_are_found_under_their_own_names() {
        let mut gain = job("reward_gain");
        gain.rounds[1].policy.extend([
            metric("selection_reward_gain", 0.5, Some(0.1)),
            metric("selection_reward_difference_mean_n", 20.0, None),
            metric("report_reward_gain", 0.25, None),
            metric("report_reward_difference_mean_n", 21.0, None),
        ]);
        assert!(best(&gain).unwrap().text().ends_with("on the other 21 it is 0.250"));
        let mut accuracy = job("reward_accuracy");
        accuracy.rounds[1].reward.extend([
            metric("selection_accuracy", 0.75, Some(0.1)),
            metric("selection_accuracy_n", 30.0, None),
            metric("report_accuracy", 0.5, Some(0.1)),
            metric("report_accuracy_n", 31.0, None),
        ]);
        assert!(best(&accuracy).unwrap().text().contains("on 30 of the evaluation rows"));
    }

    #[test]
    fn with_few_rows_the_metric_is_said_to_be_optimistic() {
        let few = best(&job("gold_mean")).unwrap();
        assert!(few.text().contains("so that they are optimistic"), "{}", few.text());
        assert_eq!(few.json()["report"], Value::Null);
        assert!(best(&v1::Job { best_round: 0, ..job("gold_mean") }).is_none());
    }
}
