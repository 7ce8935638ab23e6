//! The sources of a job's data sets, line by line.

use foil_common::plural::counted;
use foil_proto::v1;

use super::fixed;

/// A source of a set of `total` rows: "b.csv: 200 rows (66.7 %, weight 2); left out: 12 max_prompt_tokens".
pub(crate) fn source(source: &v1::DataSourceSummary, total: usize) -> String {
    let share = 100.0 * source.rows as f64 / (total as f64).max(1.0);
    let weight = source.weight.map(|weight| format!(", weight {weight}")).unwrap_or_default();
    let dropped: Vec<String> =
        source.dropped.iter().map(|dropped| format!("{} {}", dropped.rows, dropped.reason)).collect();
    let dropped = match dropped.is_empty() {
        true => String::new(),
        false => format!("; left out: {}", dropped.join(", ")),
    };
    format!("{}: {} ({} %{weight}){dropped}", source.name, counted(source.rows, "row"), fixed(share, 1))
}

/// The sources of the sets that have several, or of which rows are left out.
pub(crate) fn sources(plan: &v1::Plan) -> Vec<String> {
    let told = |set: &&v1::DatasetSummary| {
        set.sources.len() > 1 || set.sources.iter().any(|source| !source.dropped.is_empty())
    };
    let sets = plan.datasets.iter().filter(told);
    sets.flat_map(|set| {
        let rows = usize::try_from(set.rows).unwrap_or(usize::MAX);
        set.sources.iter().map(move |one| format!("{}: {}", set.name, source(one, rows)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_with_its_share_and_what_was_left_out() {
        let dropped = |reason: &str, rows| v1::DroppedRows { reason: reason.into(), rows };
        let mixed = v1::DataSourceSummary {
            name: "b.csv".into(),
            rows: 2,
            weight: Some(0.5),
            dropped: vec![dropped("duplicate", 1), dropped("max_prompt_tokens", 12)],
        };
        let plain = v1::DataSourceSummary { name: "a".into(), rows: 1, ..Default::default() };
        let set = |sources: Vec<v1::DataSourceSummary>| v1::DatasetSummary {
            name: "golden".into(),
            rows: 3,
            sources,
            ..Default::default()
        };
        let plan = v1::Plan {
            datasets: vec![set(vec![plain.clone(), mixed]), set(vec![plain])],
            ..Default::default()
        };
        assert_eq!(
            sources(&plan),
            [
                "golden: a: 1 row (33.3 %)",
                "golden: b.csv: 2 rows (66.7 %, weight 0.5); left out: 1 duplicate, 12 max_prompt_tokens",
            ]
        );
    }
}
