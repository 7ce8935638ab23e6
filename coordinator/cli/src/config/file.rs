//! The client's configuration file.
//!
//! ```yaml
//! current-context: lab
//! contexts:
//!   lab:
//!     coordinator: [https://foil-0.lab:7070, https://foil-1.lab:7070]
//!     tls-ca: lab-ca.pem
//!     token-file: lab.token
//!     tenant: research
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// Size limit of the file.
const MAX_BYTES: u64 = 1 << 20;

/// A coordinator, or several of one store, and how to reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Context {
    /// URLs of the coordinators.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) coordinator: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<String>,
}

impl Context {
    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.tls_ca, &mut self.tls_cert, &mut self.tls_key, &mut self.token_file].into_iter().flatten()
    }

    /// Refuses a context that lacks a setting that another one needs.
    pub(crate) fn check(&self) -> Result<()> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => bail!("tls-cert needs tls-key, the certificate's private key"),
            (None, Some(_)) => bail!("tls-key needs tls-cert, the key's certificate"),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Content {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current_context: Option<String>,
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// The file and what it holds; an absent file holds nothing.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
}

impl ConfigFile {
    /// The user's file: `FOIL_CONFIG`, or `foil/config.yaml` in `XDG_CONFIG_HOME`, by default `~/.config`.
    pub(crate) fn load() -> Result<Self> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        match path(variable) {
            Some(path) => Self::read(path),
            // Without a home directory there are no contexts.
            None => Ok(Self { path: PathBuf::new(), content: Content::default() }),
        }
    }

    pub(super) fn read(path: PathBuf) -> Result<Self> {
        let mut text = String::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, content: Content::default() });
            }
            opened => {
                let read = opened.and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
                read.with_context(|| format!("cannot read the configuration {}", path.display()))?;
            }
        }
        if text.len() as u64 > MAX_BYTES {
            bail!("the configuration {} has more than {MAX_BYTES} bytes", path.display());
        }
        let mut content: Content = match text.trim().is_empty() {
            true => Content::default(),
            false => serde_norway::from_str(&text).with_context(|| {
                format!(
                    "the configuration {} is invalid; correct it, or remove it and use `foil config set`",
                    path.display()
                )
            })?,
        };
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        for file in content.contexts.values_mut().flat_map(Context::paths) {
            *file = directory.join(&file);
        }
        Ok(Self { path, content })
    }

    /// Writes the file, readable only by its owner: it shows where secrets are stored.
    pub(super) fn save(&self) -> Result<()> {
        let Self { path, content } = self;
        if path.as_os_str().is_empty() {
            bail!("there is no home directory for a configuration; name a file with FOIL_CONFIG");
        }
        let text = serde_norway::to_string(content)?;
        let write = || {
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            let mut part = path.as_os_str().to_owned();
            part.push(format!(".{}.part", std::process::id()));
            let part = PathBuf::from(part);
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        write().with_context(|| format!("cannot write the configuration {}", path.display()))
    }

    /// The context of this name.
    pub(crate) fn context(&self, name: &str) -> Result<&Context> {
        let Some(context) = self.content.contexts.get(name) else {
            let known: Vec<&str> = self.content.contexts.keys().map(String::as_str).collect();
            match known.is_empty() {
                true => bail!(
                    "there is no context {name}; make one with `foil config set {name} --coordinator URL`"
                ),
                false => bail!("there is no context {name}, only {}", known.join(", ")),
            }
        };
        context.check().with_context(|| format!("context {name} in {}", self.path.display()))?;
        Ok(context)
    }
}

fn path(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let in_home = || Some(variable("HOME")?.join(".config"));
    variable("FOIL_CONFIG")
        .or_else(|| Some(variable("XDG_CONFIG_HOME").or_else(in_home)?.join("foil/config.yaml")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_found_by_its_variables() {
        let found = |set: &[(&str, &str)]| {
            path(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert_eq!(found(&[("HOME", "/h")]), Some("/h/.config/foil/config.yaml".into()));
        assert_eq!(found(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]), Some("/x/foil/config.yaml".into()));
        assert_eq!(found(&[("XDG_CONFIG_HOME", "/x"), ("FOIL_CONFIG", "/f")]), Some("/f".into()));
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn a_file_is_its_owners_alone_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = ConfigFile::read(dir.path().join("new/config.yaml")).unwrap();
        assert_eq!(file.content, Content::default());
        let context = Context {
            coordinator: vec!["https://a:1".into()],
            tls_ca: Some("/ca.pem".into()),
            tenant: Some("t".into()),
            ..Context::default()
        };
        file.content.contexts.insert("lab".into(), context);
        file.content.current_context = Some("lab".into());
        file.save().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file.path), mode(file.path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(ConfigFile::read(file.path.clone()).unwrap().content, file.content);
        assert_eq!(file.path.parent().unwrap().read_dir().unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "contexts: { lab: { tls-ca: ca.pem, token-file: /t } }").unwrap();
        let file = ConfigFile::read(path).unwrap();
        let context = file.context("lab").unwrap();
        assert_eq!(context.tls_ca, Some(dir.path().join("ca.pem")));
        assert_eq!(context.token_file, Some("/t".into()));
    }

    #[test]
    fn faults_are_told_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let problem = |text: &str| {
            fs::write(&path, text).unwrap();
            let read = ConfigFile::read(path.clone());
            let error = read.and_then(|file| file.context("lab").cloned()).unwrap_err();
            crate::stdout::chain(&error)
        };
        let told = problem("contexts: { lab: { coordinators: [x] } }");
        assert!(
            told.contains("config.yaml is invalid") && told.contains("unknown field `coordinators`"),
            "{told}"
        );
        assert!(problem("contexts: { lab: { tls-key: k } }").contains("tls-key needs tls-cert"));
        assert!(problem("contexts: { home: {} }").contains("there is no context lab, only home"));
        assert!(problem("").contains("foil config set lab --coordinator URL"));
        let told = problem(&format!("# {}\n", "x".repeat(1 << 20)));
        assert!(told.contains("more than 1048576 bytes"), "{told}");
    }
}
