//! The local paths of a job file, which must exist before anything of them is read.

use std::path::Path;

use anyhow::Result;
use foil_common::data::folder;
use foil_common::spec::{self, InputRef, ModelRef, SpecError};

use super::error_location::located;

/// Similarity from which the name of an existing file is what was meant.
const ALIKE: f64 = 0.85;
/// The models that `scripts/fetch-model` fetches.
const FETCHED: [&str; 2] = ["stories15m", "smollm2-135m"];
/// Maximum number of entries of a folder that are compared with a missing name.
const MAX_ENTRIES: usize = 10_000;

/// Checks that the job's local files and model directories exist.
///
/// # Errors
/// The first that does not, with its place in the job file or the settings and with advice.
pub(crate) fn require(file: &Path, settings: &[String], job: &spec::Job) -> Result<()> {
    let fault = |field: &str, path: &str, what: &str, advice: String| {
        let error = SpecError::Field {
            field: field.to_owned(),
            found: path.to_owned(),
            expected: format!("{what} that exists"),
            advice: Some(advice),
        };
        located(SpecError::InFile { file: file.to_owned(), error: Box::new(error) }, settings)
    };
    let models = [("policy.model", Some(&job.policy.model)), ("reward.model", job.reward.model.as_ref())];
    for (field, model) in models {
        if let Some(ModelRef::Path(path)) = model
            && !Path::new(path).exists()
        {
            let missing = Path::new(path);
            let advice = match FETCHED.iter().find(|name| missing.ends_with(name)) {
                Some(name) => format!("scripts/fetch-model {name} {path} fetches it"),
                None => advice(missing, "hf download NAME"),
            };
            return Err(fault(field, path, "a model directory", advice));
        }
    }
    for (set, sources) in job.data.sources() {
        for input in sources.iter().flat_map(|source| &source.inputs) {
            let InputRef::Path(path) = input else { continue };
            let files = folder::files(path).map_err(|error| {
                let fault = SpecError::Syntax(format!("{}: {error}", set.field()));
                located(SpecError::InFile { file: file.to_owned(), error: Box::new(fault) }, settings)
            })?;
            if let Some(missing) = files.iter().find(|path| !path.exists()) {
                let advice = advice(missing, "hf download --repo-type dataset NAME");
                return Err(fault(set.field(), &missing.display().to_string(), "a file or folder", advice));
            }
        }
    }
    Ok(())
}

/// The existing name that is most like the missing one, else how to download it from the Hub if it may be a
/// name there.
fn advice(missing: &Path, download: &str) -> String {
    let name = missing.file_name().unwrap_or_default().to_string_lossy();
    let Some(folder) = missing.parent() else { return "correct the path".to_owned() };
    if let Ok(entries) = std::fs::read_dir(folder) {
        let names =
            entries.flatten().take(MAX_ENTRIES).map(|entry| entry.file_name().to_string_lossy().into_owned());
        let likest = names
            .map(|other| (strsim::jaro_winkler(&name, &other), other))
            .filter(|(likeness, _)| *likeness > ALIKE)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        return match likest {
            Some((_, other)) => format!("did you mean {}?", folder.join(other).display()),
            None => format!(
                "correct the path, which starts from the directory of the job file; {} has no such name",
                folder.display()
            ),
        };
    }
    let parent = folder.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "correct the path; if {parent}/{name} is a name on the Hugging Face Hub, download it first: {} --local-dir DIRECTORY",
        download.replace("NAME", &format!("{parent}/{name}"))
    )
}

#[cfg(test)]
mod tests {
    use foil_proto::v1;

    use super::*;

    fn check(dir: &Path, model: &str, preferences: &[&str]) -> String {
        let text = format!(
            "name: j\npolicy: {{ model: {model} }}\ndata:\n  prompts: pairs.jsonl\n  golden: pairs.jsonl\n  preferences: [{}]\n",
            preferences.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", ")
        );
        let file = dir.join("job.yaml");
        std::fs::write(&file, text).unwrap();
        let wire: v1::JobSpec = spec::file::load(&file, &[]).unwrap();
        match require(&file, &[], &spec::Job::try_from(wire).unwrap()) {
            Ok(()) => String::new(),
            Err(error) => error.to_string().replace(&dir.display().to_string(), "DIR"),
        }
    }

    #[test]
    fn a_missing_path_is_told_with_its_line_and_what_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        std::fs::create_dir(dir.join("tiny")).unwrap();
        std::fs::write(dir.join("pairs.jsonl"), "").unwrap();
        assert_eq!(check(dir, "tiny", &["pairs.jsonl", "*.jsonl"]), "");
        assert_eq!(
            check(dir, "tiny", &["pairs.jsonl", "pair.jsonl"]),
            "DIR/job.yaml:6: data.preferences: found DIR/pair.jsonl, expected a file or folder that exists; \
             did you mean DIR/pairs.jsonl?"
        );
        let unlike = check(dir, "tiny", &["x.csv"]);
        assert!(unlike.contains("directory of the job file; DIR has no such name"), "{unlike}");
        let hub = check(dir, "HuggingFaceTB/SmolLM2-135M", &["pairs.jsonl"]);
        assert!(
            hub.starts_with("DIR/job.yaml:2: policy.model: found DIR/HuggingFaceTB/SmolLM2-135M, ")
                && hub.ends_with("hf download HuggingFaceTB/SmolLM2-135M --local-dir DIRECTORY"),
            "{hub}"
        );
        let fetched = check(dir, "models/stories15m", &["pairs.jsonl"]);
        assert!(
            fetched.ends_with("scripts/fetch-model stories15m DIR/models/stories15m fetches it"),
            "{fetched}"
        );
        let unmatched = check(dir, "tiny", &["*.parquet"]);
        assert!(unmatched.contains("data.preferences: DIR/*.parquet fits no file"), "{unmatched}");
    }
}
