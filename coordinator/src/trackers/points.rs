//! Points of metrics, made from the lines of a phase's steps and from the metrics of phases.

use std::collections::BTreeMap;
use std::sync::Arc;

use foil_proto::v1;
use serde_json::{Map, Value};

use super::names;
use super::source::PhaseFacts;

/// Fields of a line that are not metrics.
const LABELS: [&str; 5] = ["phase", "round", "attempt", "step", "steps"];
/// Maximum number of metrics in a phase's steps.
const MAX_METRICS: usize = 128;

/// One value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) key: Arc<str>,
    pub(super) step: u64,
    /// Finite.
    pub(super) value: f64,
    /// Milliseconds since the Unix epoch.
    pub(super) at: u64,
}

/// Reads the lines of a phase's steps in order and converts them to points.
#[derive(Debug)]
pub(super) struct StepReader {
    facts: PhaseFacts,
    /// Number of steps in earlier phases on the same axis.
    offset: u64,
    logging_steps: u64,
    keys: BTreeMap<String, Arc<str>>,
    last: u64,
    /// Index of the attempt start that precedes the last step, and the training time since then.
    start: usize,
    seconds: f64,
}

/// The result of reading one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// The step was read.
    Step(u64),
    /// The step comes after the last wanted one.
    Beyond,
    /// The line is not a step's, or was read before.
    Other,
}

impl StepReader {
    pub(super) fn new(facts: PhaseFacts, offset: u64, logging_steps: u32) -> Self {
        let keys = BTreeMap::new();
        let logging_steps = u64::from(logging_steps.max(1));
        Self { facts, offset, logging_steps, keys, last: 0, start: 0, seconds: 0.0 }
    }

    /// Reads a line and adds its points to `points` if the step is in `wanted` (after the first, up to and
    /// including the second).
    ///
    /// # Errors
    /// The line is not a JSON object.
    pub(super) fn line(
        &mut self,
        line: &[u8],
        wanted: (u64, u64),
        points: &mut Vec<Point>,
    ) -> Result<Line, serde_json::Error> {
        let fields: Map<String, Value> = serde_json::from_slice(line)?;
        let number = |name: &str| fields.get(name).and_then(Value::as_u64);
        let Some(step) = number("step").filter(|step| *step > self.last) else { return Ok(Line::Other) };
        if step > wanted.1 {
            return Ok(Line::Beyond);
        }
        let seconds = fields.get("seconds").and_then(Value::as_f64).filter(|seconds| *seconds > 0.0);
        self.pass(step, seconds.unwrap_or_default());
        let is_logged = step.is_multiple_of(self.logging_steps) || number("steps") == Some(step);
        if step > wanted.0 && is_logged {
            let at = self.time();
            for (name, value) in &fields {
                let value = value.as_f64().filter(|value| value.is_finite());
                if let Some(value) = value.filter(|_| !LABELS.contains(&name.as_str()))
                    && let Some(key) = self.key(name)
                {
                    points.push(Point { key, step: self.offset + step, value, at });
                }
            }
        }
        Ok(Line::Step(step))
    }

    fn pass(&mut self, step: u64, seconds: f64) {
        let later = |start: &(u64, u64)| start.1 < step;
        while self.facts.starts.get(self.start + 1).is_some_and(later) {
            self.start += 1;
            self.seconds = 0.0;
        }
        self.last = step;
        self.seconds += seconds;
    }

    /// When the last step was taken, computed from durations because lines carry no times.
    fn time(&self) -> u64 {
        let started = self.facts.starts.get(self.start).map_or(0, |(at, _)| *at);
        let at = started.saturating_add((self.seconds * 1000.0) as u64);
        self.facts.committed_at.map_or(at, |committed| at.min(committed.max(started)))
    }

    fn key(&mut self, name: &str) -> Option<Arc<str>> {
        if let Some(key) = self.keys.get(name) {
            return Some(Arc::clone(key));
        }
        if self.keys.len() >= MAX_METRICS {
            return None;
        }
        let key: Arc<str> = names::of_step(self.facts.phase.work, name).into();
        self.keys.insert(name.to_owned(), Arc::clone(&key));
        Some(key)
    }
}

/// The points of a phase's own metrics, each with its standard error.
pub(super) fn of_phase(facts: &PhaseFacts, metrics: &[v1::Metric]) -> Vec<Point> {
    let (work, step) = (facts.phase.work, u64::from(facts.phase.round));
    let at = facts.committed_at.unwrap_or_default();
    let point =
        |key: String, value: f64| value.is_finite().then(|| Point { key: key.into(), step, value, at });
    let of_metric = |metric: &v1::Metric| {
        let key = names::of_phase(work, &metric.name);
        let error = metric.se.and_then(|se| point(format!("{key}_se"), se));
        point(key, metric.value).into_iter().chain(error)
    };
    let mut points: Vec<Point> = metrics.iter().flat_map(of_metric).collect();
    // Each name only once, whatever the ranks report.
    points.sort_by(|a, b| a.key.cmp(&b.key));
    points.dedup_by(|a, b| a.key == b.key);
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Phase, Work};

    fn facts(starts: &[(u64, u64)], committed_at: Option<u64>) -> PhaseFacts {
        let phase = Phase::gang(2, Work::TrainPolicy, 8);
        PhaseFacts { phase, starts: starts.to_vec(), committed_at }
    }

    fn line(step: u64, seconds: f64) -> String {
        format!(
            r#"{{"phase":"r02.policy.train","round":2,"attempt":1,"step":{step},"steps":8,"loss":{}.5,"seconds":{seconds},"nan":null}}"#,
            step * 10
        )
    }

    fn read(reader: &mut StepReader, steps: &[u64], wanted: (u64, u64)) -> Vec<(String, u64, f64, u64)> {
        let mut points = Vec::new();
        for step in steps {
            reader.line(line(*step, 2.0).as_bytes(), wanted, &mut points).unwrap();
        }
        let of = |point: &Point| (point.key.to_string(), point.step, point.value, point.at);
        points.iter().filter(|point| point.key.ends_with("loss")).map(of).collect()
    }

    #[test]
    fn steps_count_on_over_rounds_and_have_times() {
        let mut reader = StepReader::new(facts(&[(1000, 0), (90_000, 3)], None), 100, 1);
        let all = read(&mut reader, &[1, 2, 3, 4, 5], (0, u64::MAX));
        let key = || "policy/train/loss".to_owned();
        assert_eq!(
            all,
            [
                (key(), 101, 10.5, 3000),
                (key(), 102, 20.5, 5000),
                (key(), 103, 30.5, 7000),
                (key(), 104, 40.5, 92_000),
                (key(), 105, 50.5, 94_000)
            ]
        );
        assert_eq!(read(&mut reader, &[5, 4], (0, u64::MAX)), [], "those were already read");
    }

    #[test]
    fn only_wanted_and_logged_steps_give_points() {
        let mut reader = StepReader::new(facts(&[(0, 0)], Some(9000)), 0, 3);
        let steps =
            |points: Vec<(String, u64, f64, u64)>| points.iter().map(|point| point.1).collect::<Vec<_>>();
        assert_eq!(steps(read(&mut reader, &[1, 2, 3, 4, 5, 6], (3, 5))), [0_u64; 0]);
        let rest = read(&mut reader, &[6, 7, 8], (3, 8));
        assert_eq!(
            rest.iter().map(|point| point.3).collect::<Vec<_>>(),
            [9000, 9000],
            "not after the commit"
        );
        assert_eq!(steps(rest), [6, 8], "and the last one");
        let mut points = Vec::new();
        assert_eq!(reader.line(line(9, 1.0).as_bytes(), (3, 8), &mut points).unwrap(), Line::Beyond);
        assert_eq!(reader.line(b"{}", (3, 8), &mut points).unwrap(), Line::Other);
        assert!(reader.line(b"[", (3, 8), &mut points).is_err() && points.is_empty());
    }

    #[test]
    fn values_are_those_of_the_log_to_the_last_bit() {
        let mut points = Vec::new();
        let values: Vec<f64> =
            (0..2000).map(|_| fastrand::f64() * 10_f64.powi(fastrand::i32(-8..8))).collect();
        for value in &values {
            let mut reader = StepReader::new(facts(&[(0, 0)], None), 0, 1);
            let line = serde_json::json!({ "phase": "p", "loss": value, "step": 1, "steps": 1 }).to_string();
            reader.line(line.as_bytes(), (0, 1), &mut points).unwrap();
        }
        let read: Vec<f64> = points.iter().map(|point| point.value).collect();
        assert!(read == values);
    }

    #[test]
    fn the_number_of_metrics_is_bounded() {
        let mut reader = StepReader::new(facts(&[(0, 0)], None), 0, 1);
        let many: Vec<String> = (0..500).map(|metric| format!("\"m{metric}\":1.0")).collect();
        let mut points = Vec::new();
        let line = format!("{{\"step\":1,\"steps\":8,{}}}", many.join(","));
        reader.line(line.as_bytes(), (0, 8), &mut points).unwrap();
        assert_eq!(points.len(), MAX_METRICS);
    }

    #[test]
    fn a_phases_metrics_come_with_their_errors_by_round() {
        let metric = |name: &str, value, se| v1::Metric { name: name.into(), value, se };
        let facts = PhaseFacts { phase: Phase::map(3, Work::EvaluatePolicy, 1), ..facts(&[(5, 0)], Some(7)) };
        let metrics = [
            metric("reward_mean", 1.5, Some(0.25)),
            metric("x", f64::NAN, None),
            metric("reward_mean", 9.0, None),
        ];
        let points = of_phase(&facts, &metrics);
        let found: Vec<_> =
            points.iter().map(|point| (&*point.key, point.step, point.value, point.at)).collect();
        assert_eq!(found, [("policy/eval/reward", 3, 1.5, 7), ("policy/eval/reward_se", 3, 0.25, 7)]);
    }
}
