//! Arguments of `foil config`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::client_args::ClientArgs;
use crate::output::OutputArgs;

#[derive(Debug, Args)]
#[command(after_help = "\
A context names coordinators and how to reach them; --context or FOIL_CONTEXT choose one for a command.
Each setting comes from the first that has it: option, environment variable, context, default.
The file is FOIL_CONFIG, or foil/config.yaml in XDG_CONFIG_HOME (by default ~/.config).

Examples:
  foil config set lab --coordinator https://a:7070,https://b:7070 --tls-ca lab-ca.pem --tenant research
  foil config use lab
  foil config view --context lab")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Lists all contexts.
    List(ListContextsArgs),
    /// Shows the settings in force, and where each comes from.
    View(Box<ViewArgs>),
    /// Makes a context the current one, which commands use by default.
    Use {
        #[arg(value_name = "CONTEXT")]
        name: String,
    },
    /// Creates or changes a context. Settings that are not given are kept.
    Set(SetArgs),
    /// Deletes a context. The files that it names are kept.
    Delete {
        #[arg(value_name = "CONTEXT")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct ListContextsArgs {
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct ViewArgs {
    #[command(flatten)]
    pub(super) output: OutputArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// The options of [`ClientArgs`], but without environment variables, which would end up in the file
/// unintentionally.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Name of the context: letters, digits, '-', '_' and '.'.
    #[arg(value_name = "CONTEXT", value_parser = context_name)]
    pub(super) name: String,
    /// URLs of the coordinators, separated by commas or as repeated options.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(super) coordinator: Vec<String>,
    /// CA certificates (PEM) of the coordinators.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_ca: Option<PathBuf>,
    /// Certificate of this client (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// File of the bearer token.
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Tenant whose jobs `foil list` shows; only an admin may name a tenant other than their own.
    #[arg(long, value_name = "NAME")]
    pub(super) tenant: Option<String>,
    /// Removes a setting; may be repeated.
    #[arg(long, value_enum, value_name = "SETTING")]
    pub(super) unset: Vec<Setting>,
    /// Also make it the current context.
    #[arg(long)]
    pub(super) r#use: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Setting {
    Coordinator,
    TlsCa,
    /// The certificate and its key.
    TlsCert,
    TokenFile,
    Tenant,
}

fn context_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 64 letters, digits, '-', '_' or '.'".to_owned()),
    }
}
