//! Experiment trackers of a job: which of the coordinator's trackers it uses, and what they show.

use foil_proto::v1;

use super::SpecError;
use super::check::{count, unknown_choice};
use super::choice::choices;

choices! {
    /// An entry of `report_to`.
    ReportTo:
    TensorBoard = "tensorboard",
    Mlflow = "mlflow",
    Kubeflow = "kubeflow",
    /// All trackers of the coordinator.
    All = "all",
    #[default]
    None = "none",
}

choices! {
    /// A tracker.
    Tracker:
    /// Event files next to the job's artifacts.
    #[default]
    TensorBoard = "tensorboard",
    /// A run on an MLflow server.
    Mlflow = "mlflow",
    /// The progress of a Kubeflow TrainJob.
    Kubeflow = "kubeflow",
}

/// The `trackers` of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trackers {
    /// Never empty and without duplicates; `all` and `none` are the only entry.
    report_to: Vec<ReportTo>,
    /// `None` for the coordinator's default.
    pub experiment: Option<String>,
    /// `None` for the job's name.
    pub run_name: Option<String>,
    /// At least 1.
    pub logging_steps: u32,
    /// Number of completions of each round that are shown as text.
    pub num_completions: u32,
}

impl Trackers {
    const LOGGING_STEPS: u32 = 1;
    const COMPLETIONS: u32 = 4;

    pub(super) fn parse(wire: v1::TrackerSpec) -> Result<Self, SpecError> {
        let v1::TrackerSpec { report_to, experiment, run_name, logging_steps, num_completions } = wire;
        Ok(Self {
            report_to: parse_report_to(&report_to)?,
            experiment: optional("experiment", experiment, EXPERIMENT, is_experiment)?,
            run_name: optional("run_name", run_name, RUN_NAME, |name| !name.chars().any(char::is_control))?,
            logging_steps: count("trackers", "logging_steps", logging_steps, Self::LOGGING_STEPS, 1)?,
            num_completions: count("trackers", "num_completions", num_completions, Self::COMPLETIONS, 0)?,
        })
    }

    /// True if the job names this tracker, by its name or by `all`.
    pub fn include(&self, tracker: Tracker) -> bool {
        let named = match tracker {
            Tracker::TensorBoard => ReportTo::TensorBoard,
            Tracker::Mlflow => ReportTo::Mlflow,
            Tracker::Kubeflow => ReportTo::Kubeflow,
        };
        self.report_to.contains(&named) || self.report_to.contains(&ReportTo::All)
    }

    /// True if the job names this tracker by its name, so that a coordinator that lacks it must refuse the
    /// job.
    pub fn require(&self, tracker: Tracker) -> bool {
        self.include(tracker) && !self.report_to.contains(&ReportTo::All)
    }

    /// True if the job is not reported anywhere.
    pub fn is_none(&self) -> bool {
        self.report_to == [ReportTo::None]
    }

    /// Adds a tracker, unless it is already present.
    pub fn add(&mut self, tracker: ReportTo) {
        if self.is_none() {
            self.report_to.clear();
        }
        if !self.report_to.contains(&tracker) && !self.report_to.contains(&ReportTo::All) {
            self.report_to.push(tracker);
        }
    }
}

fn parse_report_to(names: &[String]) -> Result<Vec<ReportTo>, SpecError> {
    let mut report_to = Vec::new();
    for name in names {
        let entry = ReportTo::ALL.iter().find(|known| known.name() == name);
        let entry = *entry.ok_or_else(|| unknown(name))?;
        if !report_to.contains(&entry) {
            report_to.push(entry);
        }
    }
    let alone = [ReportTo::All, ReportTo::None].into_iter().find(|alone| report_to.contains(alone));
    match alone {
        Some(alone) if report_to.len() > 1 => {
            let expected = format!("{alone} alone, or the trackers' names without it");
            Err(SpecError::field("trackers.report_to", format!("{alone} beside others"), &expected))
        }
        _ if report_to.is_empty() => Ok(vec![ReportTo::None]),
        _ => Ok(report_to),
    }
}

fn unknown(name: &str) -> SpecError {
    let error = unknown_choice("trackers", "report_to", name, ReportTo::NAMES);
    match name {
        "wandb" => error.advice(
            "Weights & Biases has no documented format or API that Foil could write to; report to tensorboard, and \
             bring the event files into a run with proto/examples/wandb_import.py (see proto/README.md)",
        ),
        _ => error,
    }
}

const EXPERIMENT: &str = "letters, digits, spaces, '-', '_' and '.', with a letter or digit at both ends";
const RUN_NAME: &str = "text without control characters";

fn is_experiment(name: &str) -> bool {
    let is_end = |character: Option<char>| character.is_some_and(|end| end.is_ascii_alphanumeric());
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || " -_.".contains(character);
    is_end(name.chars().next()) && is_end(name.chars().next_back()) && name.chars().all(is_allowed)
}

/// A text that may be left out.
fn optional(
    field: &str,
    text: String,
    expected: &str,
    is_valid: impl Fn(&str) -> bool,
) -> Result<Option<String>, SpecError> {
    match text.as_str() {
        "" => Ok(None),
        given if is_valid(given) => Ok(Some(text)),
        given => Err(SpecError::field(&format!("trackers.{field}"), format!("{given:?}"), expected)),
    }
}

impl From<&Trackers> for v1::TrackerSpec {
    fn from(trackers: &Trackers) -> Self {
        Self {
            report_to: trackers.report_to.iter().map(ToString::to_string).collect(),
            experiment: trackers.experiment.clone().unwrap_or_default(),
            run_name: trackers.run_name.clone().unwrap_or_default(),
            logging_steps: Some(trackers.logging_steps),
            num_completions: Some(trackers.num_completions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(report_to: &[&str]) -> Result<Trackers, SpecError> {
        let report_to = report_to.iter().map(|name| (*name).to_owned()).collect();
        Trackers::parse(v1::TrackerSpec { report_to, ..Default::default() })
    }

    fn included(report_to: &[&str]) -> Vec<Tracker> {
        let trackers = parse(report_to).unwrap();
        Tracker::ALL.iter().copied().filter(|tracker| trackers.include(*tracker)).collect()
    }

    #[test]
    fn trackers_are_named_as_in_transformers() {
        assert_eq!(included(&[]), []);
        assert_eq!(included(&["none"]), []);
        assert_eq!(included(&["mlflow", "tensorboard", "mlflow"]), [Tracker::TensorBoard, Tracker::Mlflow]);
        assert_eq!(included(&["all"]), Tracker::ALL);
        assert!(parse(&["mlflow"]).unwrap().require(Tracker::Mlflow));
        assert!(
            !parse(&["all"]).unwrap().require(Tracker::Mlflow),
            "a coordinator without it accepts the job"
        );
        for (names, expected) in [
            (&["mlflow", "none"][..], "trackers.report_to: found none beside others"),
            (&["mlflo"], "did you mean mlflow?"),
            (&["wandb"], "wandb_import.py"),
            (&["clearml"], "expected tensorboard, mlflow, kubeflow, all or none"),
        ] {
            let told = parse(names).unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn a_resolved_file_is_read_as_itself() {
        for names in [&[][..], &["all"], &["tensorboard", "kubeflow"]] {
            let trackers = parse(names).unwrap();
            assert_eq!(Trackers::parse((&trackers).into()).unwrap(), trackers);
        }
    }

    #[test]
    fn a_tracker_is_added_once() {
        let added = |names: &[&str]| {
            let mut trackers = parse(names).unwrap();
            trackers.add(ReportTo::Kubeflow);
            v1::TrackerSpec::from(&trackers).report_to
        };
        assert_eq!(added(&[]), ["kubeflow"]);
        assert_eq!(added(&["mlflow", "kubeflow"]), ["mlflow", "kubeflow"]);
        assert_eq!(added(&["all"]), ["all"]);
    }

    #[test]
    fn names_cannot_lead_elsewhere() {
        let named = |experiment: &str, run_name: &str| {
            let (experiment, run_name) = (experiment.to_owned(), run_name.to_owned());
            Trackers::parse(v1::TrackerSpec { experiment, run_name, ..Default::default() })
        };
        named("HH apo_v1.2-b", "böse überraschung #3").unwrap();
        for experiment in ["team-b/hh", "../x", "-x", "x ", "a\nb", "é"] {
            let told = named(experiment, "").unwrap_err().to_string();
            assert!(told.starts_with("trackers.experiment: found"), "{told}");
        }
        assert!(named("", "a\u{7}b").is_err());
        let zero = v1::TrackerSpec { logging_steps: Some(0), ..Default::default() };
        assert!(
            Trackers::parse(zero).unwrap_err().to_string().starts_with("trackers.logging_steps: found 0")
        );
    }
}
