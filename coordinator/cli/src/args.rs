//! Command line arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use foil_common::telemetry;

use super::client_args::{ClientArgs, Device, job_reference};
use super::config::ConfigArgs;
use super::convert::ConvertArgs;
use super::delete::{DeleteArgs, PinArgs};
use super::doctor::DoctorArgs;
use super::export::ReportArgs;
use super::logs::LogsArgs;
use super::model_export::ExportArgs;
use super::output::OutputArgs;
use super::probe::ProbeArgs;
use super::queue_args::{ListArgs, SchedulingArgs};
use super::serve_args::{ResolveInputsArgs, ServeArgs};
use super::store::StoreCommand;
use super::tenants::TenantsCommand;
use super::token::TokenArgs;
use super::ui::UiArgs;
use super::whoami::WhoAmIArgs;
use super::workers::WorkersArgs;

const AFTER_HELP: &str = "\
Examples:
  foil run deploy/jobs/letters.yaml            a small job on this machine
  foil run JOB.yaml --ranks 2 --set rounds=3   your own job, with settings that override the file's
  foil inspect JOB.yaml                        the data as the models will read it
  foil convert hh.jsonl.gz hh.parquet          a data file in another format; --format for another shape
  foil plan JOB.yaml --device-memory 80GiB     its phases, and whether they fit a rank's memory
  foil serve --store DIR                       a coordinator for many jobs; foil-worker on each host
  foil submit JOB.yaml && foil watch NAME      submits to it; NAME is the name in the job file
  foil ui NAME                                 its page in a browser
  foil report runs/a runs/b --out report       a page, or tables, of several runs side by side
  foil export NAME/policy@best DIR --dtype bf16  its best policy, to publish or to serve

Exit status: 0 on success; 1 on failure, also of the job that `run`, `watch` or `submit --wait`
followed, or of a check of `doctor`; 2 for wrong usage; 3 if `conform` could not make all checks; 129, 130 or 143 if `run` or `export` was
stopped by SIGHUP, SIGINT or SIGTERM: the same command resumes.";

/// Adversarial Preference Optimization as a service: trains a reward model and a language model against each
/// other.
#[derive(Debug, Parser)]
#[command(name = "foil", version, arg_required_else_help = true, max_term_width = 110, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Format of log lines: text, or one JSON object per line. Logs go to standard error; RUST_LOG filters
    /// them.
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Human,
    Json,
}

impl LogFormat {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

impl From<LogFormat> for telemetry::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs one job on this machine: starts a coordinator and workers, waits, and downloads the results.
    Run(RunArgs),
    /// Runs the coordinator, which accepts jobs and schedules them on `foil-worker` processes.
    Serve(Box<ServeArgs>),
    /// Uploads a job's inputs and submits it; prints the job's id.
    Submit(SubmitArgs),
    /// Shows a job's data as the models will read it: tokens, masks, truncation and lengths. Nothing is
    /// submitted.
    Inspect(InspectArgs),
    /// Converts data files between formats (JSON lines, JSON, CSV, TSV, Parquet, Arrow) and shapes (TRL,
    /// ShareGPT, HH, …), row by row.
    Convert(ConvertArgs),
    /// Shows the phases of a job and the memory of a rank in each kind of phase. Reads only config.json of
    /// the models. Nothing is submitted.
    Plan(PlanArgs),
    /// Lists jobs, newest first.
    List(ListArgs),
    /// Prints a job: its state, its rounds and its specification with all defaults filled in.
    Get(JobArgs),
    /// Follows a job to its end and shows its progress. Can be interrupted and restarted at any time. With -o
    /// json, prints one line per event, with yaml one document, and with name the event's kind, such as
    /// phase_committed. After a lost connection, prints the current state of the job once more.
    Watch(WatchArgs),
    /// Prints the logs of a job's ranks, including ranks that have ended.
    Logs(LogsArgs),
    /// Cancels a job. At least 4 characters of its id are required.
    Cancel(JobArgs),
    /// Deletes a job that has ended, with its artifacts, checkpoints and logs.
    Delete(DeleteArgs),
    /// Protects a job, or one of its artifacts, from deletion.
    Pin(PinArgs),
    /// Lifts a pin.
    Unpin(PinArgs),
    /// Lists the agents, their devices, and what runs on each device.
    Workers(WorkersArgs),
    /// Shows what the coordinator's store holds, and deletes garbage in it.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Lists a job's artifacts.
    Artifacts(JobArgs),
    /// Opens the web page of the coordinator, of a job, or of a finished run's directory; prints its URL.
    Ui(UiArgs),
    /// Writes a report of one or several jobs or runs: a page that opens without a coordinator, or tables of
    /// their rounds, with means over seeds.
    Report(ReportArgs),
    /// Shows and sets the quotas of tenants.
    Tenants {
        #[command(subcommand)]
        command: TenantsCommand,
    },
    /// Downloads a job's results, or one artifact. Interrupted downloads resume; every file is verified by
    /// its hash.
    Pull(PullArgs),
    /// Writes a model for publishing or serving: as bf16, fp16 or fp32, in shards, or its LoRA adapter alone,
    /// with tokenizer, template and model card. Every file that is read is verified by its hash.
    Export(ExportArgs),
    /// Checks a result directory: its files, tokens and template, and whether Foil and transformers compute
    /// the same results. The exit status is 0 if all checks passed, 1 if any failed, and 3 if none failed but
    /// some could not run.
    Conform(ConformArgs),
    /// Checks this machine, the store and the coordinator, and suggests fixes.
    Doctor(Box<DoctorArgs>),
    /// Checks whether a coordinator or an agent on this machine is healthy, for container health checks.
    Probe(ProbeArgs),
    /// Manages contexts: coordinators, and how to reach them.
    Config(ConfigArgs),
    /// Shows who you are to the coordinator: name, tenant and role.
    #[command(name = "whoami")]
    WhoAmI(WhoAmIArgs),
    /// Creates tokens by which a coordinator identifies its users and agents.
    Token(TokenArgs),
    /// Prints the JSON Schema of the job file, for editors.
    Schema,
    /// Prints a completion script for a shell: `source <(foil completion bash)`.
    Completion(CompletionArgs),
    /// Reads a submitted job's inputs; started by the coordinator.
    #[command(hide = true)]
    ResolveInputs(ResolveInputsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JobFileArgs {
    /// The job file (YAML).
    #[arg(value_name = "JOB.yaml")]
    pub(crate) file: PathBuf,
    /// Overrides a field of the file; the value is YAML, and paths in it are relative to the working
    /// directory. For example: --set rounds=2 --set data.preferences=pairs.jsonl --set
    /// policy_step.learning_rate=[1e-5,5e-6]
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub(crate) settings: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Number of rank processes; overrides the file's resources.ranks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ranks: Option<u32>,
    /// Device of the ranks; overrides the file's resources.device.
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// Directory of results, logs and per-step metrics. Default: runs/<job name>
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The coordinator's store: a directory, or an s3://, gs:// or az:// URL. It is kept. Default:
    /// OUT/store, which on success is reduced to what the run's page shows
    #[arg(long, value_name = "URL-or-DIR")]
    pub(crate) store: Option<String>,
    /// Keep all of OUT/store on success, including models and checkpoints.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Remove the results of an earlier run in OUT and start over.
    #[arg(long, conflicts_with = "store")]
    pub(crate) fresh: bool,
    /// Show the job's page while it runs: prints its URL, and opens it if there is a display. Afterwards,
    /// `foil ui OUT` shows it.
    #[arg(long)]
    pub(crate) ui: bool,
    /// Print only one final JSON object on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Number of rows of each data set to show token by token.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) rows: usize,
    /// Write a page that opens offline: the same rows with tokens colored by their use in training, length
    /// histograms, repetitions, and prompts shared between sets. It contains text from the data.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write that page as inspect.html, and its contents for programs as inspect.json, to this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Also read the models' weights and look for NaN and infinity.
    #[arg(long)]
    pub(crate) scan_weights: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Check whether all phases fit a device of this size, for example 80GiB, 24GB or 512MiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::bytes)]
    pub(crate) device_memory: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    #[command(flatten)]
    pub(crate) scheduling: SchedulingArgs,
    /// Only validate on this machine: job file, models, tokenizers, templates and every row of data. Prints
    /// the plan and the file with all defaults filled in.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --dry-run: also upload the inputs and validate on the coordinator, which knows the available
    /// ranks.
    #[arg(long, requires = "dry_run")]
    pub(crate) server: bool,
    /// Then follow the job to its end, like `foil watch`; the exit status is the job's.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// Makes the submission idempotent: submitting the same job again with the same id returns the first
    /// job, and a different job with this id is an error. Default: random
    #[arg(long, value_name = "ID", conflicts_with = "dry_run")]
    pub(crate) request_id: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's id, a prefix of it, or the job's name (its newest job).
    #[arg(value_parser = job_reference)]
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The job's id, a prefix of it, or the job's name (its newest job).
    #[arg(value_parser = job_reference)]
    pub(crate) job: String,
    /// Print only one final JSON object on standard output.
    #[arg(long, conflicts_with = "output")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The job, or one of its artifacts: JOB/policy@2, JOB/reward@1, JOB/policy@best for the best round, or
    /// JOB/policy@last.
    /// `foil artifacts JOB` lists them. JOB/tensorboard are TensorBoard's event files so far.
    #[arg(value_name = "JOB[/ARTIFACT]", value_parser = job_reference)]
    pub(crate) what: String,
    /// Output directory.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConformArgs {
    /// Directory of a policy or a reward model, as written by `foil run` or `foil pull`.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A Python with transformers and torch. Default: .venv-peers/bin/python in the working directory, as
    /// installed by scripts/fixtures/setup-peers
    #[arg(long, value_name = "PATH")]
    pub(crate) python: Option<PathBuf>,
    /// Print only one JSON object on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_must_be_named() {
        for command in
            [&["get"][..], &["watch"], &["cancel"], &["delete"], &["logs"], &["artifacts"], &["pull"]]
        {
            for nothing in ["", "  ", "/policy@1"] {
                if nothing.starts_with('/') && command != ["pull"] {
                    continue;
                }
                let dir = (command == ["pull"]).then_some("dir");
                let line = ["foil"].into_iter().chain(command.iter().copied()).chain([nothing]).chain(dir);
                let error = Cli::try_parse_from(line).unwrap_err().to_string();
                assert!(error.contains("it names no job"), "{command:?}: {error}");
            }
        }
        assert!(Cli::try_parse_from(["foil", "pull", "letters/policy@1", "dir"]).is_ok());
    }

    #[test]
    fn a_listen_address_may_be_a_host_name() {
        let serve = |listen| Cli::try_parse_from(["foil", "serve", "--store", "s", "--listen", listen]);
        assert!(serve("localhost:7070").is_ok());
        assert!(serve("localhost").unwrap_err().to_string().contains("write ADDRESS:PORT"));
    }
}
