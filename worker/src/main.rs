//! `foil-worker`: the agent and the rank processes that it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use foil_common::exit::Exit;
use foil_common::failpoint;
use foil_common::rpc::{Credentials, TlsFiles};
use foil_common::tls::ServerTlsFiles;
use foil_common::{exposition, listen, otlp, private, shutdown, telemetry};
use foil_worker::agent::{self, AgentEnd, AgentOptions, DeviceKind, MetricsListen, RankProgram};
use foil_worker::collective::PortRange;
use foil_worker::rank::{self, RankOptions, Secret};
use foil_worker::task_io::stop::StopSignal;
use foil_worker::{conform, describe};

/// Time to send the last metrics.
const OTLP_TIMEOUT: Duration = Duration::from_secs(2);

/// Offers this machine's devices to a Foil coordinator and runs rank processes on them.
#[derive(Debug, Parser)]
#[command(name = "foil-worker", version, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    agent: AgentArgs,
    /// Log format: text, or one JSON object per line. Logs go to standard error; RUST_LOG filters them.
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run as one rank process; started by an agent.
    #[command(hide = true)]
    Rank(Box<RankArgs>),
    /// Computes a probe for `foil conform`: reads it as JSON from standard input and prints the results.
    #[command(hide = true)]
    Conform,
    /// Prints the version, libraries and GPUs as JSON, for `foil doctor`.
    #[command(hide = true)]
    Describe,
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// The coordinator's URL, http:// or https:// (TLS). If several coordinators share a store, give all of their
    /// URLs, separated by commas or in several options; the agent finds the leader.
    #[arg(long, value_name = "URL", env = "FOIL_COORDINATOR", required = true, value_delimiter = ',')]
    coordinator: Vec<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Maximum number of ranks on this machine: CPU slots (default 1) or GPUs (default all).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    ranks: Option<u16>,
    /// The kind of device that ranks compute on.
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceKind,
    /// This agent's name: letters, digits, '-', '_', '.', ':' and '@'. Must be unique among running agents.
    /// Default: random.
    #[arg(long, value_name = "NAME", value_parser = agent_name)]
    agent_id: Option<String>,
    /// The address at which ranks on other machines reach ranks on this one. Default: the source address of
    /// the connection to the coordinator.
    #[arg(long, value_name = "ADDRESS")]
    advertise_address: Option<String>,
    /// Ports at which ranks listen for the other ranks of their job, FIRST-LAST: one for each rank of this
    /// machine, and one more for the first rank of a job. Gloo and NCCL then connect on ports that the
    /// system chooses. Default: any free port.
    #[arg(
        long,
        value_name = "PORTS",
        env = "FOIL_RENDEZVOUS_PORTS",
        default_value = "0",
        hide_default_value = true
    )]
    rendezvous_ports: PortRange,
    /// Directory for the files of running ranks. Default: the system's temporary directory.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Address for serving /metrics, /healthz and /readyz, for example 127.0.0.1:9100. Default: not served.
    #[arg(long, value_name = "ADDRESS:PORT", env = "FOIL_METRICS_LISTEN", value_parser = listen::address)]
    metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    metrics_tls: MetricsTlsArgs,
    /// Allow a --metrics-listen address other than loopback without TLS (--metrics-tls-cert). Use only on
    /// trusted networks.
    #[arg(long, requires = "metrics_listen")]
    insecure_listen: bool,
    /// Time after SIGTERM for ranks in training to finish their step and save a checkpoint.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace_seconds: u32,
    /// Exit once the process with this id is no longer the parent.
    #[arg(long, hide = true, value_name = "PID")]
    parent_pid: Option<u32>,
}

/// The TLS settings of the metrics server. The options --tls-cert and --tls-key are for this agent as a
/// client.
#[derive(Debug, Args)]
struct MetricsTlsArgs {
    /// Serve --metrics-listen over TLS with this certificate (PEM, followed by intermediate CA
    /// certificates). The file is read again when it changes.
    #[arg(long, value_name = "FILE", env = "FOIL_SERVER_TLS_CERT", requires = "metrics_tls_key")]
    metrics_tls_cert: Option<PathBuf>,
    /// Private key of --metrics-tls-cert (PEM).
    #[arg(long, value_name = "FILE", env = "FOIL_SERVER_TLS_KEY", requires = "metrics_tls_cert")]
    metrics_tls_key: Option<PathBuf>,
}

impl MetricsTlsArgs {
    fn files(self) -> Option<ServerTlsFiles> {
        let (certificate, key) = self.metrics_tls_cert.zip(self.metrics_tls_key)?;
        Some(ServerTlsFiles { certificate, key, client_ca: None, client_crl: None })
    }
}

#[derive(Debug, Args)]
struct CredentialArgs {
    /// CA certificates (PEM) for https:// coordinators. Default: the CAs that this system trusts.
    #[arg(long, value_name = "FILE", env = "FOIL_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Certificate of this agent and its ranks (PEM), for a coordinator that requires one (mTLS).
    #[arg(long, value_name = "FILE", env = "FOIL_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", env = "FOIL_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File with the token of this agent and its ranks, which has the role agent. It is read again when it
    /// changes, and sent only over TLS or to this machine.
    #[arg(long, value_name = "FILE", env = "FOIL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl CredentialArgs {
    fn files(self) -> Credentials {
        let tls = TlsFiles { ca: self.tls_ca, identity: self.tls_cert.zip(self.tls_key) };
        Credentials { tls, token_file: self.token_file }
    }
}

#[derive(Debug, Args)]
struct RankArgs {
    #[arg(long)]
    coordinator: String,
    #[command(flatten)]
    credentials: CredentialArgs,
    #[arg(long)]
    session: String,
    #[arg(long)]
    job: String,
    #[arg(long)]
    attempt: u32,
    #[arg(long)]
    rank: u32,
    #[arg(long)]
    world: u32,
    #[arg(long, value_enum)]
    device: DeviceKind,
    #[arg(long)]
    threads: u32,
    #[arg(long)]
    advertise_address: String,
    #[arg(long)]
    rendezvous_ports: PortRange,
    #[arg(long)]
    work_dir: PathBuf,
    #[arg(long)]
    parent_pid: Option<u32>,
}

/// Checks an agent's name, which also becomes part of its work directory's name.
fn agent_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
    if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 128 letters, digits, '-', '_', '.', ':' or '@'".to_owned())
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Human,
    Json,
}

impl From<LogFormat> for telemetry::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.log_format;
    // Other users must not read models and completions on this machine's disk.
    private::restrict_umask();
    let ended = start_telemetry(format).and_then(|()| match cli.command {
        Some(Command::Rank(args)) => run_rank(*args),
        Some(Command::Conform) => run_conform().map(|()| Exit::Done),
        Some(Command::Describe) => print_description().map(|()| Exit::Done),
        None => run_agent(cli.agent, format),
    });
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            telemetry::fatal(format.into(), "foil-worker", &format!("{error:#}"));
            Exit::Failed.into()
        }
    }
}

fn start_telemetry(format: LogFormat) -> anyhow::Result<()> {
    telemetry::init(format.into(), "info")?;
    failpoint::init()?;
    Ok(())
}

fn run_rank(args: RankArgs) -> anyhow::Result<Exit> {
    let span = tracing::info_span!("rank", job = args.job, attempt = args.attempt, rank = args.rank);
    let _entered = span.enter();
    let secret =
        Secret::read(std::io::stdin()).context("cannot read the session's secret from standard input")?;
    let otlp = otlp::Config::from_env("foil-rank")?.map(|config| {
        let (attempt, rank) = (args.attempt.to_string(), args.rank.to_string());
        config.with("foil.job", &args.job).with("foil.attempt", &attempt).with("foil.rank", &rank)
    });
    let options = RankOptions {
        coordinator: args.coordinator,
        credentials: args.credentials.files(),
        session_id: args.session,
        secret,
        job_id: args.job,
        attempt: args.attempt,
        rank: args.rank,
        world: args.world,
        device: args.device,
        threads: args.threads,
        advertise_address: args.advertise_address,
        rendezvous_ports: args.rendezvous_ports,
        work_dir: args.work_dir,
        parent_pid: args.parent_pid,
        stop: StopSignal::default(),
    };
    Ok(rank::run(&options, otlp))
}

fn run_conform() -> anyhow::Result<()> {
    let probe = serde_json::from_reader(std::io::stdin().lock())
        .context("cannot read a probe from standard input")?;
    let measured = conform::measure(&probe);
    serde_json::to_writer(std::io::stdout().lock(), &measured)?;
    Ok(())
}

fn print_description() -> anyhow::Result<()> {
    serde_json::to_writer(std::io::stdout().lock(), &describe::describe())?;
    Ok(())
}

fn run_agent(args: AgentArgs, format: LogFormat) -> anyhow::Result<Exit> {
    anyhow::ensure!(!args.coordinator.is_empty(), "--coordinator is missing");
    let metrics_tls = args.metrics_tls.files();
    if let Some(address) = args.metrics_listen {
        listen::check_metrics(address, metrics_tls.is_some() || args.insecure_listen)
            .map_err(anyhow::Error::msg)?;
    }
    let coordinator = args.coordinator.join(",");
    let devices = agent::list_devices(args.device, args.ranks.map(usize::from))?;
    let agent_id =
        args.agent_id.unwrap_or_else(|| format!("agent-{}", ulid::Ulid::new().to_string().to_lowercase()));
    let work_dir = args.work_dir.unwrap_or_else(std::env::temp_dir).join(format!("foil-{agent_id}"));
    let program = std::env::current_exe().context("cannot find this program's path")?;
    let options = AgentOptions {
        agent_id,
        devices,
        ranks: RankProgram {
            program,
            // The store keeps the ranks' logs as JSON; the agent renders them for its own log.
            arguments: vec!["--log-format".to_owned(), "json".to_owned()],
            coordinator,
            credentials: args.credentials.files(),
            advertise_address: args.advertise_address,
            rendezvous_ports: args.rendezvous_ports,
            work_dir,
            log_format: format.into(),
        },
        parent_pid: args.parent_pid,
        metrics_listen: args.metrics_listen.map(|address| MetricsListen { address, tls: metrics_tls }),
        grace: Duration::from_secs(args.grace_seconds.into()),
    };
    let otlp =
        otlp::Config::from_env("foil-agent")?.map(|config| config.with("foil.agent", &options.agent_id));
    let metrics = telemetry::install_metrics()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = shutdown::on_signal()?;
        let signalled = shutdown.clone();
        let stop = async move { signalled.requested().await };
        let page = move || exposition::render(&metrics);
        let otlp = otlp.map(|config| otlp::Exporter::start(config, Some(page.clone()))).transpose()?;
        let end = agent::run(options, page, stop).await?;
        otlp.unwrap_or_default().shut_down(OTLP_TIMEOUT).await;
        anyhow::Ok((end, shutdown.cause()))
    });
    Ok(match ended? {
        (AgentEnd::Stopped, cause) => cause.map_or(Exit::Terminated, Exit::from),
        (AgentEnd::Orphaned, _) => Exit::Orphaned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_require_a_coordinator_and_ranks_accept_a_log_format() {
        assert!(Cli::try_parse_from(["foil-worker"]).is_err());
        for name in ["", "a/../b", "a b", "\u{1b}"] {
            let args = ["foil-worker", "--coordinator", "http://h:1", "--agent-id", name];
            assert!(Cli::try_parse_from(args).is_err(), "{name:?}");
        }
        let agent =
            Cli::try_parse_from(["foil-worker", "--coordinator", "http://127.0.0.1:1", "--ranks", "2"])
                .unwrap();
        assert_eq!((agent.agent.ranks, agent.agent.device), (Some(2), DeviceKind::Cpu));
        let line = "foil-worker --log-format json rank --coordinator http://h:1 --session s --job j --attempt 2 --rank 1 \
                    --world 2 --device cuda --threads 1 --advertise-address ::1 --rendezvous-ports 0 --parent-pid 7 --work-dir /tmp/x";
        let rank = Cli::try_parse_from(line.split_whitespace()).unwrap();
        assert!(matches!(rank.log_format, LogFormat::Json));
        let Some(Command::Rank(rank)) = rank.command else { panic!("no rank") };
        assert_eq!((rank.attempt, rank.device, rank.parent_pid), (2, DeviceKind::Cuda, Some(7)));
    }
}
