//! Converts the `/metrics` page to OTLP metrics: the same series, so that pushed and scraped metrics cannot
//! differ.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric::Data,
    number_data_point::Value,
};

use super::span::attribute;

/// Labels in the order of the page.
type Labels = Vec<(String, String)>;

/// The metrics of a page in Prometheus' text format, as measured at `now` since `start` (nanoseconds since
/// the Unix epoch). Metrics that are not counters, gauges or histograms are left out.
pub(super) fn metrics(page: &str, start: u64, now: u64) -> Vec<Metric> {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut help = ("", "");
    for line in page.lines() {
        if let Some(told) = line.strip_prefix("# HELP ") {
            help = told.split_once(' ').unwrap_or((told, ""));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|told| told.split_once(' '))
        {
            let help = if help.0 == name { help.1 } else { "" };
            families.push(Family { name, kind, help, samples: Vec::new() });
        } else if let Some((sample, family)) = sample(line).zip(families.last_mut()) {
            family.samples.push(sample);
        }
    }
    families.into_iter().filter_map(|family| family.metric(start, now)).collect()
}

/// Number of data points, each of which has its own value.
pub(super) fn points(metrics: &[Metric]) -> u64 {
    let count = |metric: &Metric| match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    };
    metrics.iter().map(|metric| count(metric) as u64).sum()
}

/// A metric with its series.
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    samples: Vec<Sample<'a>>,
}

struct Sample<'a> {
    name: &'a str,
    labels: Labels,
    value: f64,
}

impl Family<'_> {
    fn metric(self, start: u64, now: u64) -> Option<Metric> {
        let Self { name, kind, help, samples } = self;
        let numbers = |samples: Vec<Sample<'_>>, start| {
            let point = |sample: Sample<'_>| NumberDataPoint {
                attributes: attributes(sample.labels),
                start_time_unix_nano: start,
                time_unix_nano: now,
                value: Some(Value::AsDouble(sample.value)),
                ..Default::default()
            };
            samples.into_iter().map(point).collect::<Vec<_>>()
        };
        let cumulative = AggregationTemporality::Cumulative.into();
        let data = match kind {
            "counter" => Data::Sum(Sum {
                data_points: numbers(samples, start),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            // A gauge has no start time.
            "gauge" => Data::Gauge(Gauge { data_points: numbers(samples, 0) }),
            "histogram" => Data::Histogram(Histogram {
                data_points: histograms(name, samples, start, now),
                aggregation_temporality: cumulative,
            }),
            _ => return None,
        };
        let (name, description, unit) = (name.to_owned(), unescaped(help), unit(name).to_owned());
        Some(Metric { name, description, unit, data: Some(data), ..Default::default() })
    }
}

/// The UCUM unit, which Prometheus puts in the name.
fn unit(name: &str) -> &'static str {
    let base = name.trim_end_matches("_total");
    match base.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        Some("ratio") => "1",
        _ => "",
    }
}

/// One histogram's share of a page: the buckets count all values up to their bound.
#[derive(Default)]
struct Buckets {
    cumulative: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

fn histograms(name: &str, samples: Vec<Sample<'_>>, start: u64, now: u64) -> Vec<HistogramDataPoint> {
    let mut series: BTreeMap<Labels, Buckets> = BTreeMap::new();
    for Sample { name: sample, mut labels, value } in samples {
        let bound = labels.iter().position(|(label, _)| label == "le").map(|at| labels.remove(at).1);
        let buckets = series.entry(labels).or_default();
        match (sample.strip_prefix(name), bound.and_then(|bound| bound.parse().ok())) {
            (Some("_bucket"), Some(bound)) => buckets.cumulative.push((bound, value as u64)),
            (Some("_sum"), _) => buckets.sum = value,
            (Some("_count"), _) => buckets.count = value as u64,
            _ => {}
        }
    }
    let point = |(labels, mut buckets): (Labels, Buckets)| {
        buckets.cumulative.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut below = 0;
        let own = |(_, count): &(f64, u64)| count.saturating_sub(std::mem::replace(&mut below, *count));
        HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: start,
            time_unix_nano: now,
            count: buckets.count,
            sum: Some(buckets.sum),
            bucket_counts: buckets.cumulative.iter().map(own).collect(),
            // The last bucket has no upper bound.
            explicit_bounds: buckets
                .cumulative
                .iter()
                .map(|(bound, _)| *bound)
                .filter(|bound| bound.is_finite())
                .collect(),
            ..Default::default()
        }
    };
    series.into_iter().map(point).collect()
}

fn attributes(labels: Labels) -> Vec<KeyValue> {
    labels.into_iter().map(|(name, value)| attribute(&name, value.as_str().into())).collect()
}

/// Parses `name{label="value",…} number`; `None` for any other line.
fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(['{', ' ']).filter(|end| *end > 0 && !line.starts_with('#'))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        while !inner.starts_with('}') {
            let (label, quoted) = inner.split_once("=\"")?;
            let end = end_of_quoted(quoted)?;
            labels.push((label.to_owned(), unescaped(&quoted[..end])));
            inner = &quoted[end + 1..];
            inner = inner.strip_prefix(',').unwrap_or(inner);
        }
        rest = &inner[1..];
    }
    Some(Sample { name, labels, value: rest.trim().parse().ok()? })
}

/// Index of the quote that ends a label's value.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })
}

fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        let escaped = if letter == '\\' { rest.next() } else { None };
        plain.push(match escaped {
            Some('n') => '\n',
            Some(other) => other,
            None => letter,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{self, Family};

    /// A page as the exposition writes it.
    fn page() -> String {
        let recorder = exposition::builder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            exposition::describe();
            metrics::counter!("foil_attempts_total", "cause" => "hang").increment(3);
            metrics::counter!("foil_attempts_total", "cause" => "a \"b\" \\ c\nd").increment(1);
            metrics::gauge!("foil_reward_mean").set(-1.5);
            for seconds in [0.5, 2.0, 2.0, 100_000.0] {
                metrics::histogram!("foil_phase_seconds", "kind" => "sft").record(seconds);
            }
            metrics::histogram!("foil_phase_seconds", "kind" => "score").record(1.0);
        });
        let family = Family::new("foil_devices", "Devices.").with(&[("kind", "cpu"), ("state", "free")], 2.0);
        recorder.handle().render() + &family.render()
    }

    fn found(name: &str) -> Metric {
        let all = super::metrics(&page(), 5, 9);
        all.into_iter().find(|metric| metric.name == name).unwrap()
    }

    fn labels(attributes: &[KeyValue]) -> Vec<String> {
        attributes.iter().map(|attribute| format!("{}={:?}", attribute.key, attribute.value)).collect()
    }

    #[test]
    fn counters_and_gauges_keep_their_values_labels_and_help() {
        let Some(Data::Sum(sum)) = found("foil_attempts_total").data else { panic!("no sum") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
        let value = |point: &NumberDataPoint| point.value;
        let point = sum.data_points.iter().find(|point| value(point) == Some(Value::AsDouble(3.0))).unwrap();
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (5, 9));
        assert!(
            labels(&point.attributes)[0].contains("cause") && labels(&point.attributes)[0].contains("hang")
        );
        let quoted = attribute("cause", "a \"b\" \\ c\nd".into());
        assert!(sum.data_points.iter().any(|point| point.attributes == [quoted.clone()]));

        let reward = found("foil_reward_mean");
        assert_eq!(reward.description, "Mean reward of the latest evaluated policy.");
        let Some(Data::Gauge(gauge)) = reward.data else { panic!("no gauge") };
        assert_eq!(value(&gauge.data_points[0]), Some(Value::AsDouble(-1.5)));
        let Some(Data::Gauge(devices)) = found("foil_devices").data else { panic!("no gauge") };
        assert_eq!(labels(&devices.data_points[0].attributes).len(), 2);
    }

    #[test]
    fn a_histogram_counts_each_value_in_one_bucket() {
        let phases = found("foil_phase_seconds");
        assert_eq!(phases.unit, "s");
        let Some(Data::Histogram(histogram)) = phases.data else { panic!("no histogram") };
        assert_eq!(histogram.data_points.len(), 2);
        let sft = histogram.data_points.iter().find(|point| point.count == 4).unwrap();
        assert_eq!(sft.sum, Some(100_004.5));
        assert_eq!(sft.bucket_counts.len(), sft.explicit_bounds.len() + 1);
        assert_eq!(sft.bucket_counts.iter().sum::<u64>(), 4);
        assert_eq!((sft.bucket_counts[0], sft.bucket_counts[1], sft.bucket_counts.last()), (1, 2, Some(&1)));
        assert_eq!(sft.explicit_bounds[..2], [1.0, 5.0]);
    }

    #[test]
    fn every_series_of_the_page_is_sent() {
        let all = super::metrics(&page(), 5, 9);
        let series = page().lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        let buckets =
            page().lines().filter(|line| line.contains("_bucket{") || line.contains("_sum{")).count();
        assert_eq!(points(&all), (series - buckets) as u64);
        for line in ["# a comment", "", "name", "name{a=\"b} 1", "name{a=\"b\"} x"] {
            assert!(sample(line).is_none(), "{line}");
        }
    }
}
