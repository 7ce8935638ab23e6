//! The `foil` program: the client's commands, and `foil serve`, the coordinator.

#![allow(clippy::disallowed_methods, reason = "a client owns its clock")]

mod args;
mod card;
mod client;
mod client_args;
mod completion;
mod config;
mod conform;
mod convert;
mod credential_args;
mod delete;
mod doctor;
mod download;
mod duration;
mod error_location;
mod export;
mod inputs;
mod inspect;
mod jobs;
mod local_file;
mod logs;
mod model_export;
mod output;
mod paths;
mod plan;
mod probe;
mod problem;
mod progress;
mod pull;
mod queue_args;
mod reconnect;
mod remote;
mod report;
mod results;
mod run;
mod samples;
mod serve;
mod serve_args;
mod size;
mod stdout;
mod store;
mod submit;
mod tenants;
mod terminal;
mod throughput;
mod token;
mod traceparent;
mod trackers;
mod ui;
mod watch;
mod whoami;
mod workers;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches};
use foil_common::telemetry::{self, LogFormat};
use foil_coordinator::resolve::{self, child::Limits};

use self::args::{Cli, Command};
use self::config::Given;

/// Timeout of blocking work at exit.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            telemetry::fatal(LogFormat::Human, "foil", &format!("cannot start its threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(command());
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    code
}

/// Runs the command line and returns the exit status, as listed in `foil --help`.
async fn command() -> ExitCode {
    let command = Cli::command();
    let matches = command.clone().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let format = cli.log_format.into();
    match dispatch(cli, &Given::new(&matches, &command)).await {
        Ok(code) => code,
        Err(error) => {
            telemetry::fatal(format, "foil", &stdout::chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: Cli, given: &Given) -> Result<ExitCode> {
    // Clients log only warnings.
    let level = if matches!(cli.command, Command::Serve(_)) { "info" } else { "warn" };
    telemetry::init(cli.log_format.into(), level)?;
    match cli.command {
        Command::Run(args) => {
            if let Some(cause) = run::run(&args, cli.log_format).await? {
                return Ok(ExitCode::from(cause.exit_code()));
            }
        }
        Command::Serve(args) => serve::serve(*args).await?,
        Command::Submit(args) => submit::submit(&args).await?,
        Command::Inspect(args) => inspect::inspect(&args).await?,
        Command::Convert(args) => convert::convert(&args).await?,
        Command::Plan(args) => plan::plan(&args).await?,
        Command::List(args) => jobs::list(&args).await?,
        Command::Get(args) => jobs::get(&args).await?,
        Command::Watch(args) => jobs::watch(&args).await?,
        Command::Cancel(args) => jobs::cancel(&args).await?,
        Command::Logs(args) => logs::logs(&args).await?,
        Command::Delete(args) => delete::delete(&args).await?,
        Command::Pin(args) => delete::pin(&args).await?,
        Command::Unpin(args) => delete::unpin(&args).await?,
        Command::Workers(args) => workers::workers(&args).await?,
        Command::Store(command) => store::store(&command).await?,
        Command::Artifacts(args) => jobs::artifacts(&args).await?,
        Command::Ui(args) => ui::ui(&args).await?,
        Command::Report(args) => export::report(&args).await?,
        Command::Tenants { command } => tenants::tenants(&command).await?,
        Command::Pull(args) => pull::pull(&args).await?,
        Command::Export(args) => return model_export::export(&args).await,
        Command::Conform(args) => return conform::conform(&args).await,
        Command::Doctor(args) => return doctor::doctor(&args).await,
        Command::Probe(args) => probe::probe(&args).await?,
        Command::Config(args) => config::config(&args, given)?,
        Command::WhoAmI(args) => whoami::whoami(&args).await?,
        Command::Token(args) => token::token(&args)?,
        Command::Schema => stdout::line(&format!("{:#}", foil_common::spec::json_schema()))?,
        Command::Completion(args) => completion::completion(&args)?,
        Command::ResolveInputs(args) => {
            let limits = Limits { memory: args.memory, cpu: Duration::from_secs(args.cpu_seconds) };
            resolve::child::main(&args.store, limits).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
