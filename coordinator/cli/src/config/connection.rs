//! Settings of a connection to the coordinators, each from the first source that has it: option, environment
//! variable, context, default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::ArgMatches;
use clap::parser::ValueSource;
use foil_common::rpc::{Credentials, TlsFiles};
use serde_json::{Value, json};

use super::file::ConfigFile;
use crate::client_args::ClientArgs;

/// URL at which a coordinator on this machine listens by default.
const DEFAULT_URL: &str = "http://127.0.0.1:7070";

/// The settings in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Name of the context, if there is one.
    pub(crate) context: Option<String>,
    pub(crate) urls: Vec<String>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tenant: Option<String>,
    /// Settings that the context gives.
    from_context: Vec<&'static str>,
}

impl ClientArgs {
    /// The connection's settings, with those of the context.
    pub(crate) fn connection(&self) -> anyhow::Result<Connection> {
        Connection::resolve(self, &ConfigFile::load()?)
    }
}

impl Connection {
    /// Combines the settings of the command line and the environment with the context that they, or the file,
    /// name.
    pub(crate) fn resolve(args: &ClientArgs, file: &ConfigFile) -> Result<Self> {
        let name = args.context.clone().or_else(|| file.content.current_context.clone());
        let context =
            name.as_deref().map(|name| file.context(name)).transpose()?.cloned().unwrap_or_default();
        let mut from_context = Vec::new();
        let mut taken = |setting: &'static str, is_set: bool| {
            if is_set {
                from_context.push(setting);
            }
        };
        let urls = match (&args.coordinator, context.coordinator) {
            (given, _) if !given.is_empty() => given.clone(),
            (_, told) if !told.is_empty() => {
                taken("coordinator", true);
                told
            }
            _ => vec![DEFAULT_URL.to_owned()],
        };
        let mut either = |setting, given: &Option<PathBuf>, told: Option<PathBuf>| {
            taken(setting, given.is_none() && told.is_some());
            given.clone().or(told)
        };
        let tls_ca = either("tls-ca", &args.tls.tls_ca, context.tls_ca);
        // Both come from the same source: a certificate does not work with another one's key.
        let (cert, key) = match args.tls.tls_cert.is_some() {
            true => (None, None),
            false => (context.tls_cert, context.tls_key),
        };
        let tls_cert = either("tls-cert", &args.tls.tls_cert, cert);
        let tls_key = either("tls-key", &args.tls.tls_key, key);
        let token_file = either("token-file", &args.tls.token_file, context.token_file);
        taken("tenant", context.tenant.is_some());
        Ok(Self {
            context: name,
            urls,
            tls_ca,
            tls_cert,
            tls_key,
            token_file,
            tenant: context.tenant,
            from_context,
        })
    }

    /// A connection without any settings.
    #[cfg(test)]
    pub(crate) fn to(url: &str) -> Self {
        Self {
            context: None,
            urls: vec![url.to_owned()],
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            token_file: None,
            tenant: None,
            from_context: Vec::new(),
        }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        let identity = self.tls_cert.clone().zip(self.tls_key.clone());
        let tls = TlsFiles { ca: self.tls_ca.clone(), identity };
        Credentials { tls, token_file: self.token_file.clone() }
    }

    /// The settings by name: those that are set, in the order of the help.
    pub(super) fn settings(&self) -> Vec<(&'static str, Value)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| json!(path.display().to_string()));
        [
            ("coordinator", Some(json!(self.urls))),
            ("tls-ca", path(&self.tls_ca)),
            ("tls-cert", path(&self.tls_cert)),
            ("tls-key", path(&self.tls_key)),
            ("token-file", path(&self.token_file)),
            ("tenant", self.tenant.as_ref().map(|tenant| json!(tenant))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }

    /// The source of a setting.
    pub(super) fn source(&self, setting: &str, given: &Given) -> String {
        if self.from_context.contains(&setting) {
            return format!("context {}", self.context.as_deref().unwrap_or_default());
        }
        given.0.get(setting).cloned().unwrap_or_else(|| "default".to_owned())
    }
}

/// The settings that the command line and the environment give: the option or variable of each, by name.
#[derive(Debug, Default)]
pub(crate) struct Given(BTreeMap<String, String>);

impl Given {
    /// Collects the settings given to the innermost subcommand.
    pub(crate) fn new(matches: &ArgMatches, command: &clap::Command) -> Self {
        if let Some((name, inner)) = matches.subcommand()
            && let Some(command) = command.find_subcommand(name)
        {
            return Self::new(inner, command);
        }
        let source = |argument: &clap::Arg| {
            let long = argument.get_long()?;
            let source = match matches.try_contains_id(argument.get_id().as_str()).ok()? {
                true => matches.value_source(argument.get_id().as_str())?,
                false => return None,
            };
            let told = match source {
                ValueSource::CommandLine => format!("--{long}"),
                ValueSource::EnvVariable => argument.get_env()?.to_string_lossy().into_owned(),
                _ => return None,
            };
            Some((long.to_owned(), told))
        };
        Self(command.get_arguments().filter_map(source).collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::super::file::{Content, Context};
    use super::*;
    use crate::args::{Cli, Command};

    fn file() -> ConfigFile {
        let lab = Context {
            coordinator: vec!["https://a:1".into(), "https://b:1".into()],
            tls_ca: Some("/lab.pem".into()),
            tls_cert: Some("/lab.crt".into()),
            tls_key: Some("/lab.key".into()),
            tenant: Some("research".into()),
            ..Context::default()
        };
        let contexts = [("lab".to_owned(), lab), ("empty".to_owned(), Context::default())].into();
        ConfigFile { path: "/c".into(), content: Content { current_context: Some("lab".into()), contexts } }
    }

    /// The connection of `foil list ARGUMENTS`, and the source of each setting.
    fn resolved(arguments: &[&str]) -> (Connection, Vec<(&'static str, String)>) {
        let command = Cli::command();
        let line = ["foil", "list"].iter().chain(arguments);
        let matches = command.clone().get_matches_from(line);
        let given = Given::new(&matches, &command);
        let Command::List(args) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("another command")
        };
        let connection = Connection::resolve(&args.client, &file()).unwrap();
        let sources = connection
            .settings()
            .into_iter()
            .map(|(name, _)| (name, connection.source(name, &given)))
            .collect();
        (connection, sources)
    }

    #[test]
    fn an_option_wins_over_the_context_and_that_over_the_default() {
        let (connection, sources) = resolved(&["--coordinator", "http://h:1", "--tls-ca", "/mine.pem"]);
        assert_eq!(
            (connection.urls, connection.tls_ca),
            (vec!["http://h:1".to_owned()], Some("/mine.pem".into()))
        );
        assert_eq!(connection.tls_cert, Some("/lab.crt".into()));
        let source = |name: &str| sources.iter().find(|(known, _)| *known == name).unwrap().1.clone();
        assert_eq!(
            (source("coordinator"), source("tls-ca")),
            ("--coordinator".to_owned(), "--tls-ca".to_owned())
        );
        assert_eq!(
            (source("tls-key"), source("tenant")),
            ("context lab".to_owned(), "context lab".to_owned())
        );

        let (connection, sources) = resolved(&["--context", "empty"]);
        assert_eq!((connection.urls, connection.tls_ca), (vec![DEFAULT_URL.to_owned()], None));
        assert_eq!(sources, [("coordinator", "default".to_owned())]);
    }

    #[test]
    fn a_certificate_of_the_command_line_is_not_joined_with_the_contexts_key() {
        let (connection, _) = resolved(&["--tls-cert", "/my.crt", "--tls-key", "/my.key"]);
        assert_eq!(connection.credentials().tls.identity, Some(("/my.crt".into(), "/my.key".into())));
    }

    #[test]
    fn a_context_that_is_not_there_is_an_error() {
        let command = Cli::command();
        let matches = command.get_matches_from(["foil", "list", "--context", "nowhere"]);
        let Command::List(args) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("another command")
        };
        let error = Connection::resolve(&args.client, &file()).unwrap_err().to_string();
        assert!(error.contains("there is no context nowhere, only empty, lab"), "{error}");
    }
}
