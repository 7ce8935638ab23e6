//! The trackers of a coordinator, configured by its environment. A job only names them: specifications come
//! from users, and an address in one would give that user access to whatever only the coordinator can reach.
//!
//! An unusable value is an error that names its variable and never shows the value, which may contain a
//! secret.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use foil_common::spec::{ReportTo, Tracker, Trackers};
use url::Url;

/// Variables that contain secrets or lead to them. They are not passed on to child processes of the
/// coordinator.
pub const SECRET_VARIABLES: [&str; 4] = [
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "KUBEFLOW_TRAINER_SERVER_TOKEN",
];

/// Experiment of jobs that do not name one.
const DEFAULT_EXPERIMENT: &str = "foil";
/// Size limit of a value.
const VALUE_BYTES: usize = 16 << 10;

/// The trackers in addition to TensorBoard's event files, which are always written.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub(super) mlflow: Option<MlflowConfig>,
    pub(super) kubeflow: Option<KubeflowConfig>,
}

/// An MLflow tracking server.
#[derive(Debug, Clone)]
pub(super) struct MlflowConfig {
    /// Without a trailing '/'.
    pub(super) url: String,
    pub(super) credential: Option<Credential>,
    /// CA certificates (PEM); the system's if not given.
    pub(super) ca: Option<Pem>,
    /// The experiment of jobs that do not name one.
    pub(super) experiment: String,
}

/// The controller of a Kubeflow TrainJob.
#[derive(Debug, Clone)]
pub(super) struct KubeflowConfig {
    pub(super) url: Url,
    /// The file with the token, which the kubelet renews.
    pub(super) token_file: PathBuf,
    pub(super) ca: Option<Pem>,
}

/// A file of certificates, read at startup.
#[derive(Clone)]
pub(super) struct Pem(pub(super) Vec<u8>);

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({} bytes)", self.0.len())
    }
}

/// Credentials with which the coordinator authenticates to a tracking server.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    Token(String),
    Password { user: String, password: String },
}

impl fmt::Debug for Credential {
    /// Omits the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(…)",
            Self::Password { .. } => "Password(…)",
        })
    }
}

impl Credential {
    /// The texts that must not appear in any message.
    pub(super) fn secrets(&self) -> Vec<&str> {
        match self {
            Self::Token(token) => vec![token],
            Self::Password { password, .. } => vec![password],
        }
    }
}

/// A variable whose value cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment's {variable} cannot be used: {problem}")]
pub struct ConfigError {
    variable: &'static str,
    problem: String,
}

fn error(variable: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError { variable, problem: problem.into() }
}

impl Config {
    /// The trackers configured by the environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(|name| std::env::var_os(name))
    }

    pub(super) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let variables = Variables(variable);
        Ok(Self { mlflow: variables.mlflow()?, kubeflow: variables.kubeflow()? })
    }

    /// Whether jobs may be reported to this tracker.
    pub fn has(&self, tracker: Tracker) -> bool {
        match tracker {
            Tracker::TensorBoard => true,
            Tracker::Mlflow => self.mlflow.is_some(),
            Tracker::Kubeflow => self.kubeflow.is_some(),
        }
    }

    /// Why a job cannot be accepted: it names a tracker that this coordinator lacks.
    pub fn refusal(&self, trackers: &Trackers) -> Option<String> {
        let required = |tracker: &Tracker| trackers.require(*tracker) && !self.has(*tracker);
        let lacking = Tracker::ALL.iter().copied().find(required)?;
        let (named, variable) = (lacking.name(), variable(lacking));
        let known = Tracker::ALL.iter().filter(|tracker| self.has(**tracker)).map(|tracker| tracker.name());
        let known: Vec<&str> = known.collect();
        Some(format!(
            "found {named}, and this coordinator reports to {} only; it would report to {named} with {variable} in \
             its environment",
            known.join(" and ")
        ))
    }

    /// Adds the trackers that every run in this environment reports to, as transformers does within a
    /// Kubeflow TrainJob.
    pub fn add_implied(&self, trackers: &mut Trackers) {
        let is_disabled = std::env::var("DISABLE_KUBEFLOW_INTEGRATION")
            .is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        if self.kubeflow.is_some() && !is_disabled {
            trackers.add(ReportTo::Kubeflow);
        }
    }
}

/// The variable that holds a tracker's address.
pub(crate) fn variable(tracker: Tracker) -> &'static str {
    match tracker {
        Tracker::TensorBoard => "nothing",
        Tracker::Mlflow => "MLFLOW_TRACKING_URI",
        Tracker::Kubeflow => "KUBEFLOW_TRAINER_SERVER_URL, which a pod of a TrainJob has,",
    }
}

/// The environment variables, with the function that reads them.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    /// A variable's value; an empty value counts as unset.
    fn text(&self, variable: &'static str) -> Result<Option<String>, ConfigError> {
        let Some(value) = (self.0)(variable).filter(|value| !value.is_empty()) else { return Ok(None) };
        let text = value.into_string().map_err(|_| error(variable, "expected text in UTF-8"))?;
        match text.len() <= VALUE_BYTES {
            true => Ok(Some(text.trim().to_owned())),
            false => Err(error(variable, format!("it is longer than {VALUE_BYTES} bytes"))),
        }
    }

    fn mlflow(&self) -> Result<Option<MlflowConfig>, ConfigError> {
        const URI: &str = "MLFLOW_TRACKING_URI";
        let Some(text) = self.text(URI)? else { return Ok(None) };
        let url = url(URI, &text, &["http", "https"])?;
        if self.text("MLFLOW_TRACKING_INSECURE_TLS")?.is_some_and(|value| value != "false") {
            let advice =
                "certificates are always checked; give the server's CA in MLFLOW_TRACKING_SERVER_CERT_PATH";
            return Err(error("MLFLOW_TRACKING_INSECURE_TLS", advice));
        }
        Ok(Some(MlflowConfig {
            url: url.as_str().trim_end_matches('/').to_owned(),
            credential: self.credential()?,
            ca: self.pem("MLFLOW_TRACKING_SERVER_CERT_PATH")?,
            experiment: self.text("MLFLOW_EXPERIMENT_NAME")?.unwrap_or_else(|| DEFAULT_EXPERIMENT.to_owned()),
        }))
    }

    /// User and password take precedence over the token, as in MLflow's client.
    fn credential(&self) -> Result<Option<Credential>, ConfigError> {
        const USER: &str = "MLFLOW_TRACKING_USERNAME";
        const PASSWORD: &str = "MLFLOW_TRACKING_PASSWORD";
        match (self.text(USER)?, self.text(PASSWORD)?) {
            (Some(user), Some(password)) => Ok(Some(Credential::Password { user, password })),
            (Some(_), None) => Err(error(PASSWORD, format!("it is missing beside {USER}"))),
            (None, Some(_)) => Err(error(USER, format!("it is missing beside {PASSWORD}"))),
            (None, None) => {
                const TOKEN: &str = "MLFLOW_TRACKING_TOKEN";
                let token = self.text(TOKEN)?;
                if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
                    return Err(error(TOKEN, "expected visible ASCII characters"));
                }
                Ok(token.map(Credential::Token))
            }
        }
    }

    fn kubeflow(&self) -> Result<Option<KubeflowConfig>, ConfigError> {
        const URL: &str = "KUBEFLOW_TRAINER_SERVER_URL";
        let Some(text) = self.text(URL)? else { return Ok(None) };
        let url = url(URL, &text, &["https"])?;
        let token = self.text("KUBEFLOW_TRAINER_SERVER_TOKEN")?;
        let token = token.ok_or_else(|| {
            error(
                "KUBEFLOW_TRAINER_SERVER_TOKEN",
                format!("the path of the token's file is missing beside {URL}"),
            )
        })?;
        let ca = self.pem("KUBEFLOW_TRAINER_SERVER_CA_CERT")?;
        Ok(Some(KubeflowConfig { url, token_file: token.into(), ca }))
    }

    /// The file of certificates that a variable names.
    fn pem(&self, variable: &'static str) -> Result<Option<Pem>, ConfigError> {
        let Some(path) = self.text(variable)? else { return Ok(None) };
        let bytes = std::fs::read(&path);
        let bytes = bytes.map_err(|problem| error(variable, format!("cannot read {path}: {problem}")))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&bytes);
        match certificates.is_ok_and(|certificates| !certificates.is_empty()) {
            true => Ok(Some(Pem(bytes))),
            false => Err(error(variable, format!("{path} has no certificate in PEM"))),
        }
    }
}

fn url(variable: &'static str, text: &str, schemes: &[&str]) -> Result<Url, ConfigError> {
    let expected = schemes.iter().map(|scheme| format!("{scheme}://HOST")).collect::<Vec<_>>().join(" or ");
    let url: Url = text.parse().map_err(|_| error(variable, format!("expected {expected}")))?;
    if !schemes.contains(&url.scheme()) || url.host_str().is_none() {
        return Err(error(variable, format!("expected {expected}")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(error(variable, "user and password belong into variables of their own"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(error(variable, "expected no '?' and no '#'"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use foil_proto::v1;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(|name| {
            pairs.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    const MLFLOW: (&str, &str) = ("MLFLOW_TRACKING_URI", "https://mlflow.example/base/");

    #[test]
    fn an_empty_environment_has_tensorboard_alone() {
        let config = read(&[]).unwrap();
        assert!(
            config.has(Tracker::TensorBoard)
                && !config.has(Tracker::Mlflow)
                && !config.has(Tracker::Kubeflow)
        );
        assert!(!read(&[("MLFLOW_TRACKING_URI", "")]).unwrap().has(Tracker::Mlflow));
    }

    #[test]
    fn mlflows_variables_mean_what_they_do_for_its_client() {
        let mlflow = |more: &[(&str, &str)]| read(&[&[MLFLOW][..], more].concat()).unwrap().mlflow.unwrap();
        let plain = mlflow(&[]);
        assert_eq!(
            (plain.url.as_str(), plain.credential, plain.experiment.as_str()),
            ("https://mlflow.example/base", None, "foil")
        );
        let token = ("MLFLOW_TRACKING_TOKEN", "hunter2");
        assert_eq!(mlflow(&[token]).credential, Some(Credential::Token("hunter2".into())));
        let password = [("MLFLOW_TRACKING_USERNAME", "me"), ("MLFLOW_TRACKING_PASSWORD", "hunter3"), token];
        let both = mlflow(&password);
        assert_eq!(
            both.credential,
            Some(Credential::Password { user: "me".into(), password: "hunter3".into() })
        );
        assert!(!format!("{both:?}").contains("hunter"), "{both:?}");
        assert_eq!(mlflow(&[("MLFLOW_EXPERIMENT_NAME", "/Shared/x")]).experiment, "/Shared/x");
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_its_variable_and_hides_the_value() {
        let kubeflow = ("KUBEFLOW_TRAINER_SERVER_URL", "https://trainer/x");
        for (variable, pairs) in [
            ("MLFLOW_TRACKING_URI", &[("MLFLOW_TRACKING_URI", "sqlite:///hunter2.db")][..]),
            ("MLFLOW_TRACKING_URI", &[("MLFLOW_TRACKING_URI", "hunter2")]),
            ("MLFLOW_TRACKING_URI", &[("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow")]),
            ("MLFLOW_TRACKING_URI", &[("MLFLOW_TRACKING_URI", "https://mlflow?key=hunter2")]),
            ("MLFLOW_TRACKING_TOKEN", &[MLFLOW, ("MLFLOW_TRACKING_TOKEN", "hunter2\nx")]),
            ("MLFLOW_TRACKING_PASSWORD", &[MLFLOW, ("MLFLOW_TRACKING_USERNAME", "hunter2")]),
            ("MLFLOW_TRACKING_USERNAME", &[MLFLOW, ("MLFLOW_TRACKING_PASSWORD", "hunter2")]),
            ("MLFLOW_TRACKING_INSECURE_TLS", &[MLFLOW, ("MLFLOW_TRACKING_INSECURE_TLS", "true")]),
            ("MLFLOW_TRACKING_SERVER_CERT_PATH", &[MLFLOW, ("MLFLOW_TRACKING_SERVER_CERT_PATH", "/nowhere")]),
            ("KUBEFLOW_TRAINER_SERVER_URL", &[("KUBEFLOW_TRAINER_SERVER_URL", "http://hunter2")]),
            ("KUBEFLOW_TRAINER_SERVER_TOKEN", &[kubeflow]),
        ] {
            let told = read(pairs).unwrap_err();
            let text = told.to_string();
            assert_eq!(told.variable, variable, "{text}");
            assert!(text.contains("cannot be used: ") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_job_that_names_a_tracker_which_is_not_there_is_refused() {
        let trackers = |name: &str| {
            let spec = v1::JobSpec {
                trackers: Some(v1::TrackerSpec { report_to: vec![name.into()], ..Default::default() }),
                ..crate::job::fixture::spec(&[])
            };
            foil_common::spec::Job::try_from(spec).unwrap().trackers
        };
        let none = read(&[]).unwrap();
        let told = none.refusal(&trackers("mlflow")).unwrap();
        assert!(told.contains("found mlflow, and this coordinator reports to tensorboard only"), "{told}");
        assert!(told.contains("MLFLOW_TRACKING_URI"), "{told}");
        assert!(none.refusal(&trackers("kubeflow")).unwrap().contains("KUBEFLOW_TRAINER_SERVER_URL"));
        for taken in ["all", "none", "tensorboard"] {
            assert_eq!(none.refusal(&trackers(taken)), None);
        }
        assert_eq!(read(&[MLFLOW]).unwrap().refusal(&trackers("mlflow")), None);
    }
}
