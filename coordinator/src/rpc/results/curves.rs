//! Curves of training steps, reduced to a limited number of points.

use std::collections::HashMap;

use foil_proto::v1;
use serde_json::{Map, Value};
use tonic::Status;

use super::read::damaged;
use crate::plan::Phase;

/// Maximum number of metrics of a phase.
pub(super) const MAX_METRICS: usize = 64;
/// Fields of a line that are not metrics.
const LABELS: [&str; 5] = ["phase", "round", "attempt", "step", "steps"];

/// Sums over the steps that a point represents.
#[derive(Debug, Clone, Copy)]
struct Sums {
    count: u32,
    sum: f64,
    min: f64,
    max: f64,
}

impl Sums {
    const NONE: Self = Self { count: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };

    fn push(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// The mean, kept within its bounds despite rounding.
    fn mean(&self) -> f64 {
        (self.sum / f64::from(self.count)).clamp(self.min, self.max)
    }
}

/// Reduces a phase's lines to points of equally many steps. Memory depends only on the number of points.
pub(super) struct Reducer {
    max_points: u32,
    steps: u32,
    /// Last step of each point that has one.
    last: Vec<u32>,
    metrics: Vec<(String, Vec<Sums>)>,
    by_name: HashMap<String, usize>,
}

impl Reducer {
    pub(super) fn new(phase: &Phase, max_points: u32) -> Self {
        let (metrics, by_name) = (Vec::new(), HashMap::new());
        Self { max_points, steps: phase.steps, last: Vec::new(), metrics, by_name }
    }

    /// Number of steps per point.
    fn width(&self) -> u32 {
        self.steps.div_ceil(self.max_points).max(1)
    }

    pub(super) fn line(&mut self, line: &[u8], source: &str) -> Result<(), Status> {
        let fields: Map<String, Value> =
            serde_json::from_slice(line).map_err(|error| damaged(source, &error.to_string()))?;
        let number =
            |name: &str| fields.get(name).and_then(Value::as_u64).and_then(|at| u32::try_from(at).ok());
        // The number of steps that ranks report takes precedence over the plan; all lines of a phase agree.
        if self.last.is_empty() {
            self.steps = number("steps").unwrap_or(self.steps);
        }
        let Some(step) = number("step").filter(|step| (1..=self.steps).contains(step)) else { return Ok(()) };
        let point = ((step - 1) / self.width()) as usize;
        if self.last.len() <= point {
            self.last.resize(point + 1, 0);
        }
        self.last[point] = self.last[point].max(step);
        for (name, value) in &fields {
            let value = value.as_f64().filter(|value| value.is_finite());
            if let Some(value) = value.filter(|_| !LABELS.contains(&name.as_str())) {
                self.push(name, point, value);
            }
        }
        Ok(())
    }

    fn push(&mut self, name: &str, point: usize, value: f64) {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None if self.metrics.len() >= MAX_METRICS => return,
            None => {
                self.by_name.insert(name.to_owned(), self.metrics.len());
                self.metrics.push((name.to_owned(), Vec::new()));
                self.metrics.len() - 1
            }
        };
        let sums = &mut self.metrics[index].1;
        if sums.len() <= point {
            sums.resize(point + 1, Sums::NONE);
        }
        sums[point].push(value);
    }

    pub(super) fn finish(self, phase: &Phase, running: bool) -> v1::PhaseSteps {
        let steps_per_point = self.width();
        // Points whose steps were lost before a checkpoint have no step.
        let points: Vec<usize> = (0..self.last.len()).filter(|point| self.last[*point] > 0).collect();
        let curves = self.metrics.into_iter().map(|(metric, sums)| {
            let mut curve = v1::StepCurve { metric, ..Default::default() };
            for (at, point) in (0..).zip(&points) {
                let sums = sums.get(*point).filter(|sums| sums.count > 0);
                curve.missing.extend(sums.is_none().then_some(at));
                curve.mean.push(sums.map_or(0.0, Sums::mean));
                curve.min.push(sums.map_or(0.0, |sums| sums.min));
                curve.max.push(sums.map_or(0.0, |sums| sums.max));
            }
            curve
        });
        v1::PhaseSteps {
            phase: phase.id.to_string(),
            round: phase.round,
            kind: phase.work.kind().to_owned(),
            steps: self.steps,
            steps_done: self.last.last().copied().unwrap_or(0),
            running,
            steps_per_point,
            curves: curves.collect(),
            step: points.iter().map(|point| self.last[*point]).collect(),
        }
    }
}

/// Keeps only the given metrics, and the points whose last step is after `after_step`.
pub(super) fn restrict(steps: &mut v1::PhaseSteps, metrics: &[String], after_step: u32) {
    if !metrics.is_empty() {
        steps.curves.retain(|curve| metrics.contains(&curve.metric));
    }
    let seen = steps.step.partition_point(|last| *last <= after_step);
    if seen == 0 {
        return;
    }
    steps.step.drain(..seen);
    for curve in &mut steps.curves {
        for values in [&mut curve.mean, &mut curve.min, &mut curve.max] {
            values.drain(..seen);
        }
        curve.missing = curve
            .missing
            .iter()
            .filter_map(|at| at.checked_sub(u32::try_from(seen).unwrap_or(u32::MAX)))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Work;

    fn line(step: u32, steps: u32, metrics: &[(&str, f64)]) -> String {
        let mut fields = Map::new();
        fields.insert("phase".into(), "p".into());
        fields.insert("step".into(), step.into());
        fields.insert("steps".into(), steps.into());
        fields.extend(metrics.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
        Value::Object(fields).to_string()
    }

    fn reduced(lines: &[String], steps: u32, max_points: u32) -> v1::PhaseSteps {
        let phase = Phase::gang(1, Work::TrainPolicy, steps);
        let mut reducer = Reducer::new(&phase, max_points);
        lines.iter().for_each(|line| reducer.line(line.as_bytes(), "m").unwrap());
        reducer.finish(&phase, false)
    }

    #[test]
    fn points_keep_the_extremes_of_their_steps() {
        // A single spike in a thousand steps.
        let loss = |step: u32| if step == 637 { 99.0 } else { f64::from(step * 37 % 101) / 8.0 };
        let lines: Vec<String> = (1..=1000).map(|step| line(step, 1000, &[("loss", loss(step))])).collect();
        let steps = reduced(&lines, 1000, 7);
        let curve = &steps.curves[0];
        assert_eq!((steps.steps_per_point, steps.step.len(), curve.missing.len()), (143, 7, 0));
        assert_eq!((steps.steps, steps.steps_done), (1000, 1000));
        assert_eq!(steps.step, [143, 286, 429, 572, 715, 858, 1000]);
        for (point, last) in (0..).zip(&steps.step) {
            let first = point * 143 + 1;
            let values: Vec<f64> = (first..=*last).map(loss).collect();
            let (at, count) = (point as usize, values.len() as f64);
            assert_eq!(curve.min[at], values.iter().copied().fold(f64::INFINITY, f64::min));
            assert_eq!(curve.max[at], values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            assert!((curve.mean[at] - values.iter().sum::<f64>() / count).abs() < 1e-12);
        }
        assert_eq!(curve.max.iter().copied().fold(0.0, f64::max), 99.0, "the spike is preserved");
        let whole = reduced(&lines, 1000, 1000);
        assert_eq!((whole.steps_per_point, whole.step.len()), (1, 1000));
        assert_eq!(whole.curves[0].mean, whole.curves[0].max);
    }

    #[test]
    fn points_of_a_phase_stay_where_they_are_while_it_runs() {
        let lines: Vec<String> =
            (1..=100).map(|step| line(step, 100, &[("loss", f64::from(step))])).collect();
        let whole = reduced(&lines, 100, 10);
        for so_far in [1, 9, 10, 11, 55, 99] {
            let part = reduced(&lines[..so_far], 100, 10);
            let complete = so_far / 10;
            assert_eq!(part.step[..complete], whole.step[..complete]);
            assert_eq!(part.curves[0].mean[..complete], whole.curves[0].mean[..complete]);
            assert_eq!(part.steps_done as usize, so_far);
        }
    }

    #[test]
    fn steps_without_a_value_are_told_and_labels_are_no_metrics() {
        let mut lines =
            vec![line(1, 4, &[("loss", 1.0)]), line(2, 4, &[("kl", 2.0)]), line(4, 4, &[("loss", 3.0)])];
        lines.push(r#"{"step":3,"steps":4,"loss":null,"note":"x","attempt":2,"round":1}"#.to_owned());
        let steps = reduced(&lines, 4, 500);
        let names: Vec<_> = steps.curves.iter().map(|curve| curve.metric.as_str()).collect();
        assert_eq!((names, steps.step), (vec!["loss", "kl"], vec![1, 2, 3, 4]));
        assert_eq!(steps.curves[0].missing, [1, 2]);
        assert_eq!((&steps.curves[1].missing, steps.curves[1].mean[1]), (&vec![0, 2, 3], 2.0));
    }

    #[test]
    fn hostile_lines_take_no_memory() {
        let far = line(u32::MAX, 4, &[("loss", 1.0)]);
        let none = line(0, 4, &[("loss", 1.0)]);
        let steps = reduced(&[line(1, 4, &[("loss", 1.0)]), far, none], 4, 500);
        assert_eq!(steps.step, [1]);
        let many: Vec<String> = (0..1000).map(|at| line(1, 4, &[(&format!("m{at}"), 1.0)])).collect();
        assert_eq!(reduced(&many, 4, 500).curves.len(), MAX_METRICS);
        let wide = reduced(&[line(4_000_000_000, 4_000_000_000, &[("loss", 1.0)])], 1, 500);
        assert_eq!((wide.step.as_slice(), wide.curves[0].mean.len()), (&[4_000_000_000][..], 1));
        let phase = Phase::gang(1, Work::TrainPolicy, 4);
        let error = Reducer::new(&phase, 9).line(b"{", "jobs/j/m").unwrap_err();
        assert!(error.message().contains("jobs/j/m"), "{error}");
    }

    #[test]
    fn later_points_alone_can_be_asked_for() {
        let lines: Vec<String> = (1..=10)
            .map(|step| match step {
                9 => line(step, 10, &[("kl", 1.0)]),
                _ => line(step, 10, &[("loss", f64::from(step)), ("kl", 0.5)]),
            })
            .collect();
        let mut steps = reduced(&lines, 10, 500);
        restrict(&mut steps, &["loss".to_owned()], 7);
        assert_eq!((steps.step.as_slice(), steps.curves.len()), (&[8, 9, 10][..], 1));
        let curve = &steps.curves[0];
        assert_eq!((curve.mean.as_slice(), curve.missing.as_slice()), (&[8.0, 0.0, 10.0][..], &[1][..]));
    }
}
