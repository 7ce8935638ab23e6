//! Upgrades: this version continues with the store of the previous version, in which a job was interrupted.
//!
//! The stores are created by `scripts/fixtures/upgrade`, one for each version from which this one can
//! upgrade.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use foil_tests::{Process, Service, foil, foil_worker};

/// The phase in which the fixtures' jobs were interrupted.
const INTERRUPTED_IN: &str = "r02.policy.generate";

fn fixtures() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/upgrade");
    let entries = fs::read_dir(directory).expect("the fixtures are there");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// The bytes of the files below a directory, by path.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(contents(&path)),
            path => found.push((path.clone(), fs::read(&path).expect("a file"))),
        }
    }
    found
}

#[test]
fn a_job_of_the_version_before_goes_on_to_its_end() {
    for fixture in fixtures() {
        let directory = tempfile::tempdir().expect("a directory");
        let unpacked = Command::new("tar").arg("-xzf").arg(&fixture).arg("-C").arg(directory.path()).status();
        assert!(unpacked.expect("tar starts").success(), "{}", fixture.display());
        let store = directory.path().join("store");
        let committed: Vec<_> =
            contents(&store.join("jobs")).into_iter().filter(|(path, _)| is_artifact(path)).collect();
        assert!(committed.len() > 20, "{} holds few objects: {}", fixture.display(), committed.len());

        let (service, _coordinator) = Service::start_on(Command::new(foil()), "127.0.0.1", store.to_str());
        let id = service.foil(&["list", "-o", "name"]).trim().to_owned();
        let id = id.as_str();
        assert_eq!(service.job(id)["phase"], INTERRUPTED_IN);
        let mut agent = Command::new(foil_worker());
        agent.args(["--coordinator", service.url(), "--ranks", "2"]);
        let _agent = Process::start(agent, &service.at("agent.log"));
        service.foil(&["watch", id]);

        let job = service.job(id);
        assert_eq!(job["state"], "succeeded", "{job}");
        // A map phase continues with new ranks in the same attempt.
        assert!(job["attempt"].as_u64().is_some_and(|attempt| attempt <= 2), "{job}");
        for model in ["policy@1", "reward@1", "policy@2", "reward@2"] {
            service.weights(Command::new(foil()), id, model);
        }
        for (path, bytes) in committed {
            assert!(fs::read(&path).is_ok_and(|now| now == bytes), "{} has changed", path.display());
        }
    }
}

/// Checkpoints and chunks of an attempt may be removed; committed artifacts stay.
fn is_artifact(path: &Path) -> bool {
    let path = path.to_str().expect("UTF-8");
    path.contains("/phases/") && !path.contains("/checkpoints/") && !path.contains(INTERRUPTED_IN)
}
