//! Arguments of `foil serve`, and of the process that reads inputs for it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use foil_common::listen;

use super::credential_args::{AuthArgs, ServerTlsArgs};
use super::duration::{self, Interval};
use super::queue_args::QueueArgs;
use super::size::SizeOrOff;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Store of all durable state: a directory, or an s3://, gs:// or az:// URL
    #[arg(long, value_name = "URL-or-DIR", env = "FOIL_STORE", hide_env_values = true)]
    pub(crate) store: String,
    /// Listen address of gRPC, /metrics and /healthz; port 0 selects a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7070", value_parser = listen::address)]
    pub(crate) listen: SocketAddr,
    /// URL of this coordinator for clients and workers, to which standbys redirect them. Default: the listen
    /// address
    #[arg(long, value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// Take over leadership immediately, without waiting for the current leader's heartbeats to stop. By
    /// default a coordinator is a standby while another one leads the same store.
    #[arg(long)]
    pub(crate) take_over: bool,
    #[command(flatten)]
    pub(crate) tls: ServerTlsArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,
    #[command(flatten)]
    pub(crate) auth: AuthArgs,
    /// Allow a listen address other than loopback without TLS or without authentication (--token-file,
    /// --jwt-issuer or --tls-client-ca): anyone who can reach it can run jobs and read all results, or read
    /// tokens in transit. Only for trusted networks.
    #[arg(long)]
    pub(crate) insecure_listen: bool,
    /// Accept workers of another version or build, whose results may differ. All ranks of a job still run on
    /// workers of one version and build.
    #[arg(long)]
    pub(crate) allow_version_skew: bool,
    /// Number of log records between snapshots: at startup a coordinator reads the last snapshot and the
    /// records after it.
    #[arg(long, value_name = "RECORDS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) snapshot_every: u64,
    /// Memory limit for reading one job's inputs, which happens in a child process.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = crate::size::bytes)]
    pub(crate) input_memory: u64,
    /// Size from which ranks read and write objects, such as models and checkpoints, in the store itself
    /// instead of through the coordinator, or off. For S3, GCS and Azure (reading only) stores: ranks get
    /// URLs that expire, and no credentials. Files of less than 64 KiB, and all of a rank that cannot
    /// reach the store, go through the coordinator.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", env = "FOIL_DIRECT_TRANSFERS", value_parser = crate::size::bytes_or_off)]
    pub(crate) direct_transfers: SizeOrOff,
    /// Period of garbage collection in the store, such as 12h, or off. It deletes inputs that no job names,
    /// a day after their last upload, and remains of deleted jobs. `foil store gc` collects immediately.
    #[arg(long, value_name = "PERIOD", default_value = "24h", value_parser = duration::interval)]
    pub(crate) gc_interval: Interval,
    /// Write the listen address to this file once requests are answered (a standby answers with the leader's
    /// address).
    #[arg(long, value_name = "FILE")]
    pub(crate) port_file: Option<PathBuf>,
    /// Exit with this parent process.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent_pid: Option<u32>,
    /// Directory of the `foil run` whose store this is.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) run_directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveInputsArgs {
    #[arg(long, env = "FOIL_STORE", hide_env_values = true)]
    pub(crate) store: String,
    /// Address space limit in bytes.
    #[arg(long)]
    pub(crate) memory: u64,
    #[arg(long)]
    pub(crate) cpu_seconds: u64,
}
