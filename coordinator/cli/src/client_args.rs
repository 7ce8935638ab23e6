//! Arguments of the commands that ask a coordinator.

use clap::{Args, ValueEnum};

use super::credential_args::CredentialArgs;

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// URL of the coordinator, http:// or https:// (TLS). If several serve one store, give all, separated by commas or as repeated options: the client
    /// finds the leader. Default: the context's, or http://127.0.0.1:7070
    #[arg(long, value_name = "URL", env = "FOIL_COORDINATOR", value_delimiter = ',')]
    pub(crate) coordinator: Vec<String>,
    /// Context of connection settings. Default: the current one of `foil config`
    #[arg(long, value_name = "NAME", env = "FOIL_CONTEXT")]
    pub(crate) context: Option<String>,
    #[command(flatten)]
    pub(crate) tls: CredentialArgs,
}

/// Refuses an empty job name: an unset shell variable would be a prefix of every id.
pub(crate) fn job_reference(text: &str) -> Result<String, String> {
    match text.split('/').next().unwrap_or_default().trim() {
        "" => Err("it names no job; give an id, a prefix of one, or a job's name".to_owned()),
        _ => Ok(text.trim().to_owned()),
    }
}

/// A job, as [`job_reference`] reads it, or the directory of a run.
pub(crate) fn job_or_directory(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it names no job and no directory".to_owned()),
        text => Ok(text.to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    Cpu,
    #[value(alias = "gpu")]
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
