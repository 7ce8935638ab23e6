//! The standard `OTEL_` variables. An unusable value is an error that names its variable but never shows the
//! value, which may hold a secret.

mod endpoint;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use url::Url;

use super::list;
use crate::rpc::TlsFiles;
use crate::tls::TlsError;

pub(super) use self::endpoint::Protocol;

/// Names the collector of both signals.
pub(super) const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// The signals that this process sends by OTLP, and their destinations.
#[derive(Debug)]
pub struct Config {
    pub(super) traces: Option<Target>,
    pub(super) metrics: Option<Target>,
    /// Interval at which metrics are sent.
    pub(super) interval: Duration,
    /// Attributes that name this process.
    pub(super) resource: Vec<(String, String)>,
}

/// A collector for one signal.
pub(super) struct Target {
    pub(super) protocol: Protocol,
    /// The URL of its requests; the address of the server for gRPC.
    pub(super) endpoint: Url,
    pub(super) headers: MetadataMap,
    pub(super) timeout: Duration,
    pub(super) compress: bool,
    /// For an `https://` endpoint.
    pub(super) tls: TlsFiles,
}

impl fmt::Debug for Target {
    /// Omits the headers, which hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, endpoint, headers, timeout, compress, tls } = self;
        f.debug_struct("Target")
            .field("protocol", protocol)
            .field("endpoint", &endpoint.as_str())
            .field("headers", &headers.len())
            .field("timeout", timeout)
            .field("compress", compress)
            .field("tls", tls)
            .finish()
    }
}

/// A variable whose value cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment's {variable} cannot be used: {problem}")]
pub struct ConfigError {
    pub(super) variable: String,
    pub(super) problem: String,
}

/// The variables that configure the exporters, and how to read them.
struct Variables<F>(F);

/// One of the two signals.
#[derive(Clone, Copy)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// The word in its variables' names.
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// The last part of the path of its requests over HTTP.
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

impl Config {
    /// The configuration of the program `service` from the environment; `None` if it names no collector.
    pub fn from_env(service: &str) -> Result<Option<Self>, ConfigError> {
        Self::read(service, |name| std::env::var_os(name))
    }

    /// Adds an attribute that names this process.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.resource.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn read(
        service: &str,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, ConfigError> {
        let variables = Variables(variable);
        let is_disabled = variables.parse("OTEL_SDK_DISABLED", |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("expected true or false".to_owned()),
        })?;
        if is_disabled == Some(true) {
            return Ok(None);
        }
        let (traces, metrics) = (variables.target(Signal::Traces)?, variables.target(Signal::Metrics)?);
        let interval = variables.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", MIN_INTERVAL..=MAX_INTERVAL)?;
        let resource = variables.resource(service)?;
        if traces.is_none() && metrics.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { traces, metrics, interval: interval.unwrap_or(DEFAULT_INTERVAL), resource }))
    }
}

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    /// A variable's value; an empty one counts as not set.
    fn text(&self, variable: &str) -> Result<Option<String>, ConfigError> {
        let Some(value) = (self.0)(variable).filter(|value| !value.is_empty()) else { return Ok(None) };
        value.into_string().map(Some).map_err(|_| error(variable, "expected text in UTF-8"))
    }

    fn parse<T>(
        &self,
        variable: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(variable)? else { return Ok(None) };
        parse(text.trim()).map(Some).map_err(|problem| error(variable, problem))
    }

    fn milliseconds(
        &self,
        variable: &str,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, ConfigError> {
        let (low, high) = (range.start().as_millis(), range.end().as_millis());
        self.parse(variable, |text| {
            let given = u64::from_str(text).ok().map(Duration::from_millis);
            given
                .filter(|given| range.contains(given))
                .ok_or_else(|| format!("expected a number of milliseconds from {low} to {high}"))
        })
    }

    /// A setting of a signal: its own variable wins over the one for both.
    fn setting<T>(
        &self,
        signal: Signal,
        setting: &str,
        read: impl Fn(&Self, &str) -> Result<Option<T>, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{setting}", signal.name());
        match read(self, &own)? {
            Some(value) => Ok(Some(value)),
            None => read(self, &format!("OTEL_EXPORTER_OTLP_{setting}")),
        }
    }

    fn target(&self, signal: Signal) -> Result<Option<Target>, ConfigError> {
        let exporter = format!("OTEL_{}_EXPORTER", signal.name());
        let is_wanted = self.parse(&exporter, |text| match text {
            "otlp" => Ok(true),
            "none" => Ok(false),
            _ => Err("expected otlp or none".to_owned()),
        })?;
        if is_wanted == Some(false) {
            return Ok(None);
        }
        let Some((protocol, endpoint)) = self.endpoint(signal, is_wanted.unwrap_or_default())? else {
            return Ok(None);
        };
        let headers = self.setting(signal, "HEADERS", |all, name| all.parse(name, headers))?;
        let range = Duration::from_millis(1)..=MAX_TIMEOUT;
        let timeout = self.setting(signal, "TIMEOUT", |all, name| all.milliseconds(name, range.clone()))?;
        let compress = self.setting(signal, "COMPRESSION", |all, name| all.parse(name, compression))?;
        let tls = match endpoint.scheme() {
            "https" => self.tls(signal, &endpoint)?,
            _ => TlsFiles::default(),
        };
        Ok(Some(Target {
            protocol,
            endpoint,
            headers: headers.unwrap_or_default(),
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            compress: compress.unwrap_or_default(),
            tls,
        }))
    }

    /// How and where a signal is sent. If it `is_wanted` but no collector is named, it goes to the one on
    /// this machine.
    fn endpoint(&self, signal: Signal, is_wanted: bool) -> Result<Option<(Protocol, Url)>, ConfigError> {
        let named = self.setting(signal, "ENDPOINT", |all, name| {
            all.parse(name, |text| Ok((text.to_owned(), name.to_owned())))
        })?;
        if named.is_none() && !is_wanted {
            return Ok(None);
        }
        let protocol = self.setting(signal, "PROTOCOL", |all, name| all.parse(name, endpoint::protocol))?;
        let protocol = protocol.unwrap_or_default();
        let (text, variable) = named.unwrap_or_else(|| (protocol.local().to_owned(), ENDPOINT.to_owned()));
        let url = protocol.endpoint(&text, signal, variable != ENDPOINT);
        Ok(Some((protocol, url.map_err(|problem| error(&variable, problem))?)))
    }

    /// The files for TLS. They are read once, so that an unusable file is an error at startup.
    fn tls(&self, signal: Signal, endpoint: &Url) -> Result<TlsFiles, ConfigError> {
        let file = |setting: &str| {
            let path = self.setting(signal, setting, |all, name| {
                all.parse(name, |path| Ok((PathBuf::from(path), name.to_owned())))
            });
            path.map(|found| (found, format!("OTEL_EXPORTER_OTLP_{setting}")))
        };
        let (ca, ca_variable) = file("CERTIFICATE")?;
        let (key, key_variable) = file("CLIENT_KEY")?;
        let (certificate, certificate_variable) = file("CLIENT_CERTIFICATE")?;
        let ca_variable = ca.as_ref().map_or(ca_variable, |(_, name)| name.clone());
        let identity = match (certificate, key) {
            (Some((certificate, _)), Some((key, _))) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(error(&key_variable, "it is missing beside the client's certificate"));
            }
            (None, Some(_)) => {
                return Err(error(&certificate_variable, "it is missing beside the client's key"));
            }
        };
        let client = identity
            .as_ref()
            .map_or_else(Vec::new, |(certificate, key)| vec![certificate.clone(), key.clone()]);
        let tls = TlsFiles { ca: ca.map(|(path, _)| path), identity };
        let host = endpoint.host_str().unwrap_or_default();
        tls.config(host).map_err(|problem| match &problem {
            TlsError::NoSystemRoots => {
                error(&ca_variable, "it is not set, and this system has no CA certificates")
            }
            TlsError::Read { path, .. } | TlsError::Missing { path, .. } | TlsError::Invalid { path, .. }
                if client.contains(path) =>
            {
                error(&certificate_variable, problem.to_string())
            }
            _ => error(&ca_variable, problem.to_string()),
        })?;
        Ok(tls)
    }

    fn resource(&self, service: &str) -> Result<Vec<(String, String)>, ConfigError> {
        let given = self.parse("OTEL_RESOURCE_ATTRIBUTES", list::pairs)?.unwrap_or_default();
        let name = self.parse("OTEL_SERVICE_NAME", |name| match name.len() {
            0..=list::TEXT_BYTES => Ok(name.to_owned()),
            _ => Err(format!("expected at most {} bytes", list::TEXT_BYTES)),
        })?;
        let mut resource = vec![
            ("service.name".to_owned(), name.clone().unwrap_or_else(|| service.to_owned())),
            ("service.version".to_owned(), crate::version::VERSION.to_owned()),
            ("service.instance.id".to_owned(), instance()),
        ];
        for (key, value) in given {
            match resource.iter_mut().find(|(known, _)| *known == key) {
                // The dedicated variable wins.
                Some((_, _)) if key == "service.name" && name.is_some() => {}
                Some((_, known)) => *known = value,
                None => resource.push((key, value)),
            }
        }
        Ok(resource)
    }
}

fn error(variable: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError { variable: variable.to_owned(), problem: problem.into() }
}

/// An id that distinguishes the processes of a service.
fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", host.trim(), std::process::id())
}

fn compression(text: &str) -> Result<bool, String> {
    match text {
        "gzip" => Ok(true),
        "none" => Ok(false),
        _ => Err("expected gzip or none".to_owned()),
    }
}

fn headers(text: &str) -> Result<MetadataMap, String> {
    let mut headers = MetadataMap::new();
    for (number, (key, value)) in (1..).zip(list::pairs(text)?) {
        let bad = |part: &str| format!("the {part} of header {number} cannot be sent");
        let key = MetadataKey::<Ascii>::from_str(&key.to_ascii_lowercase()).map_err(|_| bad("name"))?;
        let mut value = MetadataValue::<Ascii>::from_str(&value).map_err(|_| bad("value"))?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests;
