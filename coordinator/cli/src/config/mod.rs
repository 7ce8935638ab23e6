//! `foil config`: contexts, named sets of connection settings like those of kubectl.

mod args;
mod connection;
mod file;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use foil_common::rpc::{self, Credentials, TlsFiles};
use serde_json::{Map, Value, json};

pub(crate) use self::args::ConfigArgs;
use self::args::{ConfigCommand, ListContextsArgs, SetArgs, ViewArgs};
pub(crate) use self::connection::{Connection, Given};
pub(crate) use self::file::ConfigFile;
use self::file::Context;
use super::output::Output;
use super::{output, report, stdout};

pub(crate) fn config(args: &ConfigArgs, given: &Given) -> Result<()> {
    let mut file = ConfigFile::load()?;
    match &args.command {
        ConfigCommand::List(args) => list(args, &file),
        ConfigCommand::View(args) => view(args, &file, given),
        ConfigCommand::Use { name } => {
            file.context(name)?;
            file.content.current_context = Some(name.clone());
            file.save()?;
            told(&format!("{name} is the current context"))
        }
        ConfigCommand::Set(args) => set(args, &mut file),
        ConfigCommand::Delete { name } => {
            if file.content.contexts.remove(name).is_none() {
                bail!("there is no context {name}");
            }
            if file.content.current_context.as_ref() == Some(name) {
                file.content.current_context = None;
            }
            file.save()?;
            told(&format!("context {name} is deleted"))
        }
    }
}

fn told(text: &str) -> Result<()> {
    Ok(stdout::line(text)?)
}

fn list(args: &ListContextsArgs, file: &ConfigFile) -> Result<()> {
    let current = file.content.current_context.as_deref();
    let contexts = &file.content.contexts;
    let value = || {
        let entry = |(name, context): (&String, &Context)| {
            let mut value = serde_json::to_value(context)?;
            value["name"] = json!(name);
            value["current"] = json!(Some(name.as_str()) == current);
            Ok(value)
        };
        Ok(json!({ "contexts": contexts.iter().map(entry).collect::<serde_json::Result<Vec<_>>>()? }))
    };
    if !output::structured(args.output.format, value, || contexts.keys().cloned())? {
        return Ok(());
    }
    let head = ["CURRENT", "NAME", "COORDINATOR", "TENANT", "CA", "CERTIFICATE", "TOKEN FILE"];
    let columns = if args.output.format == Output::Wide { head.len() } else { 4 };
    let path =
        |path: &Option<PathBuf>| path.as_ref().map_or("–".to_owned(), |path| path.display().to_string());
    let rows = contexts.iter().map(|(name, context)| {
        let mark = if Some(name.as_str()) == current { "*" } else { "" };
        vec![
            mark.to_owned(),
            name.clone(),
            context.coordinator.join(","),
            context.tenant.clone().unwrap_or_else(|| "–".to_owned()),
            path(&context.tls_ca),
            path(&context.tls_cert),
            path(&context.token_file),
        ]
    });
    let rows = std::iter::once(head.map(str::to_owned).to_vec()).chain(rows);
    let rows: Vec<Vec<String>> = rows.map(|row| row[..columns].to_vec()).collect();
    told(&report::align(&rows))
}

/// The settings in force for a command with the same options.
fn view(args: &ViewArgs, file: &ConfigFile, given: &Given) -> Result<()> {
    let connection = Connection::resolve(&args.client, file)?;
    let settings = connection.settings();
    let value = || {
        let entry = |(name, value): &(&'static str, Value)| {
            ((*name).to_owned(), json!({ "value": value, "source": connection.source(name, given) }))
        };
        Ok(json!({
            "file": file.path.display().to_string(),
            "context": connection.context,
            "settings": settings.iter().map(entry).collect::<Map<_, _>>(),
        }))
    };
    let name = || connection.context.clone();
    if !output::structured(args.output.format, value, name)? {
        return Ok(());
    }
    let context = connection.context.as_deref().unwrap_or("none");
    stdout::line(&format!("context {context}, file {}\n", file.path.display()))?;
    let mut rows = vec![["SETTING", "VALUE", "SOURCE"].map(str::to_owned).to_vec()];
    rows.extend(settings.iter().map(|(name, value)| {
        let value = match value {
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        vec![(*name).to_owned(), value, connection.source(name, given)]
    }));
    told(&report::align(&rows))
}

/// Creates or changes a context. The first one becomes the current one.
fn set(args: &SetArgs, file: &mut ConfigFile) -> Result<()> {
    let is_new = !file.content.contexts.contains_key(&args.name);
    let mut context = file.content.contexts.get(&args.name).cloned().unwrap_or_default();
    for setting in &args.unset {
        match setting {
            args::Setting::Coordinator => context.coordinator.clear(),
            args::Setting::TlsCa => context.tls_ca = None,
            args::Setting::TlsCert => (context.tls_cert, context.tls_key) = (None, None),
            args::Setting::TokenFile => context.token_file = None,
            args::Setting::Tenant => context.tenant = None,
        }
    }
    if !args.coordinator.is_empty() {
        context.coordinator.clone_from(&args.coordinator);
    }
    for (place, given) in [
        (&mut context.tls_ca, &args.tls_ca),
        (&mut context.tls_cert, &args.tls_cert),
        (&mut context.tls_key, &args.tls_key),
        (&mut context.token_file, &args.token_file),
    ] {
        if let Some(given) = given {
            *place = Some(readable(given)?);
        }
    }
    if args.tenant.is_some() {
        context.tenant.clone_from(&args.tenant);
    }
    context.check()?;
    if !context.coordinator.is_empty() {
        // Refuses addresses and certificates that no command could use; nothing is sent.
        let identity = context.tls_cert.clone().zip(context.tls_key.clone());
        let tls = TlsFiles { ca: context.tls_ca.clone(), identity };
        let credentials = Credentials { tls, token_file: context.token_file.clone() };
        rpc::connect_with(&context.coordinator.join(","), &credentials)?;
    }
    file.content.contexts.insert(args.name.clone(), context);
    let is_first = file.content.current_context.is_none() && file.content.contexts.len() == 1;
    if args.r#use || is_first {
        file.content.current_context = Some(args.name.clone());
    }
    file.save()?;
    let verb = if is_new { "made" } else { "changed" };
    let current = if args.r#use || is_first { ", and is the current one" } else { "" };
    told(&format!("context {} is {verb}{current}", args.name))
}

/// The absolute path of a file that can be read: a later command may run elsewhere.
fn readable(path: &Path) -> Result<PathBuf> {
    std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(std::path::absolute(path)?)
}
