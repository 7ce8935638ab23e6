//! Names of models and data sets as the Hugging Face Hub writes them.

use foil_common::spec::{self, ModelRef};

/// Maximum length of a part of a repository's name.
const LONGEST: usize = 96;
/// Endings of data file names.
const DATA_ENDINGS: [&str; 10] =
    [".gz", ".zst", ".zstd", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv"];

/// The model that training started from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Base {
    /// A directory of this name.
    Model(String),
    /// An artifact of another job.
    Artifact { job: String, artifact: String },
    /// Weights drawn from the seed; the directory held a configuration and a tokenizer.
    Random(String),
}

impl Base {
    /// The model that the policy, or else the reward model, started from.
    pub(crate) fn of(job: &spec::Job, is_reward: bool) -> Self {
        let own = job.reward.model.as_ref().filter(|_| is_reward);
        let named = |model: &ModelRef| match model {
            ModelRef::Path(path) => Self::Model(last(path).to_owned()),
            ModelRef::Input { name, .. } => Self::Model(last(name).to_owned()),
            ModelRef::Artifact { job, artifact } => {
                Self::Artifact { job: job.clone(), artifact: artifact.clone() }
            }
        };
        match own {
            Some(model) => named(model),
            None if job.policy.init == spec::Init::Random => Self::Random(job.policy.model.name()),
            None => named(&job.policy.model),
        }
    }

    /// Its name on the Hub, if it can be one.
    pub(crate) fn repository(&self) -> Option<String> {
        match self {
            Self::Model(name) => repository(name),
            Self::Artifact { .. } | Self::Random(_) => None,
        }
    }
}

/// A path's last part. The rest means nothing outside the machine that submitted the job.
fn last(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// The name of a repository: `name`, or `owner/name`, which caches of the Hub write as `owner--name`. `None`
/// if it cannot be one.
pub(crate) fn repository(name: &str) -> Option<String> {
    let name = match name.split_once("--") {
        Some((owner, name)) if !owner.contains('/') => format!("{owner}/{name}"),
        _ => name.to_owned(),
    };
    let is_part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let ends = |c: char| matches!(c, '-' | '.');
        (1..=LONGEST).contains(&part.len())
            && part.chars().all(known)
            && !part.starts_with(ends)
            && !part.ends_with(ends)
    };
    let is_one = name.split('/').count() <= 2
        && name.split('/').all(is_part)
        && name.len() <= LONGEST
        && !name.contains("--")
        && !name.contains("..")
        && !name.ends_with(".git")
        && !name.ends_with(".ipynb");
    is_one.then_some(name)
}

/// A data set's name: that of its file without its endings.
pub(super) fn data_set(file: &str) -> &str {
    let mut name = last(file);
    while let Some(shorter) = DATA_ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)) {
        if shorter.is_empty() {
            break;
        }
        name = shorter;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_hub_takes_are_repositories() {
        assert_eq!(repository("stories15m").as_deref(), Some("stories15m"));
        assert_eq!(repository("meta-llama--Llama-3.2-1B").as_deref(), Some("meta-llama/Llama-3.2-1B"));
        assert_eq!(repository("org/model_2").as_deref(), Some("org/model_2"));
        for not in
            ["", "a b", "a/b/c", "../x", ".x", "x.", "-x", "a--b--c", "a..b", "x.git", "a|b", "a\nb", "é"]
        {
            assert_eq!(repository(not), None, "{not:?}");
        }
        assert_eq!(repository(&"x".repeat(97)), None);
    }

    #[test]
    fn a_data_set_is_named_by_its_file() {
        assert_eq!(data_set("preferences.train.jsonl.gz"), "preferences.train");
        assert_eq!(data_set("train-00000-of-00001.parquet"), "train-00000-of-00001");
        assert_eq!(data_set(".jsonl"), ".jsonl");
    }
}
