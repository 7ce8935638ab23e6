//! What a user types.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use foil_common::{listen, telemetry};

const EXAMPLES: &str = "\
Examples:
  foil run deploy/jobs/letters.yaml            a small game on this machine
  foil run JOB.yaml --ranks 2 --set rounds=3   a job of yours, with settings over the file's
  foil inspect JOB.yaml                        what its models will read, before anything is trained
  foil plan JOB.yaml --device-memory 80GiB     its phases, and whether a rank's memory suffices for them
  foil serve --store DIR                       a coordinator for many jobs; foil-worker on each host
  foil submit JOB.yaml && foil watch NAME      the same job there; NAME is the job file's";

/// Adversarial Preference Optimization as a service: a reward model and a language model train against each other.
#[derive(Debug, Parser)]
#[command(name = "foil", version, arg_required_else_help = true, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How log lines look: for a reader, or one JSON object each. Logs go to standard error; RUST_LOG filters them.
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
    /// Plays one job on this machine: starts a coordinator and workers, waits, and brings the results.
    Run(RunArgs),
    /// Runs the coordinator, which takes jobs and gives work to `foil-worker` processes.
    Serve(ServeArgs),
    /// Uploads a job's inputs and submits it; prints the job's id.
    Submit(SubmitArgs),
    /// Shows what the models will read of a job's data: tokens, masks, cuts and lengths. Nothing is submitted.
    Inspect(InspectArgs),
    /// Shows the phases a job will run and the memory of a rank in each kind of them. Of the models it reads config.json
    /// alone. Nothing is submitted.
    Plan(PlanArgs),
    /// Lists jobs, newest first.
    List(ListArgs),
    /// Prints one job: its state, its rounds and its specification with every default filled in.
    Get(JobArgs),
    /// Follows a job to its end, showing progress. It may be stopped and started again at any time.
    Watch(JobArgs),
    /// Asks a job to stop. Of its id at least 4 characters are wanted.
    Cancel(JobArgs),
    /// Lists a job's artifacts.
    Artifacts(JobArgs),
    /// Downloads a job's results, or one artifact. Interrupted downloads resume; every file is checked by its hash.
    Pull(PullArgs),
    /// Checks a result directory: its files, tokens and template, and what Foil and transformers compute from it. The exit
    /// status is 0 if every check passed, 1 where one failed, 3 where none failed but not all could be made.
    Conform(ConformArgs),
    /// Reads a submitted job's inputs for a coordinator, which starts this itself.
    #[command(hide = true)]
    ResolveInputs(ResolveInputsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JobFileArgs {
    /// The job file (YAML).
    #[arg(value_name = "JOB.yaml")]
    pub(crate) file: PathBuf,
    /// Sets a field over the file's; the value is YAML, and a path in it is relative to the working directory.
    /// For example: --set rounds=2 --set data.preferences=pairs.jsonl --set policy_step.learning_rate=[1e-5,5e-6]
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub(crate) settings: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Rank processes that share the work; wins over the file's resources.ranks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ranks: Option<u32>,
    /// What ranks run on; wins over the file's resources.device.
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// Where results, logs and per-step metrics go. Default: runs/<job name>
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The coordinator's store: a directory, or s3://, gs:// or az://. It is kept. Default: OUT/store, removed after success
    #[arg(long, value_name = "URL-or-DIR")]
    pub(crate) store: Option<String>,
    /// Keep OUT/store after success: every sample, score and checkpoint.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Remove what an earlier run left in OUT and start again.
    #[arg(long, conflicts_with = "store")]
    pub(crate) fresh: bool,
    /// Print one final JSON object on standard output and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Rows of each data set shown token by token.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) rows: usize,
    /// Read the models' weights too, and look for numbers that are NaN or infinite.
    #[arg(long)]
    pub(crate) scan_weights: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Says whether every phase fits a device of this size, for example 80GiB, 24GB or 512MiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::bytes)]
    pub(crate) device_memory: Option<u64>,
    /// Print one JSON object on standard output and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    Cpu,
    Cuda,
}

impl Device {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// All durable state: a directory, or s3://, gs:// or az://
    #[arg(long, value_name = "URL-or-DIR", env = "FOIL_STORE", hide_env_values = true)]
    pub(crate) store: String,
    /// Address for gRPC, /metrics and /healthz; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7070", value_parser = listen::address)]
    pub(crate) listen: SocketAddr,
    /// Where clients and workers reach this coordinator; a standby sends them there. Default: the address listened on.
    #[arg(long, value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// Lead at once, without waiting for the present leader to fall silent. Without this a coordinator stands by while
    /// another leads the same store.
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Allow an address beyond loopback. There is neither TLS nor authentication: only for a network you trust.
    #[arg(long)]
    pub(crate) insecure_listen: bool,
    /// Take in workers of another version or build, whose results may differ from each other's.
    #[arg(long)]
    pub(crate) allow_version_skew: bool,
    /// How many records of the log make a snapshot worth while: a coordinator that starts reads the last snapshot and
    /// the records after it.
    #[arg(long, value_name = "RECORDS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) snapshot_every: u64,
    /// Memory that reading one job's inputs may take; it happens in processes of their own, a few at a time.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = crate::size::bytes)]
    pub(crate) input_memory: u64,
    /// Write the address listened on to this file, once requests are answered (by a standby: with the leader's address).
    #[arg(long, value_name = "FILE")]
    pub(crate) port_file: Option<PathBuf>,
    /// End with this process, the parent.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent_pid: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveInputsArgs {
    #[arg(long, env = "FOIL_STORE", hide_env_values = true)]
    pub(crate) store: String,
    /// Bytes of address space.
    #[arg(long)]
    pub(crate) memory: u64,
    #[arg(long)]
    pub(crate) cpu_seconds: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// The coordinator to ask. Where there are several for one store, name all, with commas between them or an option
    /// each: the leader among them is found.
    #[arg(
        long,
        value_name = "URL",
        env = "FOIL_COORDINATOR",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7070"
    )]
    pub(crate) coordinator: Vec<String>,
}

impl ClientArgs {
    /// With commas between them.
    pub(crate) fn coordinators(&self) -> String {
        self.coordinator.join(",")
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print one JSON object on standard output and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// What names a job must say something: an unset variable of a shell script is the beginning of every id.
fn naming(text: &str) -> Result<String, String> {
    match text.split('/').next().unwrap_or_default().trim() {
        "" => Err("it names no job; give an id, the beginning of one, or a job's name".to_owned()),
        _ => Ok(text.trim().to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Validate only, on this machine: job file, models, tokenizers, templates and every row of data. Prints the plan and
    /// the file with every default filled in.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --dry-run: uploads the inputs and asks the coordinator too, which also knows the ranks there are.
    #[arg(long, requires = "dry_run")]
    pub(crate) server: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's id, the beginning of it, or the job's name (its newest job).
    #[arg(value_parser = naming)]
    pub(crate) job: String,
    /// Print one JSON object on standard output and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The job, or one artifact of it: JOB/policy@2, JOB/reward@1, or JOB/policy@best of the best round. `foil artifacts
    /// JOB` lists them.
    #[arg(value_name = "JOB[/ARTIFACT]", value_parser = naming)]
    pub(crate) what: String,
    /// Where to put it.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConformArgs {
    /// A policy or a reward model, as `foil run` or `foil pull` put it down.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A Python that has transformers and torch. Default: .venv-peers/bin/python of the working directory, where
    /// scripts/fixtures/setup-peers puts one.
    #[arg(long, value_name = "PATH")]
    pub(crate) python: Option<PathBuf>,
    /// Print one JSON object on standard output and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_must_be_named() {
        for command in [&["get"][..], &["watch"], &["cancel"], &["artifacts"], &["pull"]] {
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
    fn an_address_to_listen_on_may_be_a_name() {
        let serve = |listen| Cli::try_parse_from(["foil", "serve", "--store", "s", "--listen", listen]);
        assert!(serve("localhost:7070").is_ok());
        assert!(serve("localhost").unwrap_err().to_string().contains("write ADDRESS:PORT"));
    }
}
