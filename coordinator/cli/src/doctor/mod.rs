//! `foil doctor`: checks what a coordinator, an agent or a client needs, and suggests fixes.

mod agents;
mod coordinator;
mod finding;
mod host;
mod store;
mod tls;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use clap::Args;
use foil_common::listen;
use serde_json::json;

use self::finding::{Finding, Level};
use super::client_args::{ClientArgs, Device};
use super::credential_args::SERVER_VARIABLES;
use super::output::OutputArgs;
use super::{output, stdout, terminal};

/// Exit status if a check failed.
const FAILED: u8 = 1;

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 if no check failed (warnings are no failures); 1 if one failed; 2 for wrong usage.

Examples:
  foil doctor                                   this machine, and the coordinator that commands use
  foil doctor --store s3://bucket/foil          before `foil serve`: the store and the port
  foil doctor --device cuda --gpus              before `foil-worker --device cuda`: GPUs, driver, NCCL")]
pub(crate) struct DoctorArgs {
    /// Store to check by writing, reading and deleting a small object.
    #[arg(long, value_name = "URL-or-DIR", env = "FOIL_STORE", hide_env_values = true)]
    store: Option<String>,
    /// Address that `foil serve` is to listen on.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7070", value_parser = listen::address)]
    listen: SocketAddr,
    /// Kind of device that ranks on this machine will use.
    #[arg(long, value_enum, value_name = "DEVICE")]
    device: Option<Device>,
    /// Also run `foil-check-gpus`: NCCL sums on every number of GPUs, which occupies them for about a
    /// minute.
    #[arg(long)]
    gpus: bool,
    /// The agent's program. Default: foil-worker next to this program, or in PATH
    #[arg(long, value_name = "PATH")]
    worker: Option<PathBuf>,
    /// Directory for the agents' files. Default: the system's temporary directory
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let findings = examine(args).await?;
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    let value = || Ok(json!({ "ok": !failed, "checks": findings }));
    let failures = || {
        let failures = findings.iter().filter(|finding| finding.level == Level::Fail);
        failures.map(|finding| finding.check.to_owned()).collect::<Vec<_>>()
    };
    if output::structured(args.output.format, value, failures)? {
        for finding in &findings {
            show(finding)?;
        }
    }
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn show(finding: &Finding) -> Result<()> {
    let Finding { level, check, message, advice } = finding;
    let columns = terminal::stdout_columns();
    let line = format!("{:<4}  {check:<11}  {message}", level.name());
    stdout::line(&terminal::wrap(&line, columns))?;
    if let Some(advice) = advice {
        stdout::line(&terminal::wrap(&format!("                   do: {advice}"), columns))?;
    }
    Ok(())
}

async fn examine(args: &DoctorArgs) -> Result<Vec<Finding>> {
    let now = SystemTime::now();
    let connection = args.client.connection()?;
    let mut findings = match &args.store {
        Some(store) => store::check(store).await,
        None => vec![Finding::skip("store", "none is named; give --store or FOIL_STORE to check one")],
    };
    let work_dir = args.work_dir.clone().unwrap_or_else(std::env::temp_dir);
    findings.push(host::disk(&work_dir));
    findings.push(host::descriptors());
    let answers = coordinator::ask_all(&connection).await;
    findings.extend(coordinator::findings(&answers));
    findings.extend(match answers.iter().any(coordinator::Answer::leads) {
        true => agents::check(&args.client.connect()?).await,
        false => vec![Finding::skip("agents", "only a leader knows them, and none answers")],
    });
    findings.push(host::port(args.listen, answers.iter().any(coordinator::Answer::is_reached)).await);
    let own = [&connection.tls_ca, &connection.tls_cert, &connection.tls_key].map(Clone::clone);
    findings.extend(tls::check("tls", &own, now));
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let [cert, key, client_ca, ..] = SERVER_VARIABLES.map(variable);
    findings.extend(tls::check("server tls", &[client_ca, cert, key], now));
    findings.extend(worker::check(args.worker.as_deref(), args.device, args.gpus).await);
    let uses_gpus = args.device == Some(Device::Cuda) || args.gpus;
    findings.push(host::shared_memory(uses_gpus));
    Ok(findings)
}
