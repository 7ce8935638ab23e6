//! Options for a job's place in the queue, and for selecting jobs in a list.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, ValueEnum};
use foil_common::spec::parse_duration;
use foil_proto::v1;

use super::client_args::ClientArgs;
use super::output::OutputArgs;

#[derive(Debug, Args)]
pub(crate) struct SchedulingArgs {
    /// Priority of the job: low, normal, high or a number from -1000 to 1000; overrides the file's.
    #[arg(long, value_name = "PRIORITY", allow_hyphen_values = true)]
    priority: Option<String>,
    /// Label of the job; added to the file's. May be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

impl SchedulingArgs {
    /// The options as settings of the job file.
    pub(crate) fn settings(&self) -> impl Iterator<Item = String> {
        let priority = self.priority.iter().map(|priority| format!("priority={priority}"));
        // JSON is YAML that keeps any text as it is.
        let quoted = |value: &String| serde_json::Value::from(value.as_str()).to_string();
        let labels = self.labels.iter().map(move |(key, value)| format!("labels.{key}={}", quoted(value)));
        priority.chain(labels)
    }
}

/// Times that govern the queue.
#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    /// Time for which an attempt runs before a job of higher priority may take its devices.
    #[arg(long, value_name = "TIME", env = "FOIL_PREEMPT_EXEMPT_TIME", default_value = "2m", value_parser = parse_duration)]
    pub(crate) preempt_exempt_time: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) filter: ListFilterArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListFilterArgs {
    /// Jobs of this tenant. Default: the context's, or yours. Only an admin may see those of another.
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Jobs of all tenants, for an admin.
    #[arg(long, conflicts_with = "tenant")]
    all_tenants: bool,
    /// List only jobs that you have submitted.
    #[arg(long)]
    mine: bool,
    /// List only jobs in this state. May be repeated, or list several separated by commas.
    #[arg(long = "state", value_enum, value_name = "STATE", value_delimiter = ',')]
    states: Vec<State>,
    /// List only jobs with this label. If repeated, with all of them.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Maximum number of jobs. If there are more, the token of the next page is printed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Continue after an earlier page; the other options must be the same.
    #[arg(long, value_name = "TOKEN")]
    page: Option<String>,
}

impl ListFilterArgs {
    /// The request for the first page, of any size. `context` is the tenant if none is named.
    pub(crate) fn request<E>(
        &self,
        context: impl FnOnce() -> Result<String, E>,
    ) -> Result<v1::ListJobsRequest, E> {
        let tenant = match self.tenant.as_str() {
            "" if !self.all_tenants => context()?,
            given => given.to_owned(),
        };
        Ok(v1::ListJobsRequest {
            page_token: self.page.clone().unwrap_or_default(),
            tenant,
            all_tenants: self.all_tenants,
            mine: self.mine,
            states: self.states.iter().map(|state| v1::JobState::from(*state).into()).collect(),
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            ..Default::default()
        })
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| limit as usize)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Queued,
    Running,
    #[value(alias = "canceling")]
    Cancelling,
    Succeeded,
    Failed,
    #[value(alias = "canceled")]
    Cancelled,
}

impl From<State> for v1::JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Cancelling => Self::Cancelling,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example team=research".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn options_become_settings_of_the_job_file() {
        let line = ["foil", "submit", "job.yaml", "--priority", "-7", "--label", "a.b/c=1", "--label", "d="];
        let Command::Submit(args) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        let settings: Vec<String> = args.scheduling.settings().collect();
        assert_eq!(settings, ["priority=-7", "labels.a.b/c=\"1\"", "labels.d=\"\""]);
        let wrong = Cli::try_parse_from(["foil", "submit", "job.yaml", "--label", "team"]).unwrap_err();
        assert!(wrong.to_string().contains("write KEY=VALUE"), "{wrong}");
    }

    #[test]
    fn filters_are_asked_of_the_coordinator() {
        let line = [
            "foil",
            "list",
            "--state",
            "queued,running",
            "--state",
            "canceled",
            "--label",
            "a=b",
            "--page",
            "t",
        ];
        let Command::List(args) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        let request = args.filter.request(|| Ok::<_, ()>("lab".to_owned())).unwrap();
        assert_eq!(request.tenant, "lab", "the context's");
        let states = [v1::JobState::Queued, v1::JobState::Running, v1::JobState::Cancelled];
        assert_eq!(request.states().collect::<Vec<_>>(), states);
        assert_eq!((request.labels["a"].as_str(), request.page_token.as_str()), ("b", "t"));
        assert_eq!(args.filter.limit(), usize::MAX);
    }
}
